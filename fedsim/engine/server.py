"""The server: for each event aggregate, record, schedule; then supply the workers.

virtual clock: the earliest event is due; its update is brought in, however long the others take
wall clock:    whatever came in is applied, in the order in which it came

On the virtual clock the schedule may run ahead of the model: until the next version is made nothing depends on what an
update holds. So one that is not here yet is owed, and what follows it is dispatched meanwhile. What is owed is consumed
in the order of events, at the latest before the next version; where the schedule learns from updates, at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from fedsim import snapshot, states
from fedsim.aggregation import Arrival, Rule
from fedsim.config import RunConfig
from fedsim.engine.evaluations import Evaluations, Recorder
from fedsim.engine.making import Left, Merged
from fedsim.engine.roles import EventSource, Interrupted, Keeper, LiveSchedule, Pulse, TooLate, Watcher
from fedsim.engine.streaming import Begun, Streaming
from fedsim.engine.summing import Summing
from fedsim.engine.supply import Supply
from fedsim.engine.tail import Tail
from fedsim.engine.taskrows import applied_row, ended_row
from fedsim.engine.unpacking import Unpacking
from fedsim.engine.versions import VersionStore
from fedsim.errors import StalledError
from fedsim.snapshot import Snapshot
from fedsim.types import Event, EventKind, Feedback, Float32, Int64, Outcome, Task, Update

_NAN = math.nan
_TO_END_S = 5.0  # for the workers' end, the record's, and the process's own
_ATTEND_EVERY_S = 5e-3  # watchers and the record need no more
_LATER = ("finished", "is_made")  # in a checkpoint since it can be written while evaluations are waited for


class Server:
    """Rank zero's loop. `run` returns the status that the run ended with: `done` or `stopped`.

    Its state is the rule's, the schedule's, and what is owed: tasks that have ended in the schedule and are not
    recorded yet, with their outcomes; those to be applied are still in the supply. Wherever it waits for an update,
    also in the middle of an event, its state can be kept.
    """

    def __init__(
        self,
        config: RunConfig,
        schedule: EventSource,
        supply: Supply,
        versions: VersionStore,
        rule: Rule,
        state: Any,
        evaluations: Evaluations,
        recorder: Recorder,
        clock: Callable[[], float],
        stop_requested: Callable[[], bool],
        watchers: Sequence[Watcher],
        keeper: Keeper | None = None,
        unpacking: Unpacking | None = None,
        streams: bool = False,
    ) -> None:
        self._stop = config.stop
        stop_within_s = config.checkpoint.stop_within_s
        self._patience_s = stop_within_s - min(_TO_END_S, 0.5 * stop_within_s)  # with workers, after a signal
        self._on_wall = config.clock == "wall"
        self._summing = Summing.of(config)
        self._drops = config.drops_updates
        self._schedule = schedule
        self._supply = supply
        self._versions = versions
        self._rule = rule
        self._state = state
        self._evaluations = evaluations
        self._recorder = recorder
        self._clock = clock
        self._stop_requested = stop_requested
        self._watchers = watchers
        self._merged = Merged()
        self._owed: deque[tuple[Task, Outcome]] = deque()
        self._n_reached = 0  # updates consumed or owed
        self._spare: deque[Task] = deque()  # of a round that the stop cuts short: in the place of those that failed
        self._made_P: Float32 | None = None  # a version on its way from its last update to `_put_out`
        self._left: Left | None = None
        self._keeper = keeper
        self._unpacking = unpacking
        self._streams = streams  # large updates are applied while they come in
        self._needs_base = rule.needs_base or (unpacking is not None and unpacking.needs_base)
        self._finished = False
        self._begun = False
        self._is_made = False  # a version was put out, and what follows one is not seen to yet: see `_judge`
        self._tail: Tail | None = None
        self._offset_s = 0.0  # from the attempt's clock to the run's, on the wall clock
        self._is_torn = False  # in the middle of what cannot be gone on with
        self.stopped_s: float | None = None  # when the run was stopped in haste
        self.is_late = False  # its state could not be had in time
        self.pulse = Pulse()

    def run(self, replaying: bool = False) -> str:
        """Runs to the end, the last evaluation included.

        Raises:
            StalledError: nothing can happen any more.
            ClientError, WorkerError: something went wrong at a worker.
        """
        self._drops = self._drops and not replaying
        try:
            status = self._run_to_stop(self._on_wall and not replaying)
            self._evaluations.finish(self.pulse.version, self.pulse.virtual_s, partial(self._rest, at_end=True))
        except Interrupted:
            self._keep_in_haste()
            return "stopped"
        self._attend()
        return status

    def _run_to_stop(self, live: bool) -> str:
        """The status with which the stop was reached. A signal's `Interrupted` is left to the caller."""
        try:
            if not self._begun:
                self._begin(live)
            if self._tail is not None:
                self._run_tail(self._tail)
            if live:
                self._run_on_wall()
            else:
                self._run_virtual()
        except Interrupted as interrupted:
            if interrupted.in_haste:
                raise
            self._keep()
            self._keeper = None  # a run that goes on has no evaluation where this attempt has its last
            return "stopped"
        return "done"

    def _begin(self, live: bool) -> None:
        """Version 0, and the first tasks."""
        self._put_out(0, self._rule.publish(self._state))
        self._begun = True
        self._judge()
        self._supply.submit(self._schedule.dispatch(self._now() if live else self._schedule.now_s))

    def weights(self) -> Float32:
        """The current version, flat (P,) float32."""
        return self._versions.get(self.pulse.version)

    def close(self) -> None:
        """Gives back what the run kept outside memory."""
        self._versions.close()

    # ------------------------------------------------------------------------------ checkpoints

    def snapshot(self) -> Snapshot:
        """The whole state but for the versions."""
        owed = {"owed": [task for task, _ in self._owed], "outcomes": [int(outcome) for _, outcome in self._owed]}
        owed |= {"spare": list(self._spare)}
        return snapshot.joined(
            {
                "server": states.of(self._own() | owed),
                "rule": snapshot.of(self._state),
                "schedule": self._live.snapshot(),
                "evaluations": self._evaluations.snapshot(),
                "clients": self._client_states(),
            }
        )

    def _client_states(self) -> Snapshot:
        """What clients keep, as of what was consumed; nothing where they keep nothing."""
        if not self._supply.keeps_states:
            return {}
        clients, states_nS = self._supply.collect_states(self._while_keeping, self.stopped_s is not None)
        return {"numbers": np.array(clients, dtype=np.int64), "states": states_nS}

    def restore(
        self, saved: Snapshot, versions: Iterable[tuple[int, Float32]], recorded: Callable[[Any], Tail] | None = None
    ) -> None:
        """Goes on from a snapshot, in a new server, with the versions that were kept with it.

        On the wall clock `recorded` makes the schedule of what was recorded past it, which comes before the live one.

        Raises:
            RecordError: it is no snapshot of such a run.
        """
        plan = self._own() | {"left": None, "owed": [], "outcomes": [], "spare": []}
        part = snapshot.part(saved, "server")
        for name in _LATER:
            if name not in part:  # a checkpoint of before a run could be kept while it waits for evaluations
                part[name] = np.array(False)
        own = states.restored(part, plan, {"left": Left()})
        pulse = self.pulse
        pulse.version, pulse.n_updates, pulse.virtual_s = own["version"], own["n_updates"], own["virtual_s"]
        self._merged, self._n_reached, self._left = own["merged"], own["n_reached"], own["left"]
        self._finished, self._is_made = own["finished"], own["is_made"]
        self._owed.extend(zip(own["owed"], map(Outcome, own["outcomes"]), strict=True))
        self._spare.extend(own["spare"])
        snapshot.put(self._state, snapshot.part(saved, "rule"))
        if recorded is None:
            self._live.restore(snapshot.part(saved, "schedule"))
        else:
            self._live.restore_learned(snapshot.part(saved, "schedule"))
            self._schedule = self._tail = recorded(self._schedule)
        self._offset_s = self._schedule.now_s - self._clock()
        numbers = []
        for number, vector_P in versions:
            vector_P.flags.writeable = False
            self._versions.add(number, vector_P)
            numbers.append(number)
        if self._supply.keeps_states:
            kept = snapshot.part(saved, "clients")
            clients, states_nS = snapshot.array(kept, "numbers", np.int64, 1), snapshot.array(kept, "states", "f4", 2)
            self._supply.adopt_states(clients.tolist(), states_nS)
        self._supply.submit(self._unconsumed())
        self._evaluations.restore(snapshot.part(saved, "evaluations"))
        for number in numbers:
            if number != self.pulse.version:
                self._supply.release_version(number)
        self._begun = True

    def precede(self, recorded: Callable[[Any], Tail]) -> None:
        """Puts what was recorded, from its beginning on, before the live schedule, where there is no snapshot."""
        self._schedule = self._tail = recorded(self._schedule)

    def _own(self) -> dict[str, Any]:
        """The server's own fields by their names in a checkpoint."""
        pulse = {name: getattr(self.pulse, name) for name in ("version", "n_updates", "virtual_s")}
        event = {"merged": self._merged, "n_reached": self._n_reached, "left": self._left}
        return pulse | event | dict(zip(_LATER, (self._finished, self._is_made), strict=True))

    @property
    def _live(self) -> LiveSchedule:
        return cast(LiveSchedule, self._schedule)  # who replays keeps nothing, and restores nothing

    def _unconsumed(self) -> list[Task]:
        """The tasks whose updates may still be consumed."""
        owed = [task for task, outcome in self._owed if outcome is not Outcome.ABORTED and task.wanted]
        return [*owed, *self._spare, *(task for task in self._live.unconsumed() if task.wanted)]

    def _keep(self) -> None:
        """Hands the state to the keeper, and says which versions it cannot do without."""
        if self._keeper is not None:
            self._keep_general(self._keeper)

    def _keep_general(self, keeper: Keeper) -> None:
        if self._supply.is_personal:  # an evaluation of later states would be another one
            self._evaluations.drain(self._while_keeping)
        self._evaluations.collect()  # a result that is in has let its version go
        tasks = {task.base_version for task in self._unconsumed()}
        needed = {self.pulse.version, *tasks, *self._evaluations.outstanding()}
        self._recorder.flush()
        keeper.keep(self.snapshot(), sorted(needed))

    def _keep_in_haste(self) -> None:
        """The last checkpoint of a run that a signal stops; the one before stays the last where that takes too long."""
        self.stopped_s = self._clock()
        if self._keeper is not None and self._supply.is_personal:  # evaluations come first, and train nothing
            self._supply.hurry()
        try:
            self._keep()
        except TooLate:
            self.is_late = True

    def _while_keeping(self) -> None:
        """While workers are waited for who have what is to be kept: a signal ends that, and begins anew in haste."""
        if self._clock() - self.pulse.wall_s >= _ATTEND_EVERY_S:
            self._attend()
        self._supply.check_living()  # the states of who is left are not all
        if self.stopped_s is None:
            if self._stop_requested():
                raise Interrupted(in_haste=True)
        elif self._clock() - self.stopped_s > self._patience_s:
            raise TooLate

    def keep_last(self) -> None:
        """Keeps the state that an error has left, if that can be gone on with and no worker is needed for it."""
        needs_workers = self._supply.keeps_states or (self._supply.is_personal and self._evaluations.outstanding())
        if self._begun and not self._is_torn and not needs_workers:
            self._keep()

    # ------------------------------------------------------------------------------ the two clocks

    def _run_virtual(self) -> None:
        schedule = self._schedule
        self._catch_up()
        while not self._finished:
            if self._went_ahead():
                continue
            event = schedule.peek()
            if event is None and not schedule.ends:
                self._settle()
                raise StalledError(self._stalled_text())
            if event is None:
                break
            if self._stop.virtual_s is not None and event.time_s > self._stop.virtual_s:
                self.pulse.virtual_s = self._stop.virtual_s
                break
            self._handle(event)
            self._go_on()
        self._settle()

    def _catch_up(self) -> None:
        """The rest of an event in whose middle the state was kept, or the lane was left."""
        if self._left is not None:
            self._complete(self._left)
        elif self._is_made:
            self._judge()
        else:
            return
        self._go_on()

    def _went_ahead(self) -> bool:
        """Whether events were handled in another way than one by one; see `fedsim.engine.following`."""
        return False

    def _run_tail(self, tail: Tail) -> None:
        """What was recorded past the checkpoint, again; then the live schedule takes over, and is kept at once."""
        keeper, self._keeper = self._keeper, None  # a tail cannot be kept
        self._run_virtual()
        self._schedule, self._tail, self._keeper = tail.go_live(), None, keeper
        self._supply.go_live()
        self._offset_s = self._schedule.now_s - self._clock()
        if not self._finished:
            self._keep()

    def _now(self) -> float:
        """The run's time on the wall clock, which stood still between two attempts."""
        return self._clock() + self._offset_s

    def _go_on(self) -> None:
        """After an event: dispatches if its instant is over, and looks after everything else."""
        if not self._finished and self._schedule.instant_over():
            self._supply.submit(self._schedule.dispatch(self._schedule.now_s))
        self._supply.service()
        self._rest()

    def _run_on_wall(self) -> None:
        schedule, supply = self._schedule, self._supply
        self._catch_up()
        while not self._finished:
            supply.pump()
            timer = schedule.peek()
            if timer is not None and timer.time_s <= self._now():
                self._handle(timer)
            elif not supply.listen():
                self._while_waiting()
            self._handle_arrivals(supply.arrivals())
            if self._finished:
                return
            supply.submit(schedule.dispatch(self._now()))
            if schedule.n_in_flight == 0 and schedule.peek() is None:
                raise StalledError(self._stalled_text())
            self._rest()

    def _handle_arrivals(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._schedule.is_in_flight(number) and not self._finished:
                self._handle(Event(self._now(), EventKind.ARRIVAL, number))

    # ------------------------------------------------------------------------------ one event

    def _handle(self, event: Event) -> None:
        """Consumes what the event brings, records what ended, makes a version if it is time; checks the exact stops."""
        has_failed = self._drops and self._has_failed(event)
        self._is_torn = True
        step = self._schedule.step(event, has_failed)
        self.pulse.virtual_s = self._schedule.now_s
        room = None if self._stop.updates is None else self._stop.updates - self._n_reached
        consumed = step.consumed[:room]
        self._n_reached += len(consumed)
        self._owed.extend((task, Outcome.APPLIED) for task in consumed)
        self._spare = deque(step.consumed[len(consumed) :] if self._drops else ())
        for task, outcome in step.ended:
            if task.wanted and outcome is Outcome.ABORTED:
                self._supply.cancel(task.task)
            self._owed.append((task, outcome))
        is_last = room is not None and len(step.consumed) >= room
        is_short = room is not None and len(step.consumed) > room
        must_know = self._on_wall or self._schedule.learns or self._supply.keeps_states
        is_patient = not (step.merge or is_last or must_know)
        self._left = left = Left(step.merge, is_last, is_short, is_patient)
        self._is_torn = False
        self._complete(left)

    def _has_failed(self, event: Event) -> bool:
        """Whether an update that is due will never come; waits until that is known. Tiers ask at the end of a round."""
        if event.kind != EventKind.ARRIVAL or not self._schedule.consumes_on_arrival:
            return False
        self._supply.bring(event.number, self._while_waiting)
        has_failed = self._supply.has_failed(event.number)
        if has_failed:
            self._supply.discard(event.number)
        return has_failed

    def _complete(self, left: Left) -> None:
        """The rest of an event."""
        self._settle(is_patient=left.is_patient, completes=left.merge and not left.is_short)
        self._left, self._is_torn = None, True
        is_over = left.is_last and (self._stop.updates is None or self._n_reached >= self._stop.updates)
        if left.is_short and (self._spare or not self._drops):
            self._schedule.version -= left.merge
        elif left.merge and self._drops and self._merged.n_updates == 0:  # all of a round's failed
            self._schedule.version -= 1
        elif left.merge:
            self._merge()
        self._finished = self._finished or is_over
        self._spare.clear()
        self._is_torn = False
        if self._is_made:
            self._judge()

    def _settle(self, *, is_patient: bool = False, completes: bool = False) -> None:
        """Consumes and records what is owed, in order; if it is patient, only as far as that needs no waiting.

        If it completes a version, what is owed last is the last that goes into it.
        """
        owed = self._owed
        if self._summing is not None and is_patient:
            return
        total_P = None if self._summing is None else self._sum_up()
        while owed:
            task, outcome = owed[0]
            if outcome is not Outcome.APPLIED:
                if outcome is Outcome.LOST and task.wanted:  # its client keeps what it came to
                    self._supply.bring(task.task, self._while_waiting)
                    if self._supply.has_failed(task.task):
                        self._supply.discard(task.task)
                    else:
                        self._supply.take(task.task)
                self._recorder.append("tasks", ended_row(task, outcome, len(self._rule.scalar_names)))
            elif is_patient and not self._supply.is_here(task.task):
                return
            else:
                begun = self._supply.bring(task.task, self._while_waiting, self._streams)
                self._take(task, begun, is_last=completes and len(owed) == 1)
            owed.popleft()
        if completes and total_P is not None:
            assert self._summing is not None
            sum_P = self._summing.real(total_P, self._merged.weight_sum, self.pulse.version + 1)
            self._rule.put_sum(self._state, sum_P)

    def _sum_up(self) -> Int64 | None:
        """The sum of the updates that are owed, which the workers make; all of them are at hand then."""
        met_version = self.pulse.version
        return self._supply.add_up(
            {
                task.task: self._rule.planned_weight(task.n_samples, met_version - task.base_version)
                for task, outcome in self._owed
                if outcome is Outcome.APPLIED
            },
            self._while_waiting,
        )

    def _take(self, task: Task, begun: Begun | None, *, is_last: bool) -> None:
        if self._supply.has_failed(task.task):
            self._supply.discard(task.task)
            self._n_reached -= 1
            self._recorder.append("tasks", ended_row(task, Outcome.FAILED, len(self._rule.scalar_names)))
            if self._spare:
                self._n_reached += 1
                n_before = max((i + 1 for i, owed in enumerate(self._owed) if owed[1] is Outcome.APPLIED), default=0)
                self._owed.insert(n_before, (self._spare.popleft(), Outcome.APPLIED))
            return
        base_P = self._versions.get(task.base_version) if self._needs_base else None  # may go with the update
        arrival_s = task.arrival_s if task.arrival_s == task.arrival_s else self.pulse.virtual_s
        arrival = Arrival(self.pulse.version - task.base_version, task, self.pulse.version, arrival_s, base_P)
        if begun is None:
            update, item = self._supply.take(task.task)
            self._apply(update, arrival, (item.submitted_s, item.arrived_s), is_last=is_last)
            return
        self._is_torn = True  # a half-applied update cannot be kept
        times_s = (begun.item.submitted_s, self._clock())
        self._apply(Streaming(self._supply, begun).update(), arrival, times_s, is_last=is_last)
        self._supply.take(task.task)  # once it is here whole
        self._is_torn = False

    def _apply(self, update: Update, arrival: Arrival, times_s: tuple[float, float], *, is_last: bool) -> None:
        staleness, task, met_version, arrival_s, base_P = arrival
        if self._unpacking is not None:
            update = update._replace(vector_P=self._unpacking.vector(update.vector_P, base_P))
        if self._summing is not None:
            self._summing.check(task, update.report)
            self._state, diagnostics = self._rule.count(self._state, update.report, arrival)
        elif is_last:
            self._state, diagnostics, self._made_P = self._rule.complete(self._state, update, arrival)
        else:
            self._state, diagnostics = self._rule.accumulate(self._state, update, arrival)
        self._merged.add(staleness, diagnostics.weight)
        self.pulse.n_updates += 1
        if self._schedule.learns:
            told = (staleness, arrival_s, diagnostics.weight, diagnostics.next_steps)
            self._schedule.learned(Feedback(task, update.report, *told))
        self._recorder.append("tasks", applied_row(task, arrival_s, met_version, update.report, times_s, diagnostics))

    def _merge(self) -> None:
        if self._made_P is None:  # nothing was owed any more
            self._state = self._rule.commit(self._state)
            self._made_P = self._rule.publish(self._state)
        vector_P, self._made_P = self._made_P, None
        version = self.pulse.version + 1
        self._put_out(version, vector_P)
        self._finished = self._stop.versions is not None and version >= self._stop.versions

    def _judge(self) -> None:
        """What follows a version: its evaluation, and those that may be read at it. Waits where nothing is half done:
        a signal, or a checkpoint that is due, does not have to wait for evaluations."""
        version = self.pulse.version
        self._evaluations.published(version, self.pulse.virtual_s, self._rest)
        if not self._finished:
            self._finished = self._evaluations.target_reached(version, self._rest)
        self._is_made = False

    def _put_out(self, version: int, vector_P: Float32) -> None:
        """Makes a vector the current version: known to the store, and recorded; `_judge` comes next."""
        vector_P.flags.writeable = False
        self._versions.add(version, vector_P)
        self.pulse.version = version
        if version > 0:
            self._supply.release_version(version - 1)
            self._recorder.append("versions", self._merged.row(version, self.pulse.virtual_s, self._clock()))
        self._merged = Merged()
        self._is_made = True

    # ------------------------------------------------------------------------------ between events

    def _attend(self) -> None:
        """What has to be looked at now and then: the record's buffers, the watchers."""
        self.pulse.wall_s = now_s = self._clock()
        self.pulse.metrics = self._evaluations.latest
        self._recorder.tick(now_s)
        for watcher in self._watchers:
            watcher(self.pulse)

    def _rest(self, at_end: bool = False) -> None:
        """Where nothing is half done: whether an end is asked for, or a checkpoint is due.

        `at_end`: while the last evaluations are waited for. Who has not to wait for any more is not stopped any more.
        """
        if self._clock() - self.pulse.wall_s >= _ATTEND_EVERY_S:
            self._attend()
        if self._supply.lost is not None:
            raise self._supply.lost
        if self._finished and not at_end:
            return
        if self._stop_requested():
            raise Interrupted(in_haste=True)
        if self._stop.wall_s is not None and self.pulse.wall_s >= self._stop.wall_s and not at_end:
            raise Interrupted(in_haste=False)
        if self._keeper is not None and self._keeper.is_due(self.pulse):
            self._keep()

    def _while_waiting(self) -> None:
        self._evaluations.collect()
        self._rest()

    def _stalled_text(self) -> str:
        return (
            f"stalled at {self._schedule.now_s:.6g} s, version {self._schedule.version}: nothing is in flight and "
            "no client ever becomes available again"
        )
