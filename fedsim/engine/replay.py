"""A recorded history as a schedule: the same clients, base versions, steps and order of application, trained again.

Whatever made the history (both clocks, any policy), its `tasks` and `versions` tables say what was consumed when and
when a version was made. Each task starts as soon as its base version exists again; nothing else is decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import RecordError
from fedsim.schedule.policies import Step
from fedsim.schedule.schedule import Work
from fedsim.types import Event, EventKind, Feedback, Float64, Int64, Outcome, Task


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

        def seconds(table: str, name: str) -> Float64:
            return np.asarray(run.column(table, name), dtype=np.float64)

        names = ("dispatch", "download", "compute", "upload", "arrival")
        return cls(
            task=integers("tasks", "task"),
            client=integers("tasks", "client"),
            outcome=integers("tasks", "outcome"),
            base_version=integers("tasks", "base_version"),
            applied_version=integers("tasks", "applied_version"),
            n_samples=integers("tasks", "n_samples"),
            n_steps=integers("tasks", "n_steps"),
            times_s=[seconds("tasks", f"virtual_{name}_s") for name in names],
            version=integers("versions", "version"),
            version_s=seconds("versions", "virtual_s"),
            version_updates=integers("versions", "n_updates"),
        )


class ReplaySchedule:
    """The schedule of a history. `n_versions` is the last version that it makes.

    Raises:
        RecordError: the tables contradict each other.
    """

    consumes_on_arrival = True
    ends = True
    learns = False

    def __init__(self, history: History, work: Work, n_clients: int) -> None:
        _check(history, n_clients)
        self._tasks = _tasks(history, work)
        self._outcomes = [Outcome(value) for value in history.outcome.tolist()]
        self._events = _events(history)
        _check_clients(self._tasks, self._events)
        self._row_of = {task.task: row for row, task in enumerate(self._tasks)}
        self._by_base: dict[int, list[Task]] = {}
        for task in sorted(self._tasks):
            self._by_base.setdefault(task.base_version, []).append(task)
        self._next = 0
        self._busy: set[int] = set()  # clients with a task in flight
        self._asked: dict[int, None] = {}  # clients for whom something has changed, in order
        self._waiting: dict[int, deque[Task]] = {}  # by client: tasks of a base that exists, after another of its tasks
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

    def step(self, event: Event, has_failed: bool = False) -> Step:
        """What happened: a version was made, an update consumed, or a task ended otherwise."""
        self._next += 1
        self.now_s = event.time_s
        if event.kind is EventKind.TIMER:
            self.version += 1
            return Step(merge=True)
        row = self._row_of.pop(event.number)
        task, outcome = self._tasks[row], self._outcomes[row]
        self._busy.discard(task.client)
        self._asked[task.client] = None
        return Step((task,)) if outcome is Outcome.APPLIED else Step(ended=((task, outcome),))

    def instant_over(self) -> bool:
        """Always: what starts is what the current version was the base of."""
        return True

    def learned(self, feedback: Feedback) -> None:
        """Nothing: all decisions are in the record."""

    def dispatch(self, now_s: float) -> list[Task]:
        """The tasks that started from the current version, once; of one client only when its former one has ended."""
        for task in self._by_base.pop(self.version, []):
            self._waiting.setdefault(task.client, deque()).append(task)
            self._asked[task.client] = None
        asked, self._asked = self._asked, {}
        started = []
        for client in asked:
            waiting = self._waiting.get(client)
            if waiting and client not in self._busy:
                self._busy.add(client)
                started.append(waiting.popleft())
        return started


def _tasks(history: History, work: Work) -> list[Task]:
    """A task a row. `due_s` is the row's number, which is the order of consumption on either clock."""
    first_steps = _first_steps(history) if work.counts_steps else np.zeros_like(history.task)
    columns = (history.task, history.client, history.base_version, history.n_samples, history.n_steps, first_steps)
    rows = zip(*(column.tolist() for column in (*columns, history.outcome, *history.times_s)), strict=True)
    tasks = []
    for row, (task, client, base, n_samples, n_steps, first_step, outcome, *times) in enumerate(rows):
        dispatch_s, download_s, compute_s, upload_s, arrival_s = times
        tasks.append(
            Task(
                task=task,
                client=client,
                base_version=base,
                n_samples=n_samples,
                n_steps=n_steps,
                first_step=first_step,
                learning_rate=work.learning_rate(base),
                dispatch_s=dispatch_s,
                download_s=download_s,
                compute_s=compute_s,
                upload_s=upload_s,
                arrival_s=arrival_s,
                due_s=float(row),
                lost=outcome == Outcome.LOST,
                wanted=outcome == Outcome.APPLIED or (outcome == Outcome.LOST and work.keeps_state),
            )
        )
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
    """The history's events: a row each, and a version as soon as all that went into it is consumed.

    But what got lost before a version was made comes before it: that ended a task, and the client may have started
    another one from the former version.
    """
    events: list[Event] = []
    waiting = dict(zip(history.version.tolist(), history.version_updates.tolist(), strict=True))
    made_s = dict(zip(history.version.tolist(), history.version_s.tolist(), strict=True))
    arrival = history.times_s[-1].tolist()
    made: list[Event] = []
    rows = zip(history.task.tolist(), history.outcome.tolist(), history.applied_version.tolist(), strict=True)
    for row, (task, outcome, version) in enumerate(rows):
        if made and not (outcome == Outcome.LOST and arrival[row] <= made[0].time_s):
            events.append(made.pop())
        if outcome != Outcome.APPLIED:
            events.append(Event(arrival[row], EventKind.LOSS, task))
            continue
        events.append(Event(arrival[row], EventKind.ARRIVAL, task))
        if version in waiting:  # the last buffer may never have become a version
            waiting[version] -= 1
            if waiting[version] == 0:
                made.append(Event(made_s[version], EventKind.TIMER, version))
    return events + made


