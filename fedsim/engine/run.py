"""A run from its configuration to its record: what rank zero does, and what a worker does.

Without MPI one process is both; the loop is the same.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fedsim import configfile, yamltree
from fedsim.aggregation.fixed import FixedSum
from fedsim.comm import faults
from fedsim.comm.faults import Trouble
from fedsim.comm.losses import noticed_exits
from fedsim.config import RunConfig, StopConfig
from fedsim.engine import attempts, launching, resume, topology
from fedsim.engine import folder as run_folder
from fedsim.engine.agreement import Statement, agree
from fedsim.engine.checkpoints import Checkpoints
from fedsim.engine.ending import StuckError, closing, first_error, has_time_to_join, status_of
from fedsim.engine.evaluations import Evaluations
from fedsim.engine.following import ServerWithLane
from fedsim.engine.heap import settled_heap
from fedsim.engine.incommon import sizes_in_common
from fedsim.engine.lane import lane_of
from fedsim.engine.launching import World, headline, why_not_survivable
from fedsim.engine.losses import Leniency
from fedsim.engine.passing import SupplyWithLane
from fedsim.engine.plan import Plan, plan
from fedsim.engine.replay import History, ReplaySchedule
from fedsim.engine.resume import Found, Resumption
from fedsim.engine.roles import EventSource, Watcher
from fedsim.engine.server import Server
from fedsim.engine.settling import Settling
from fedsim.engine.summing import Summing
from fedsim.engine.tail import Tail
from fedsim.engine.unpacking import Unpacking, lengths_of, streams
from fedsim.engine.versions import VersionStore, received
from fedsim.engine.vitals import Vitals
from fedsim.engine.watchdog import Watch
from fedsim.engine.worker import Room, Worker
from fedsim.errors import ConfigError, FedsimError, LaunchError, RecordError, StalledError, StateLostError
from fedsim.record.join import join
from fedsim.recycled import Recycled
from fedsim.schedule.clock import WallClock
from fedsim.schedule.placement import placement
from fedsim.schedule.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from fedsim.comm.transport import Transport
    from fedsim.record.reader import Run
    from fedsim.record.writer import RecordWriter

T = TypeVar("T")
_FAREWELL_S = 2.0  # for the record's end and the process's own


@dataclass(frozen=True)
class Ending:
    """How a run ended: its status, where its record lies, and the error that ended it, if one did.

    `is_kept`: a checkpoint of its end is on the disk; with `is_late` that of an earlier moment, if any. `is_stuck`:
    some ranks did not end in time. `was_over`: it was to be resumed, and had ended before.
    """

    status: str
    folder: Path
    error: FedsimError | None = None
    is_kept: bool = False
    is_stuck: bool = False
    is_late: bool = False
    was_over: bool = False

    @property
    def goes_back(self) -> bool:
        """Whether the workers that are left wait for rank zero, to go back to the last checkpoint."""
        return isinstance(self.error, StateLostError)


@dataclass(frozen=True)
class Caller:
    """Who runs it: the ranks, the words of the command line, who watches, and who may ask for an end.

    `may_exit`: the process is the run's own, and may be ended where nothing else ends a stall.
    """

    world: World
    command_line: Sequence[str] = ()
    watchers: Sequence[Watcher] = ()
    stop_requested: Callable[[], bool] = lambda: False
    may_exit: bool = False
    allow_mixed: bool = False
    allow_code: bool = False


@dataclass(frozen=True)
class _Attempt:
    """What is to be done in which folder: a run from its beginning, a recorded history, or one that goes on."""

    folder: Path
    recorded: ReplaySchedule | None = None
    found: Found | None = None


@dataclass(frozen=True)
class _Here:
    """This rank: its device, what all ranks said of themselves, and the trouble that it was told to make."""

    device: torch.device
    statements: Sequence[Statement]
    trouble: Trouble


def run_file(path: Path, overrides: Sequence[str], out: Path | None, caller: Caller) -> Ending | None:
    """How the run of a configuration file ended; None on a worker, whose part is over then.

    Raises:
        FedsimError: the run could not start; the same on every rank.
    """

    def make() -> Plan:
        return plan(configfile.load(path, overrides), path.resolve().parent, caller.allow_code)

    made, here = _prepare(make, caller)
    folder = Path("runs") / made.config.name if out is None else out
    return _on_all_ranks(made, here, _Attempt(folder), caller)


def resume_run(run: Path, caller: Caller) -> Ending | None:
    """How a run ended that was stopped or killed, and goes on here from its newest whole checkpoint; None on a worker.

    Raises:
        FedsimError: it cannot go on here; the same on every rank.
    """
    found = _told_by_rank_zero(lambda: resume.find(run), caller.world)
    if found.is_over:
        return Ending(found.status, run, was_over=True) if caller.world.rank == 0 else None
    made, here = _prepare(lambda: resume.plan_again(found, caller.allow_code), caller)
    resume.check_same(found, made, here.statements, caller.allow_mixed)
    return _on_all_ranks(made, here, _Attempt(run, found=found), caller)


def replay_run(run: Path, out: Path | None, caller: Caller) -> Ending | None:
    """How the training of a recorded history ended; its record lies in `out`: the run's folder + `-replay` if None."""
    from fedsim.record.reader import open_run

    recorded: list[ReplaySchedule] = []

    def make() -> Plan:
        source = open_run(run)
        where = f"{run}: configuration in the record"
        config = configfile.from_mapping(yamltree.parse(source.config_text.encode(), where).value, where)
        if config.training.path == "none":
            raise RecordError(
                f"{run}: nothing was trained in this run (training.path none): there is nothing to replay"
            )
        base_dir = Path(str(source.attributes.get("config_folder", ".")))
        made = plan(config.model_copy(update={"stop": StopConfig(versions=2**40)}), base_dir, caller.allow_code)
        resume.check_code(run, source.attributes, made.own.sha256)
        recorded.append(ReplaySchedule(History.of(source), made.work(), made.population.n_clients))
        return made

    made, here = _prepare(make, caller)
    folder = run.with_name(run.name + "-replay") if out is None else out
    return _on_all_ranks(made, here, _Attempt(folder, recorded[0]), caller)


