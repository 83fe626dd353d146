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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedsim.aggregation import Arrival, Rule
from fedsim.config import RunConfig
from fedsim.engine.evaluations import Evaluations, Recorder
from fedsim.engine.supply import Item, Supply
from fedsim.engine.versions import VersionStore
from fedsim.errors import StalledError
from fedsim.schedule.policies import Step
from fedsim.types import Event, EventKind, Feedback, Float32, Outcome, Task, Update

_NAN = math.nan


class EventSource(Protocol):
    """A schedule, or the recorded one of a replay."""

    now_s: float
    version: int
    ends: bool  # without events left the run is over, not stalled
    learns: bool  # wants to be told of consumed updates

    @property
    def consumes_on_arrival(self) -> bool: ...

    @property
    def n_in_flight(self) -> int: ...

    def peek(self) -> Event | None: ...

    def step(self, event: Event) -> Step: ...

    def instant_over(self) -> bool: ...

    def dispatch(self, now_s: float) -> list[Task]: ...

    def is_in_flight(self, number: int) -> bool: ...

    def learned(self, feedback: Feedback) -> None: ...


class Interrupted(Exception):
    """The wall-clock limit or a signal: the run ends as `stopped`."""


@dataclass
class Pulse:
    """What is known of a run while it goes on; handed to whoever watches it."""

    version: int = 0
    n_updates: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Watcher(Protocol):
    """Called between events; decides itself how often it does something."""

    def __call__(self, pulse: Pulse) -> None: ...


@dataclass
class _Merged:
    """What went into the version being made."""

    n_updates: int = 0
    weight_sum: float = 0.0
    staleness_sum: int = 0
    staleness_max: int = 0

    def row(self, version: int, virtual_s: float, wall_s: float) -> tuple[float, ...]:
        n = self.n_updates
        mean = self.staleness_sum / n if n else _NAN
        return (version, virtual_s, wall_s, n, self.weight_sum, mean, self.staleness_max if n else -1)