def _check(history: History, n_clients: int) -> None:
    """Refuses tables that no run could have written; what passes can be replayed to its end."""
    columns = (history.client, history.outcome, history.base_version, history.applied_version, history.n_samples)
    sizes = {column.size for column in (*columns, history.task, history.n_steps, *history.times_s)}
    _demand(len(sizes) == 1, "the columns of table tasks differ in length")
    sizes = {column.size for column in (history.version, history.version_s, history.version_updates)}
    _demand(len(sizes) == 1, "the columns of table versions differ in length")
    counted = np.array_equal(history.version, np.arange(1, history.version.size + 1))
    _demand(counted, "table versions does not count 1, 2, 3, ...")
    _demand(np.unique(history.task).size == history.task.size, "table tasks names a task twice")
    for name in ("task", "base_version", "n_samples", "n_steps"):
        _demand(bool((getattr(history, name) >= 0).all()), f"table tasks has a negative {name}")
    _demand(bool(np.isin(history.outcome, list(Outcome)).all()), "table tasks has an unknown outcome")
    is_client = (history.client >= 0) & (history.client < n_clients)
    _demand(bool(is_client.all()), f"a client is not one of the {n_clients}")
    _check_applied(history)


def _check_applied(history: History) -> None:
    """Whether updates were applied in the order of the versions, each after its base, as many as the versions say."""
    rows = history.outcome == Outcome.APPLIED
    applied, n_versions = history.applied_version[rows], history.version.size
    merged = "tables tasks and versions do not agree on what was merged"
    _demand(bool(((applied >= 1) & (applied <= n_versions + 1)).all()), merged)
    counts = np.bincount(applied, minlength=n_versions + 2)[1 : n_versions + 1]
    _demand(np.array_equal(counts, history.version_updates) and bool((counts > 0).all()), merged)
    _demand(bool((np.diff(applied) >= 0).all()), "updates were not applied in the order of the versions")
    _demand(bool((history.base_version[rows] < applied).all()), "an update was applied before its base version existed")


def _check_clients(tasks: Sequence[Task], events: Sequence[Event]) -> None:
    """Whether each client had one task in flight at most: its next one started after its former one had ended."""
    ended: dict[int, int] = {}  # client -> versions made when its last task ended
    last: dict[int, int] = {}  # client -> number of its last task
    by_number = {task.task: task for task in tasks}
    n_versions = 0
    for event in events:
        if event.kind is EventKind.TIMER:
            n_versions += 1
            continue
        task = by_number[event.number]
        follows = last.get(task.client, -1) < task.task and ended.get(task.client, 0) <= task.base_version
        _demand(follows, f"client {task.client} had two tasks in flight at once")
        last[task.client], ended[task.client] = task.task, n_versions


def _demand(holds: bool, problem: str) -> None:
    if not holds:
        raise RecordError(f"this record cannot be replayed: {problem}")
