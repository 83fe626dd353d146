"""A recorded history as a schedule: the same clients, base versions, steps and order of application, trained again.

Whatever made the history (both clocks, any policy), its `tasks` and `versions` tables say what was consumed when and when a
version was made. Each task starts as soon as its base version exists again; nothing else is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import RecordError
from fedsim.schedule.policies import Step
from fedsim.schedule.schedule import Work
from fedsim.types import Event, EventKind, Float64, Int64, Outcome, Task


@dataclass(frozen=True)
class History:
    """The columns of a record that a replay needs: those of `tasks` in event order, those of `versions` by version."""

    task: Int64
    client: Int64
    outcome: Int64
    base_version: Int64
    applied_version: Int64
    n_samples: Int64
    n_steps: Int64
    times_s: Sequence[Float64]  # dispatch, download, compute, upload, arrival
    version: Int64
    version_s: Float64
    version_updates: Int64

    @classmethod
    def of(cls, run: Any) -> History:
        """The history of an open record (`fedsim.record.reader.Run`)."""

        def integers(table: str, name: str) -> Int64:
            return np.asarray(run.column(table, name), dtype=np.int64)

        names = ("dispatch", "download", "compute", "upload", "arrival")
        times = [np.asarray(run.column("tasks", f"virtual_{name}_s"), dtype=np.float64) for name in names]
        columns = ("task", "client", "outcome", "base_version", "applied_version", "n_samples", "n_steps")
        return cls(
            *(integers("tasks", name) for name in columns),
            times_s=times,
            version=integers("versions", "version"),
            version_s=np.asarray(run.column("versions", "virtual_s"), dtype=np.float64),
            version_updates=integers("versions", "n_updates"),
        )


class ReplaySchedule:
    """The schedule of a history. `n_versions` is the last version that it makes.

    Raises:
        RecordError: the tables contradict each other.
    """

    consumes_on_arrival = True
    ends = True

    def __init__(self, history: History, work: Work, n_clients: int) -> None:
        _check(history, n_clients)
        self._tasks = _tasks(history, work)
        self._outcomes = [Outcome(value) for value in history.outcome.tolist()]
        self._events = _events(history)
        self._row_of = {task.task: row for row, task in enumerate(self._tasks)}
        self._by_base: dict[int, list[Task]] = {}
        for task in sorted(self._tasks):
            self._by_base.setdefault(task.base_version, []).append(task)
        self._next = 0
        self.n_versions = int(history.version.size)
        self.now_s = 0.0
        self.version = 0

    @property
    def n_in_flight(self) -> int:
        return len(self._events) - self._next

    def is_in_flight(self, number: int) -> bool:
        """Whether a task of the history has not ended yet."""
        return number in self._row_of

    def peek(self) -> Event | None:
        """The next thing that happened, or None at the end of the history."""
        return self._events[self._next] if self._next < len(self._events) else None

    def step(self, event: Event) -> Step:
        """What happened: a version was made, an update consumed, or a task ended otherwise."""
        self._next += 1
        self.now_s = event.time_s
        if event.kind is EventKind.TIMER:
            self.version += 1
            return Step(merge=True)
        row = self._row_of.pop(event.number)
        task, outcome = self._tasks[row], self._outcomes[row]
        return Step((task,)) if outcome is Outcome.APPLIED else Step(ended=((task, outcome),))

    def instant_over(self) -> bool:
        """Always: what starts is what the current version was the base of."""
        return True

    def dispatch(self, now_s: float) -> list[Task]:
        """The tasks that started from the current version, once."""
        return self._by_base.pop(self.version, [])


def _tasks(history: History, work: Work) -> list[Task]:
    """A task a row. `due_s` is the row's number, which is the order of consumption on either clock."""
    first_steps = _first_steps(history) if work.counts_steps else np.zeros_like(history.task)
    columns = (history.task, history.client, history.base_version, history.n_samples, history.n_steps, first_steps)
    dispatch, download, compute, upload, arrival = (times.tolist() for times in history.times_s)
    tasks = []
    for row, numbers in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        outcome = Outcome(int(history.outcome[row]))
        times = (dispatch[row], download[row], compute[row], upload[row], arrival[row], float(row))
        rate = work.learning_rate(numbers[2])
        tasks.append(Task(*numbers, rate, *times, outcome is Outcome.LOST, outcome is Outcome.APPLIED))
    return tasks


def _first_steps(history: History) -> Int64:
    """Local steps given to the same client in earlier tasks; a client's tasks follow each other in their numbers."""
    given: dict[int, int] = {}
    first = np.zeros_like(history.task)
    for row in np.argsort(history.task).tolist():
        client = int(history.client[row])
        first[row] = given.get(client, 0)
        given[client] = int(first[row]) + int(history.n_steps[row])
    return first


def _events(history: History) -> list[Event]:
    """The history's events: a row each, and a version as soon as all that went into it is consumed."""
    events: list[Event] = []
    waiting = dict(zip(history.version.tolist(), history.version_updates.tolist(), strict=True))
    made_s = dict(zip(history.version.tolist(), history.version_s.tolist(), strict=True))
    arrival = history.times_s[-1].tolist()
    rows = zip(history.task.tolist(), history.outcome.tolist(), history.applied_version.tolist(), strict=True)
    for row, (task, outcome, version) in enumerate(rows):
        if outcome != Outcome.APPLIED:
            events.append(Event(arrival[row], EventKind.LOSS, task))
            continue
        events.append(Event(arrival[row], EventKind.ARRIVAL, task))
        if version in waiting:  # the last buffer may never have become a version
            waiting[version] -= 1
            if waiting[version] == 0:
                events.append(Event(made_s[version], EventKind.TIMER, version))
    return events


def _check(history: History, n_clients: int) -> None:
    """Refuses tables that no run could have written."""
    versions = np.arange(1, history.version.size + 1)
    if not np.array_equal(history.version, versions):
        raise RecordError("this record cannot be replayed: table versions does not count 1, 2, 3, ...")
    if np.unique(history.task).size != history.task.size:
        raise RecordError("this record cannot be replayed: table tasks names a task twice")
    applied = history.outcome == Outcome.APPLIED
    counts = np.bincount(history.applied_version[applied & (history.applied_version >= 0)], minlength=1)
    merged = np.zeros(max(counts.size, history.version.size + 1), dtype=np.int64)
    merged[: counts.size] = counts
    if not np.array_equal(merged[1 : history.version.size + 1], history.version_updates):
        raise RecordError("this record cannot be replayed: tables tasks and versions do not agree on what was merged")
    if applied.any() and int((history.base_version[applied] - history.applied_version[applied]).max()) >= 0:
        raise RecordError("this record cannot be replayed: an update was applied before its base version existed")
    if history.client.size and not 0 <= int(history.client.min()) <= int(history.client.max()) < n_clients:
        raise RecordError(f"this record cannot be replayed: a client is not one of the {n_clients}")
