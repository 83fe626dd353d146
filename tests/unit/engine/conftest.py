"""The engine without training: a real schedule, supply, server and workers around an arithmetic that stands for it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import aggregation
from fedsim.comm.faults import trouble
from fedsim.comm.inline import InlineTransport
from fedsim.comm.transport import NO_VERSION, Backoff, Command, Counters, Message, Trained
from fedsim.config import RunConfig, StopConfig, TiersSchedule
from fedsim.engine.evaluations import Evaluations
from fedsim.engine.following import ServerWithLane
from fedsim.engine.lane import Lane
from fedsim.engine.losses import Leniency
from fedsim.engine.passing import SupplyWithLane
from fedsim.engine.replay import History, ReplaySchedule
from fedsim.engine.roles import Pulse
from fedsim.engine.supply import Bounds, Supply
from fedsim.engine.tail import Recorded, Tail, recorded_past
from fedsim.engine.versions import VersionStore
from fedsim.engine.worker import Worker
from fedsim.population.devices import Devices
from fedsim.record.checkpoint import Checkpoint, Vectors, write
from fedsim.record.schema import TASKS, VERSIONS
from fedsim.schedule.ahead import Ahead
from fedsim.schedule.alone import Federation
from fedsim.schedule.building import build_policy
from fedsim.schedule.placement import placement
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import AlwaysThere, Domain, Selection
from fedsim.schedule.tiers import tiers
from fedsim.snapshot import Snapshot
from fedsim.types import EvaluationRow, Float32, Task, TaskReport

N_PARAMETERS = 5
N_CLIENTS = 12
SIZES = 1 + np.arange(N_CLIENTS) % 5
HISTORY = (
    "task",
    "client",
    "outcome",
    "base_version",
    "applied_version",
    "virtual_dispatch_s",
    "virtual_arrival_s",
    "weight",
)


class Arithmetic:
    """Trains: element 0 grows by one, the others by what depends on the task and, not linearly, on its base."""

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[TaskReport]:
        for row_P, task in zip(out_GP, tasks, strict=True):
            base_P = base_of(task.base_version)
            row_P[:] = np.float32(task.learning_rate) * (base_P * base_P - np.float32(task.client % 3) - base_P)
            row_P[1] += np.float32(task.first_step % 7) * np.float32(0.01)
            row_P[2] += np.float32(0.01 * task.n_samples)
            row_P[0] = 1.0
            progress()
        return [TaskReport(t.task, 1, t.n_samples, t.n_steps, 0.0, 0.0, 0.0, 0.0) for t in tasks]


class Counting:
    """Evaluates: element 0 counts the versions, if those are means of updates; a hundredth of it is the accuracy."""

    def evaluate(self, vector_P: Float32, *, number: int) -> list[EvaluationRow]:
        return [EvaluationRow(-1, 10, 1.0 / (1.0 + float(vector_P[0])), {"accuracy": float(vector_P[0]) / 100.0})]


class Shuffled:
    """Several real workers whose commands are carried out, and answers delivered, in an order drawn from a seed."""

    def __init__(self, workers: Sequence[Worker], seed: int) -> None:
        self.n_workers = len(workers)
        self.rung_s = 0.0
        self.is_quiet = False
        self._workers = workers
        self._draws = random.Random(seed)
        self._jobs: list[deque[Callable[[], Message]]] = [deque() for _ in workers]

    def rank(self, worker: int) -> int:
        return worker + 1

    def send(self, worker: int, command: Command, versions: Sequence[Float32]) -> None:
        core = self._workers[worker]
        core.forget(command.forget)
        core.drop(command.drop)
        for version, vector_P in zip(command.coming, versions, strict=True):
            core.learn(version, vector_P.copy())
        if command.fetch:
            self._jobs[worker].appendleft(lambda: core.deliver(command.fetch))
        if command.evaluate != NO_VERSION:
            self._jobs[worker].append(lambda: core.evaluate(command.evaluate))
        if command.tasks:
            self._jobs[worker].append(lambda: core.train(command.tasks, command.send, lambda: None))

    def wait(self, seconds: float) -> None:
        pass

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return ()

    def poll(self) -> Sequence[Message]:
        ready = [jobs for jobs in self._jobs if jobs]
        if not ready or self._draws.random() < 0.3:
            return ()
        message = self._draws.choice(ready).popleft()()
        return (*message.failed, message) if isinstance(message, Trained) else (message,)

    def counters(self, worker: int) -> Counters:
        return self._workers[worker].counters

    def close(self, timeout_s: float | None = None, shows_stack: bool = False) -> None:
        pass


class Ticks:
    """A clock that goes on by `step_s` at each reading."""

    def __init__(self, step_s: float = 1e-4) -> None:
        self.step_s, self.now_s = step_s, 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Rows:
    """Stands for the record: keeps the rows of each table."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Sequence[float]]] = {"tasks": [], "versions": [], "evaluations": []}

    def append(self, table: str, row: Sequence[float]) -> None:
        self.tables[table].append(row)

    def extend_columns(self, table: str, columns: Sequence[np.ndarray[Any, Any]]) -> None:
        self.tables[table] += list(zip(*(column.tolist() for column in columns), strict=True))

    def tick(self, now_s: float) -> None:
        pass

    def is_due(self, now_s: float) -> bool:
        return False

    def flush(self) -> None:
        pass

    def rows(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.tables.items()}

    def column(self, table: str, name: str) -> np.ndarray[Any, Any]:
        """A column by its name in the record."""
        position = {"tasks": TASKS, "versions": VERSIONS}[table].names.index(name)
        return np.array([row[position] for row in self.tables[table]])

    def history(self) -> list[tuple[float | None, ...]]:
        """The columns that a run's history consists of, a tuple a task; NaN as None, so that rows can be compared."""
        columns = [self.column("tasks", name).tolist() for name in HISTORY]
        return [tuple(None if x != x else x for x in row) for row in zip(*columns, strict=True)]