def run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    world: World | None = None,
    allow_code: bool = False,
) -> Run | None:
    """The finished run of a configuration: a `RunConfig`, a mapping, or the path of a YAML file; None on a worker.

    `out` is the run's folder, by default `runs/<name>`. Relative data paths are looked up from the file's folder, or
    from the current one. Without `world` everything happens in this process.
    `allow_code` lets functions of the user's own be loaded, where the configuration names some.

    Raises:
        FedsimError: the run could not start, or an error ended it.
    """
    from fedsim.record.reader import open_run

    caller = Caller(world or World(0, 1, None), command_line=("fedsim.run",), allow_code=allow_code)
    folder = None if out is None else Path(out)
    if isinstance(config, str | Path):
        ending = run_file(Path(config), overrides, folder, caller)
    else:
        if overrides:
            raise ConfigError("overrides need a configuration file; a mapping can be changed directly")
        fixed = config if isinstance(config, RunConfig) else configfile.from_mapping(config)
        made, here = _prepare(lambda: plan(fixed, Path.cwd(), allow_code), caller)
        ending = _on_all_ranks(made, here, _Attempt(folder or Path("runs") / fixed.name), caller)
    if ending is None:
        return None
    if ending.error is not None:
        raise ending.error
    return open_run(ending.folder)


# --------------------------------------------------------------------------------------------- preparation