class Server:
    """Rank zero's loop. `run` returns the status that the run ended with: `done` or `stopped`.

    Between two events its state is the rule's, the schedule's, and what is owed: tasks that have ended in the schedule
    and are not recorded yet, with their outcomes; those to be applied are still in the supply.
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
    ) -> None:
        self._stop = config.stop
        self._on_wall = config.clock == "wall"
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
        self._merged = _Merged()
        self._owed: deque[tuple[Task, Outcome]] = deque()
        self._n_reached = 0  # updates consumed or owed
        self._finished = False
        self.pulse = Pulse()

    def run(self, replaying: bool = False) -> str:
        """Runs to the end, the last evaluation included.

        Raises:
            StalledError: nothing can happen any more.
            ClientError, WorkerError: something went wrong at a worker.
        """
        self._put_out(self._rule.publish(self._state))
        self._finished = self._evaluations.target_reached(0)
        status = "done"
        try:
            if self._on_wall and not replaying:
                self._run_on_wall()
            else:
                self._run_virtual()
        except Interrupted:
            status = "stopped"
        self._evaluations.finish(self.pulse.version, self.pulse.virtual_s)
        self._attend()
        return status

    def weights(self) -> Float32:
        """The current version, flat (P,) float32."""
        return self._versions.get(self.pulse.version)

    def close(self) -> None:
        """Gives back what the run kept outside memory."""
        self._versions.close()

    def _run_virtual(self) -> None:
        schedule = self._schedule
        self._supply.submit(schedule.dispatch(schedule.now_s))
        while not self._finished:
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
            if not self._finished and schedule.instant_over():
                self._supply.submit(schedule.dispatch(schedule.now_s))
            self._supply.service()
            self._attend()
            self._check_interrupted()
        self._settle()

    def _run_on_wall(self) -> None:
        schedule, supply = self._schedule, self._supply
        supply.submit(schedule.dispatch(self._clock()))
        while not self._finished:
            supply.pump()
            timer = schedule.peek()
            if timer is not None and timer.time_s <= self._clock():
                self._handle(timer)
            elif not supply.listen():
                self._while_waiting()
            self._handle_arrivals(supply.arrivals())
            if self._finished:
                return
            supply.submit(schedule.dispatch(self._clock()))
            if schedule.n_in_flight == 0 and schedule.peek() is None:
                raise StalledError(self._stalled_text())
            self._attend()
            self._check_interrupted()

    def _handle_arrivals(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._schedule.is_in_flight(number) and not self._finished:
                self._handle(Event(self._clock(), EventKind.ARRIVAL, number))

    # ------------------------------------------------------------------------------ one event

    def _handle(self, event: Event) -> None:
        """Consumes what the event brings, records what ended, makes a version if it is time; checks the exact stops."""
        step = self._schedule.step(event)
        self.pulse.virtual_s = self._schedule.now_s
        room = None if self._stop.updates is None else self._stop.updates - self._n_reached
        consumed = step.consumed[:room]
        self._n_reached += len(consumed)
        self._owed.extend((task, Outcome.APPLIED) for task in consumed)
        for task, outcome in step.ended:
            if task.wanted and outcome is Outcome.ABORTED:
                self._supply.cancel(task.task)
            self._owed.append((task, outcome))
        is_last = room is not None and len(step.consumed) >= room
        is_short = room is not None and len(step.consumed) > room  # a tier's round, cut short by the stop
        self._settle(is_patient=not (step.merge or is_last or self._on_wall or self._schedule.learns))
        if is_short:
            self._schedule.version -= step.merge
        elif step.merge:
            self._merge()
        self._finished = self._finished or is_last

    def _settle(self, *, is_patient: bool = False) -> None:
        """Consumes and records what is owed, in order; if it is patient, only as far as that needs no waiting."""
        owed = self._owed
        while owed:
            task, outcome = owed[0]
            if outcome is not Outcome.APPLIED:
                self._recorder.append("tasks", _ended_row(task, outcome, len(self._rule.scalar_names)))
            elif is_patient and not self._supply.is_here(task.task):
                return
            else:
                self._supply.bring(task.task, self._while_waiting)
                self._consume(task)
            owed.popleft()

    def _consume(self, task: Task) -> None:
        base_P = self._versions.get(task.base_version) if self._rule.needs_base else None  # may go with the update
        update, item = self._supply.take(task.task)
        met_version = self.pulse.version
        staleness = met_version - task.base_version
        arrival_s = task.arrival_s if task.arrival_s == task.arrival_s else self.pulse.virtual_s
        arrival = Arrival(staleness, task, met_version, arrival_s, base_P)
        self._state, diagnostics = self._rule.accumulate(self._state, update, arrival)
        merged = self._merged
        merged.n_updates += 1
        merged.weight_sum += diagnostics.weight
        merged.staleness_sum += staleness
        merged.staleness_max = max(merged.staleness_max, staleness)
        self.pulse.n_updates += 1
        if self._schedule.learns:
            told = (staleness, arrival_s, diagnostics.weight, diagnostics.next_steps)
            self._schedule.learned(Feedback(task, update.report, *told))
        self._recorder.append("tasks", _applied_row(task, arrival_s, met_version, update, item, diagnostics))

    def _merge(self) -> None:
        self._state = self._rule.commit(self._state)
        self._put_out(self._rule.publish(self._state))
        version = self._schedule.version
        is_last = self._stop.versions is not None and version >= self._stop.versions
        self._finished = is_last or self._evaluations.target_reached(version)

    def _put_out(self, vector_P: Float32) -> None:
        """Makes a vector the current version: known to the store, recorded, evaluated if it is time."""
        version = self._schedule.version
        vector_P.flags.writeable = False
        self._versions.add(version, vector_P)
        self.pulse.version = version
        if version > 0:
            self._supply.release_version(version - 1)
            self._recorder.append("versions", self._merged.row(version, self.pulse.virtual_s, self._clock()))
        self._merged = _Merged()
        self._evaluations.published(version, self.pulse.virtual_s)

    # ------------------------------------------------------------------------------ between events

    def _attend(self) -> None:
        """What has to be looked at now and then: the record's buffers, the watchers."""
        self.pulse.wall_s = now_s = self._clock()
        self.pulse.metrics = self._evaluations.latest
        self._recorder.tick(now_s)
        for watcher in self._watchers:
            watcher(self.pulse)

    def _while_waiting(self) -> None:
        self._evaluations.collect()
        self._attend()
        self._check_interrupted()

    def _check_interrupted(self) -> None:
        if self._finished:
            return
        if self._stop_requested() or (self._stop.wall_s is not None and self.pulse.wall_s >= self._stop.wall_s):
            raise Interrupted

    def _stalled_text(self) -> str:
        return (
            f"stalled at {self._schedule.now_s:.6g} s, version {self._schedule.version}: nothing is in flight and "
            "no client ever becomes available again"
        )


def _applied_row(
    task: Task, arrival_s: float, met_version: int, update: Update, item: Item, diagnostics: Any
) -> tuple[float, ...]:
    """A row of the `tasks` table for a consumed update."""
    report = update.report
    return (
        task.task,
        task.client,
        report.worker,
        Outcome.APPLIED,
        task.base_version,
        met_version + 1,
        met_version - task.base_version,
        task.dispatch_s,
        task.download_s,
        task.compute_s,
        task.upload_s,
        arrival_s,
        item.submitted_s,
        item.arrived_s,
        report.train_s,
        report.n_samples,
        report.n_steps,
        report.loss_before,
        report.loss_after,
        diagnostics.weight,
        report.update_norm,
        *diagnostics.scalars,
    )


def _ended_row(task: Task, outcome: Outcome, n_scalars: int) -> tuple[float, ...]:
    """A row of the `tasks` table for a task that ended without an update being consumed."""
    return (
        task.task,
        task.client,
        -1,
        outcome,
        task.base_version,
        -1,
        -1,
        task.dispatch_s,
        task.download_s,
        task.compute_s,
        task.upload_s,
        task.arrival_s,
        *(_NAN, _NAN, _NAN),
        task.n_samples,
        task.n_steps,
        *(_NAN,) * (4 + n_scalars),
    )