class Killed(Exception):
    """The end of a process, as far as this process can tell."""


class Kept:
    """A checkpoint: state, versions and the rows that there were."""

    def __init__(self, saved: Snapshot, versions: dict[int, Float32], rows: Rows) -> None:
        self.saved, self.versions = saved, versions
        self._tables = {name: list(table) for name, table in rows.tables.items()}
        self.recorded: Recorded | None = None

    def killed_at(self, rows: Rows) -> Kept:
        """The same, with what the killed run recorded later, on the wall clock, unless there is more from before."""
        recorded = recorded_past(rows, len(self._tables["tasks"]), len(self._tables["versions"]))
        before = 0 if self.recorded is None else self.recorded.history.version.size
        if len(rows.tables["versions"]) >= before:  # see `fedsim.record.pieces`
            self.recorded = recorded
        return self

    @classmethod
    def nothing(cls) -> Kept:
        """What there is before the first checkpoint."""
        return cls({}, {}, Rows())

    def rows(self) -> Rows:
        """A record that goes on from here."""
        rows = Rows()
        rows.tables = {name: list(table) for name, table in self._tables.items()}
        return rows


class Killing:
    """Keeps checkpoints, through real files, at these moments, and kills the run at a later one.

    A moment is a call of `is_due`: between two events, or in the middle of one that waits for an update.
    """

    Killed = Killed
    Kept = Kept

    def __init__(self, folder: Path, keep_at: Sequence[int], kill_at: int) -> None:
        self._folder, self._keep_at, self._kill_at = folder, set(keep_at), kill_at
        self.n_moments = 0
        self.last: Kept | None = None
        self.versions: VersionStore
        self.rows: Rows

    @staticmethod
    def later(n: int) -> Callable[[], bool]:
        """Kills at the n-th call, of those between events or in the middle of one, also where nothing can be kept."""
        calls = iter(range(1, n))

        def call() -> bool:
            if next(calls, None) is None:
                raise Killed
            return False

        return call

    def is_due(self, pulse: Pulse) -> bool:
        self.n_moments += 1
        if self.n_moments == self._kill_at:
            raise Killed
        return self.n_moments in self._keep_at

    def keep(self, saved: Snapshot, versions: Sequence[int]) -> None:
        vectors = Vectors(len(versions), N_PARAMETERS, lambda i: self.versions.get(versions[i]))
        read = Checkpoint(write(self._folder, self.n_moments, saved, vectors))
        assert read.snapshot.keys() == saved.keys()
        self.last = Kept(read.snapshot, dict(zip(versions, read.versions(N_PARAMETERS), strict=True)), self.rows)