def _prepare(make: Callable[[], Plan], caller: Caller) -> tuple[Plan, _Here]:
    """This rank's plan and device, once all ranks have agreed that they can work together."""
    from fedsim.training import device as devices

    world = caller.world
    host = platform.node()
    made, chosen, trouble = None, None, Trouble()
    try:
        trouble = faults.trouble(os.environ.get(faults.VARIABLE, ""), world.first_rank)
        made = make()
        _check_fault_tolerance(made.config, world)
        wish = "cpu" if world.size > 1 and world.rank == 0 else made.config.device  # the server holds no GPU
        chosen = devices.choose(wish, devices.local_rank(os.environ), os.environ)
        if made.training_path == "captured" and not (world.size > 1 and world.rank == 0):
            devices.require_cuda(chosen)
        devices.prepare(chosen, made.config.threads, os.environ)
        mine = Statement(
            world.rank,
            host,
            config_sha256=configfile.sha256(made.config),
            data_sha256=made.population.data_sha256(),
            layout=made.layout.checksum,
            code=made.own.sha256,
            device=devices.describe(chosen),
            environment=devices.environment_signature(made.config, chosen),
            cores=topology.cores(),
            memory_nodes=topology.memory_nodes(topology.cores()),
        )
    except FedsimError as error:
        mine = Statement(world.rank, host, error=str(error), error_type=type(error))
    allow_mixed = caller.allow_mixed or (made is not None and made.config.allow_mixed)
    statements = agree(mine, _gather(world), allow_mixed)
    assert made is not None and chosen is not None
    return made, _Here(chosen, statements, trouble)


def _check_fault_tolerance(config: RunConfig, world: World) -> None:
    reason = why_not_survivable(world, os.environ) if config.fault_tolerant else ""
    if reason:
        raise LaunchError(f"fault_tolerant: true, but {reason}")


def _gather(world: World) -> Callable[[Statement], list[Statement]]:
    if world.comm is None:
        return lambda mine: [mine]
    comm = world.comm
    return lambda mine: comm.allgather(mine)


def _told_by_rank_zero(find: Callable[[], T], world: World) -> T:
    """What rank zero finds, on every rank.

    Raises:
        FedsimError: what rank zero met, on every rank.
    """
    found: Any = None
    if world.rank == 0:
        try:
            found = find()
        except FedsimError as error:
            found = error
    if world.comm is not None:
        found = world.comm.bcast(found, root=0)
    if isinstance(found, FedsimError):
        raise found
    return cast(T, found)


@dataclass(frozen=True)
class _Begun:
    """What rank zero has in its hands when a run begins or goes on."""

    record: RecordWriter
    resumption: Resumption | None


def _claim(attempt: _Attempt, made: Plan, here: _Here, caller: Caller) -> _Begun | None:
    """The run's folder and a new record in it, on rank zero; every rank learns whether that worked.

    Raises:
        RecordError: the folder is there already, or cannot be written; the same on every rank.
    """
    begun: list[_Begun] = []

    def begin() -> None:
        begun.append(_begin(attempt, made, here, caller))

    _told_by_rank_zero(begin, caller.world)
    return begun[0] if begun else None


def _begin(attempt: _Attempt, made: Plan, here: _Here, caller: Caller) -> _Begun:
    from fedsim.record.pieces import attempt_name
    from fedsim.record.writer import RecordWriter

    resumption = None
    if attempt.found is None:
        run_folder.make(attempt.folder, made.config)
    else:
        resumption = resume.take_up(attempt.found, made)
    path = attempt.folder / attempt_name(0 if attempt.found is None else attempt.found.attempt)
    provenance = attempts.provenance_of(made, here.statements, caller, attempt.found)
    layout = attempts.record_plan(made, resumption)
    return _Begun(RecordWriter(path, provenance, layout, made.config.record.flush_s), resumption)


# --------------------------------------------------------------------------------------------- the two roles


