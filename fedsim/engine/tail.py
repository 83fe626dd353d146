"""The end of a killed run on the wall clock: what it recorded past its checkpoint is trained again before it goes on.

On the wall clock nothing can be decided again: what arrived when is in the record alone. So the versions that were
recorded whole are made again, each of the same updates in the same order, and the schedule goes on live from the last
of them. Tasks that were in flight then are forgotten, and their clients idle: nothing of them is in the record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.engine.replay import History, ReplaySchedule
from fedsim.errors import RecordError
from fedsim.schedule.policies import Step
from fedsim.schedule.schedule import Schedule, Work
from fedsim.types import Event, EventKind, Feedback, Outcome, Task


@dataclass(frozen=True)
class Recorded:
    """The rows and versions of a checkpoint, and a history that goes past it, up to its last whole version."""

    history: History
    n_rows: int
    n_versions: int


def recorded_past(run: Any, n_rows: int, n_versions: int) -> Recorded | None:
    """What an open record has past a checkpoint of so many rows and versions; None if that is no whole version.

    Raises:
        RecordError: it has a version of no updates, which no run makes.
    """
    history = History.of(run)
    applied = history.outcome == Outcome.APPLIED
    n_whole = _n_whole(history, applied)
    if n_whole <= n_versions:
        return None
    if (history.version_updates[:n_whole] < 1).any():
        raise RecordError(f"{run.path}: table versions has a version of no updates, which no run makes")
    end = int(np.flatnonzero(applied & (history.applied_version <= n_whole))[-1]) + 1
    while end < applied.size and not applied[end]:  # what a round that ended with the version aborted
        end += 1
    return Recorded(_cut(history, end, n_whole), n_rows, n_versions)


def _n_whole(history: History, applied: Any) -> int:
    """How many versions there are whose updates are all recorded, from the first on; a kill can tear tables apart."""
    n = history.version.size
    versions = history.applied_version[applied]
    counts = np.bincount(versions[(versions > 0) & (versions <= n)], minlength=n + 1)[1:]
    whole = (counts == history.version_updates) & (history.version == np.arange(1, n + 1))
    return n if whole.all() else int(np.argmin(whole))


def _cut(history: History, n_rows: int, n_versions: int) -> History:
    tasks = ("task", "client", "outcome", "base_version", "applied_version", "n_samples", "n_steps")
    versions = ("version", "version_s", "version_updates")
    return replace(
        history,
        **{name: getattr(history, name)[:n_rows] for name in tasks},
        **{name: getattr(history, name)[:n_versions] for name in versions},
        times_s=[times[:n_rows] for times in history.times_s],
    )


class Tail(ReplaySchedule):
    """The schedule of what was recorded past a checkpoint, or from the beginning on where there is none.

    At its end `live` goes on, who learns meanwhile.
    """

    def __init__(self, recorded: Recorded, work: Work, n_clients: int, live: Schedule) -> None:
        super().__init__(recorded.history, work, n_clients)
        self._live = live
        self._n_steps = (recorded.history.client, recorded.history.n_steps)
        self.learns = live.learns
        self.version = recorded.n_versions
        self._next = recorded.n_rows + recorded.n_versions  # an event each, in an order that may differ inside a round
        gone = {event.number for event in self._events[: self._next] if event.kind is not EventKind.TIMER}
        for number in gone:
            del self._row_of[number]
        first = [task for task in sorted(self._tasks) if task.base_version <= self.version and task.task not in gone]
        self._by_base = {base: tasks for base, tasks in self._by_base.items() if base > self.version}
        self._by_base[self.version] = first
        self.now_s = max((event.time_s for event in self._events[: self._next] if event.time_s >= 0.0), default=0.0)

    def step(self, event: Event, has_failed: bool = False) -> Step:
        """As in a replay; the time of what was aborted, which is no number, leaves the clock alone."""
        before_s = self.now_s
        step = super().step(event, has_failed)
        self.now_s = max(before_s, self.now_s) if self.now_s == self.now_s else before_s
        return step

    def unconsumed(self) -> list[Task]:
        """The tasks that were in flight at the checkpoint, or started from its version, and can start now."""
        return self.dispatch(self.now_s)

    def learned(self, feedback: Feedback) -> None:
        self._live.learned(feedback)

    def go_live(self) -> Schedule:
        """The live schedule, at the last version of the tail with nobody at work."""
        given: dict[int, int] = {}
        for client, n_steps in zip(*(column.tolist() for column in self._n_steps), strict=True):
            given[client] = given.get(client, 0) + n_steps
        last = max(task.task for task in self._tasks)
        self._live.begin_after(self.version, last + 1, given, self.now_s)
        return self._live