@dataclass
class Result:
    """What a run left behind."""

    status: str
    rows: Rows
    weights_P: Float32
    pulse: Pulse
    supply: Supply


@dataclass
class Bench:
    """Runs a configuration on `n_workers`; more than one answer in an order drawn from `seed`."""

    n_workers: int = 1
    seed: int = 0
    bounds: Bounds = field(default_factory=lambda: Bounds(2, 2, 50, 50, 50))
    clock: Callable[[], float] = field(default_factory=Ticks)
    stop_requested: Callable[[], bool] = lambda: False
    placement: Any = "home"
    evaluator: Any = field(default_factory=Counting)
    has_tests: bool = True
    inject: str = ""
    has_lane: bool = False
    n_lane_updates: int = 0  # that went through the fast lane
    reports: list[tuple[int, int, int, str, str]] = field(default_factory=list)

    def run(self, config: RunConfig, keeper: Killing | None = None, kept: Kept | None = None) -> Result:
        """The configuration's own schedule, from its beginning or from a checkpoint."""
        return self._run(config, schedule_of(config), replaying=False, keeper=keeper, kept=kept)

    def replay(self, config: RunConfig, history: History) -> Result:
        """A recorded schedule."""
        endless = config.model_copy(update={"stop": StopConfig(versions=2**40)})
        return self._run(endless, ReplaySchedule(history, work_of(config), N_CLIENTS), replaying=True)

    def _run(
        self,
        config: RunConfig,
        schedule: Any,
        replaying: bool,
        keeper: Killing | None = None,
        kept: Kept | None = None,
    ) -> Result:
        troubles = [trouble(self.inject, rank) for rank in range(1, self.n_workers + 1)]
        workers = [
            Worker(index, "here", N_PARAMETERS, Arithmetic(), self.evaluator, self.clock, made)
            for index, made in enumerate(troubles)
        ]
        transport: Any = InlineTransport(workers[0]) if self.n_workers == 1 else Shuffled(workers, self.seed)
        versions = VersionStore(N_PARAMETERS, 8 * N_PARAMETERS)
        is_live = kept is None or kept.recorded is None
        reserve = 0 if config.clock == "wall" and not replaying and is_live else 1
        bounds = replace(self.bounds, reserve=reserve)
        supply = SupplyWithLane(
            transport, placement(self.placement, self.n_workers, SIZES), bounds, versions, self.clock, 1e9
        )
        supply._report = lambda *failure: self.reports.append(failure)
        supply._leniency = Leniency.of(config, replaying)
        supply._rest._backoff = Backoff(sleep=lambda seconds: None)
        rows = Rows() if kept is None else kept.rows()
        if keeper is not None:
            keeper.versions, keeper.rows = versions, rows
        rule = aggregation.build(config.aggregation)
        server = ServerWithLane(
            config=config,
            schedule=schedule,
            supply=supply,
            versions=versions,
            rule=rule,
            state=rule.init(np.linspace(0.0, 0.4, N_PARAMETERS, dtype=np.float32)),
            evaluations=Evaluations(config.evaluation, config.stop.target, supply, rows, self.clock, self.has_tests),
            recorder=rows,
            clock=self.clock,
            stop_requested=self.stop_requested,
            watchers=(),
            keeper=keeper,
            lane=self._lane(config, versions) if self.has_lane else None,
        )
        if kept is not None:
            recorded = kept.recorded
            tail = None if recorded is None else lambda live: Tail(recorded, work_of(config), N_CLIENTS, live)
            if kept.saved:
                server.restore(kept.saved, ((v, vector_P.copy()) for v, vector_P in kept.versions.items()), tail)
            elif tail is not None:
                server.precede(tail)
        status = server.run(replaying=replaying)
        return Result(status, rows, server.weights(), server.pulse, supply)

    def _lane(self, config: RunConfig, versions: VersionStore) -> Lane:
        """The fast lane, whatever the length of the run."""
        n_in_flight = min(config.schedule.concurrency, N_CLIENTS)
        n_merge = getattr(config.schedule, "buffer", getattr(config.schedule, "k", 1))
        n_merge = n_in_flight if config.schedule.policy == "sync" else n_merge
        work = work_of(config)
        devices = Devices(config.devices, config.seed, N_CLIENTS, Path("."), 100, 100)
        federation = Federation(N_CLIENTS, None, work.n_samples, work.n_steps, work.n_processed, devices)
        ahead = Ahead(config.schedule, federation, config.seed, work.learning_rate, n_rows=20)
        made = Lane(ahead, versions, self.bounds, config.stop, self.clock, n_in_flight=n_in_flight, n_merge=n_merge)
        consumed = made.consumed

        def counted(n: int, now_s: float) -> None:
            self.n_lane_updates += n
            consumed(n, now_s)

        made.consumed = counted  # type: ignore[method-assign]
        return made