def _on_all_ranks(made: Plan, here: _Here, attempt: _Attempt, caller: Caller) -> Ending | None:
    """How it ended; on a worker None. Where a worker dies with what its clients kept, those that are left go back."""
    ended = _one_attempt(made, here, attempt, caller)
    while ended is True or (isinstance(ended, Ending) and ended.goes_back):
        caller = replace(caller, world=launching.survivors(caller.world))
        told = partial(_found_again, attempt, caller.world, ended)
        found = _told_by_rank_zero(told, caller.world)
        made, here = _prepare(partial(resume.plan_again, found, caller.allow_code), caller)
        resume.check_same(found, made, here.statements, caller.allow_mixed)
        ended = _one_attempt(made, here, _Attempt(attempt.folder, found=found), caller)
    return ended if isinstance(ended, Ending) else None


def _found_again(attempt: _Attempt, world: World, ended: Ending | bool) -> Found:
    """The run that goes back to its last checkpoint, at rank zero, which says so; a replay has none."""
    assert isinstance(ended, Ending) and ended.error is not None
    if world.size == 1 or attempt.recorded is not None:
        raise ended.error
    print(f"fedsim: {ended.error}: back to the last checkpoint, on {world.size} ranks", file=sys.stderr, flush=True)
    return resume.find(attempt.folder)