def some_config(**sections: Any) -> RunConfig:
    """An asynchronous run of exponential task times, mean 1, for ten versions."""
    plain: dict[str, Any] = {
        "name": "test",
        "seed": 11,
        "data": {"dataset": "heart"},
        "model": {"kind": "logistic"},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "batch_size": 4, "steps": 3},
        "schedule": {"policy": "async", "concurrency": 4},
        "aggregation": {"rule": "fedavg", "weighting": "uniform"},
        "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}},
        "evaluation": {"every_versions": None},
        "stop": {"versions": 10},
    }
    if sections.get("clock") == "wall":
        del plain["devices"]
    return RunConfig(**(plain | sections))


def work_of(config: RunConfig) -> Work:
    """Sizes of 1 to 5, three steps, a rate that falls with the versions."""
    return Work(
        n_samples=lambda clients: SIZES[clients],
        n_steps=lambda n: 3,
        n_processed=lambda n: 3 * n,
        learning_rate=lambda version: 0.1 * 0.9**version,
        counts_steps=config.training.order == "continued",
    )


def schedule_of(config: RunConfig) -> Schedule:
    """The schedule of a configuration, for twelve clients."""
    devices = None
    if config.clock == "virtual":
        devices = Devices(config.devices, config.seed, N_CLIENTS, Path("."), 100, 100)
    domains = [Domain(N_CLIENTS)]
    if isinstance(config.schedule, TiersSchedule):
        assert devices is not None
        expected_s = devices.expected_s(np.arange(N_CLIENTS), np.full(N_CLIENTS, 3), 3 * SIZES)
        domains = [Domain(N_CLIENTS, part) for part in tiers(expected_s, config.schedule.tiers)]
    selection = Selection(config.schedule.selection, config.seed, devices or AlwaysThere(), SIZES)
    policy = build_policy(config.schedule, N_CLIENTS, config.drops_updates)
    return Schedule(policy, domains, selection, work_of(config), devices)


@pytest.fixture
def bench() -> type[Bench]:
    """Call it as `Bench`."""
    return Bench


@pytest.fixture
def killing() -> type[Killing]:
    """Call it as `Killing`."""
    return Killing


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """`config(**sections)`: an asynchronous run of ten versions; keyword arguments replace sections."""
    return some_config


@pytest.fixture
def ticks() -> type[Ticks]:
    """Call it as `Ticks`."""
    return Ticks