def _one_attempt(made: Plan, here: _Here, attempt: _Attempt, caller: Caller) -> Ending | bool:
    """How it ended; on a worker whether it is to begin again with those that are left."""
    launching.check_size(made.training_path, caller.world.size)
    begun = _claim(attempt, made, here, caller)
    clock = WallClock()
    watch = Watch(made.config.stall_timeout_s, headline(caller.world), caller.may_exit and caller.world.comm is None)
    if made.training_path == "none":
        return _alone(made, begun, attempt.folder, caller, clock)
    if caller.world.comm is None:
        from fedsim.comm.inline import InlineTransport

        worker = _worker(made, here, 1, 0, clock)
        transport: Transport = InlineTransport(worker, caller.stop_requested, watch.beat)
        return _serve(made, begun, attempt, caller, transport, clock, watch)
    from fedsim.comm.channels import Channels
    from fedsim.comm.mpi import MpiTransport
    from fedsim.comm.nodes import open_nodes
    from fedsim.comm.working import WorkerChannel

    n_shared = made.n_version_values if made.config.compression.versions == "float32" else 0  # others are unpacked
    common = sizes_in_common(made, caller.world.size - 1)
    nodes = open_nodes(caller.world.comm, n_shared, made.bounds.worker_versions, common)
    deals_cores = made.config.cores == "auto" and made.config.threads == 1 and here.device.type == "cpu"
    channels = Channels.open(caller.world.comm, made.config.memory.piece_bytes // 4, deals_cores=deals_cores)
    lengths = lengths_of(made)
    with channels.bell, channels.cores.kept(channels.bell):
        if caller.world.rank == 0:
            made.rule.make_in(Recycled().empty if nodes.commons is None else nodes.commons.versions.empty)
            transport = MpiTransport(channels, lengths, made.metric_names, nodes.ledger, nodes.commons)
            return _serve(made, begun, attempt, caller, transport, clock, watch)
        room = None if nodes.common_shelf is None else nodes.common_shelf.rows
        worker = _worker(made, here, caller.world.size - 1, caller.world.rank, clock, room)
        survives = not why_not_survivable(caller.world, os.environ)
        with watch, settled_heap(), noticed_exits(headline(caller.world)) if survives else nullcontext():
            shelves = (nodes.shelf, nodes.common_shelf)
            return WorkerChannel(channels, worker, lengths, clock, watch, *shelves).serve()


def _worker(
    made: Plan, here: _Here, n_workers: int, rank: int, clock: Callable[[], float], room: Room | None = None
) -> Worker:
    from fedsim.training.clients import ClientStates
    from fedsim.training.clients.build import build_evaluator, build_trainer
    from fedsim.training.evaluate import Evaluator
    from fedsim.training.objectives import loss_of
    from fedsim.training.shards import ShardCache, vocabulary_of

    config = made.config
    index = max(rank - 1, 0)
    summing = Summing.of(config)
    loss, vocabulary = loss_of(config, made.population), vocabulary_of(made.module)
    shards = ShardCache(config.memory.worker_data_bytes, here.device, loss, vocabulary, made.group_size)
    states = ClientStates(made.n_state_values) if made.methods else None
    trainer = build_trainer(
        config,
        made.population,
        made.module,
        methods=made.methods,
        states=states,
        n_parameters=made.layout.n_parameters,
        payload=made.rule.payload,
        device=here.device,
        worker=rank,
        clock=clock,
        shards=shards,
        own=made.own.objective,
    )
    evaluator = Evaluator(config, made.population, made.module, here.device, shards)
    host_of = placement(config.placement, n_workers, made.balanced_sizes())
    tested = [client for client in made.population.test_clients() if made.methods and host_of(client) == index]
    return Worker(
        index=index,
        host=platform.node(),
        n_parameters=made.layout.n_parameters,
        trainer=trainer,
        evaluator=build_evaluator(evaluator, made.methods, states, made.layout.n_parameters, tested, index == 0),
        clock=clock,
        trouble=here.trouble,
        n_workers=max(1, len(here.statements) - 1),
        states=states,
        sums_in=None if summing is None else FixedSum(made.layout.n_parameters, summing.scale),
        encoded_bytes=None if made.codec is None else made.codec.n_bytes,
        receive=partial(received, form=config.compression.versions),
        room=room,
        group_size=made.group_size,
    )


def _serve(
    made: Plan,
    begun: _Begun | None,
    attempt: _Attempt,
    caller: Caller,
    transport: Transport,
    clock: Callable[[], float],
    watch: Watch,
) -> Ending:
    """Rank zero: the record, the server, and the end of both, whatever happens."""
    assert begun is not None
    folder, record = attempt.folder, begun.record
    server, vitals, keeper = _server(made, attempt, caller, transport, begun, clock, watch)
    status, error, is_stuck = "failed", None, False
    try:
        with watch, closing(transport, watch, lambda: _patience_s(made, server, clock)):
            _restore(server, keeper, made, begun)
            with settled_heap():
                status = server.run(replaying=attempt.recorded is not None)
    except FedsimError as ended:
        is_stuck = status == "stopped" or isinstance(ended, StuckError)  # the run has ended; its ranks have not
        if status != "stopped":
            status, error = status_of(ended), ended
    error = _kept(server, keeper, error)
    status = "failed" if error is not None and status in ("done", "stopped") else status
    with first_error(error) as ending:
        if error is not None:
            record.append("failures", (clock(), *error.where, type(error).__name__, str(error)))
        vitals.write(clock())
        record.close(status, attempts.totals(server.pulse, clock()), server.weights()[: made.layout.n_parameters])
        in_time = server.stopped_s is None or has_time_to_join(folder, _patience_s(made, server, clock))
        if in_time and not isinstance(error, StateLostError):  # that one goes on
            join(folder)
    server.close()
    is_kept = status in ("stopped", "lost") and attempt.recorded is None
    return Ending(status, folder, ending.error, is_kept=is_kept, is_stuck=is_stuck, is_late=server.is_late)


def _kept(server: Server, keeper: Checkpoints, error: FedsimError | None) -> FedsimError | None:
    """The run's error, once its last checkpoint is on the disk: that of a run which ended with an error, too."""
    try:
        if error is not None and not isinstance(error, RecordError | StateLostError):  # that one goes back
            server.keep_last()
        keeper.finish()
    except RecordError as failed:
        return error or failed
    return error


def _patience_s(made: Plan, server: Server, clock: Callable[[], float]) -> float:
    """How long the workers may take to end: after a signal what is left of the time in which it has to be answered."""
    if server.stopped_s is None:
        return made.config.stall_timeout_s
    return max(1.0, made.config.checkpoint.stop_within_s - (clock() - server.stopped_s) - _FAREWELL_S)


def _alone(made: Plan, begun: _Begun | None, folder: Path, caller: Caller, clock: Callable[[], float]) -> Ending:
    """The schedule without training: one process, no workers, no model at the end, and no checkpoints."""
    from fedsim.engine.alone import AloneRun

    assert begun is not None
    record = begun.record
    going = AloneRun(made, record, clock, caller.stop_requested, caller.watchers)
    status, error = "failed", None
    try:
        status = going.run()
    except FedsimError as ended:
        status, error = ("stalled" if isinstance(ended, StalledError) else "failed"), ended
        record.append("failures", (clock(), -1, -1, -1, type(ended).__name__, str(ended)))
    record.close(status, attempts.totals(going.pulse, clock()), None)
    join(folder)
    return Ending(status, folder, error)


def _restore(server: Server, keeper: Checkpoints, made: Plan, begun: _Begun) -> None:
    """Takes up the state of the checkpoint from which the run goes on, if there is one, and what was recorded past."""
    resumption = begun.resumption
    if resumption is None:
        return
    for note in resumption.notes:
        begun.record.append("failures", (0.0, -1, -1, -1, "CheckpointUnusable", note))
    kept, recorded = resumption.checkpoint, resumption.recorded

    def tail(live: Schedule) -> Tail:
        assert recorded is not None
        return Tail(recorded, made.work(), made.population.n_clients, live)

    if kept is None:
        if recorded is not None:
            server.precede(tail)
        return
    with resume.understood(kept):
        versions = resume.versions_of(kept, made.n_version_values)
        server.restore(kept.snapshot, versions, None if recorded is None else tail)
    keeper.begin_at(server.pulse.version)


def _server(
    made: Plan,
    attempt: _Attempt,
    caller: Caller,
    transport: Transport,
    begun: _Begun,
    clock: Callable[[], float],
    watch: Watch,
) -> tuple[Server, Vitals, Checkpoints]:
    config, record, recorded = made.config, begun.record, attempt.recorded
    versions = VersionStore(
        made.n_version_values, config.memory.server_versions_bytes, attempt.folder, config.compression.versions
    )
    host_of = placement(config.placement, transport.n_workers, made.balanced_sizes())
    replays = recorded is not None or (begun.resumption is not None and begun.resumption.recorded is not None)
    bounds = replace(made.bounds, reserve=1) if replays else made.bounds
    report = attempts.reporter(record, transport, clock)
    leniency = Leniency.of(config, attempt.recorded is not None)
    settling = None
    if made.methods:
        settling = Settling(transport.n_workers, made.n_state_values, made.is_personal)
    patience_s = config.stall_timeout_s
    supply = SupplyWithLane(transport, host_of, bounds, versions, clock, patience_s, report, leniency, settling)
    evaluations = Evaluations(config.evaluation, config.stop.target, supply, record, clock, made.has_tests)
    schedule: EventSource = made.schedule() if recorded is None else recorded
    vitals = Vitals(transport, supply, record, config.record.flush_s)
    resumption = begun.resumption
    keeper = Checkpoints(
        attempt.folder,
        config.checkpoint,
        {"config_sha256": configfile.sha256(config if resumption is None else resumption.found.config)},
        record,
        {} if resumption is None else resumption.start_rows,
        versions,
        supply.release_version,
    )
    if streams(made):
        made.rule.hasten()
    server = ServerWithLane(
        config=config,
        schedule=schedule,
        supply=supply,
        versions=versions,
        rule=made.rule,
        state=made.rule.init(made.initial_P),
        evaluations=evaluations,
        recorder=record,
        clock=clock,
        stop_requested=caller.stop_requested,
        watchers=(vitals, watch.seen, *caller.watchers),
        keeper=keeper if recorded is None else None,
        streams=streams(made),
        unpacking=None if made.codec is None else Unpacking(made.codec, made.rule.payload == "model"),
        lane=None if replays else lane_of(made, versions, clock),
    )
    return server, vitals, keeper


__all__ = ["Caller", "Ending", "replay_run", "resume_run", "run", "run_file"]
