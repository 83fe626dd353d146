"""When a version is made and who may start: one small state machine a policy.

A policy is told of arrivals, losses and timers, and answers with a `Step`: which updates the server consumes now, which
tasks ended otherwise, and whether a version is made of what was consumed. Between instants it is asked for
`openings`: how many tasks to dispatch, from which domain. It never sees an update, a clock or a random number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fedsim.types import Outcome, Task


class Step(NamedTuple):
    """What an event leads to: updates consumed, in this order; tasks that ended otherwise; a version or not."""

    consumed: tuple[Task, ...] = ()
    ended: tuple[tuple[Task, Outcome], ...] = ()
    merge: bool = False


class Opening(NamedTuple):
    """Room for `n` tasks from one domain."""

    domain: int
    n: int


class Timer(NamedTuple):
    """A deadline or window end to come: `number` comes back in the event."""

    time_s: float
    number: int


class Policy(Protocol):
    """The state machine of one policy; `n_in_flight` counts tasks dispatched and not ended.

    `consumes_on_arrival` says that an arrival's step consumes just that update. What a policy keeps are plain values,
    as `fedsim.snapshot.of` takes them: a checkpoint holds them.
    """

    consumes_on_arrival: bool

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        """What may be dispatched now."""

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        """The tasks just dispatched, with `due_s` and `wanted` settled, and the timer that they set."""

    def arrived(self, task: Task) -> Step:
        """An update reaches the server."""

    def lost(self, task: Task) -> Step:
        """An update is lost."""

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        """A timer went off; it may set the next one."""


class PlainPolicy(Policy, Protocol):
    """A policy without timers that may be left behind, and told what went on meanwhile."""

    def went_on(self, n_versions: int) -> None:
        """So many versions were made elsewhere, and nothing has arrived since the last."""


def none_ended(task: Task) -> Step:
    return Step(ended=((task, Outcome.LOST),))


def _untimed(domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
    return tasks, None


class BufferedPolicy:
    """Every `buffer` arrivals make a version; slots restart at once. Asynchronous when `buffer` is 1."""

    consumes_on_arrival = True

    def __init__(self, concurrency: int, buffer: int) -> None:
        self._concurrency = concurrency
        self._buffer = buffer
        self._n_buffered = 0

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return (Opening(0, self._concurrency - n_in_flight),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        return _untimed(domain, tasks, now_s)

    def arrived(self, task: Task) -> Step:
        self._n_buffered += 1
        merge = self._n_buffered == self._buffer
        if merge:
            self._n_buffered = 0
        return Step((task,), (), merge)

    def lost(self, task: Task) -> Step:
        return none_ended(task)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        raise AssertionError("no timers in this policy")

    def went_on(self, n_versions: int) -> None:
        """See `PlainPolicy.went_on`."""
        self._n_buffered = 0


class KAsyncPolicy:
    """Every `k` arrivals make a version; the finishers' slots wait for it, a lost task's slot does not."""

    consumes_on_arrival = True

    def __init__(self, concurrency: int, k: int) -> None:
        self._concurrency = concurrency
        self._k = k
        self._n_waiting = 0

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return (Opening(0, self._concurrency - n_in_flight - self._n_waiting),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        return _untimed(domain, tasks, now_s)

    def arrived(self, task: Task) -> Step:
        self._n_waiting += 1
        merge = self._n_waiting == self._k
        if merge:
            self._n_waiting = 0
        return Step((task,), (), merge)

    def lost(self, task: Task) -> Step:
        return none_ended(task)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        raise AssertionError("no timers in this policy")

    def went_on(self, n_versions: int) -> None:
        """See `PlainPolicy.went_on`."""
        self._n_waiting = 0


class WindowPolicy:
    """A version at the end of every window in which something arrived; finishers wait for the window's end.

    Windows are counted from the first dispatch on, so that none drifts. No timer runs while nothing is out and nothing
    waits: a federation that nobody comes back to has no events left.
    """

    consumes_on_arrival = True

    def __init__(self, concurrency: int, window_s: float) -> None:
        self._concurrency = concurrency
        self._window_s = window_s
        self._start_s = math.nan
        self._n_out = 0
        self._n_waiting = 0
        self._timer_runs = False

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return (Opening(0, self._concurrency - n_in_flight - self._n_waiting),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        self._n_out += len(tasks)
        if self._timer_runs:
            return tasks, None
        if math.isnan(self._start_s):
            self._start_s = now_s
        self._timer_runs = True
        return tasks, self._end_after(now_s)

    def arrived(self, task: Task) -> Step:
        self._n_out -= 1
        self._n_waiting += 1
        return Step((task,))

    def lost(self, task: Task) -> Step:
        self._n_out -= 1
        return none_ended(task)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        merge = self._n_waiting > 0
        self._n_waiting = 0
        self._timer_runs = merge or self._n_out > 0
        return Step(merge=merge), self._end_of(number + 1) if self._timer_runs else None

    def _end_of(self, number: int) -> Timer:
        return Timer(self._start_s + number * self._window_s, number)

    def _end_after(self, now_s: float) -> Timer:
        """The end of the window that `now_s` lies in; an end itself lies in the next."""
        number = max(1, math.floor((now_s - self._start_s) / self._window_s))  # one too low, if not exact
        while self._end_of(number).time_s <= now_s:
            number += 1
        return self._end_of(number)


class SyncPolicy:
    """Rounds. A round ends with its `cohort`-th arrival, at its deadline, or when nothing is out any more.

    A round in which nothing arrived makes no version and is followed by another.
    """

    consumes_on_arrival = True

    def __init__(self, cohort: int, n_dispatched: int, deadline_s: float | None, needs_spares: bool = False) -> None:
        self._cohort = cohort
        self._n_dispatched = n_dispatched
        self._deadline_s = deadline_s
        self._needs_spares = needs_spares
        self._round = 0
        self._out: dict[int, Task] = {}
        self._n_arrived = 0

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return () if self._out else (Opening(0, self._n_dispatched),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        self._round += 1
        end_s = math.inf if self._deadline_s is None else now_s + self._deadline_s
        arrivals = sorted((t.arrival_s, t.task) for t in tasks if not t.lost and not t.arrival_s > end_s)
        wanted = {number for _, number in (arrivals if self._needs_spares else arrivals[: self._cohort])}
        if math.isnan(tasks[0].arrival_s):  # the wall clock: nothing is known of the end
            wanted = {t.task for t in tasks}
        tasks = [t if t.task in wanted or t.lost else t._replace(wanted=False) for t in tasks]
        self._out = {t.task: t for t in tasks}
        return tasks, None if self._deadline_s is None else Timer(end_s, self._round)

    def arrived(self, task: Task) -> Step:
        del self._out[task.task]
        self._n_arrived += 1
        if self._n_arrived == self._cohort or not self._out:
            return Step((task,), *self._end())
        return Step((task,))

    def lost(self, task: Task) -> Step:
        del self._out[task.task]
        ended, merge = self._end() if not self._out else ((), False)
        return Step(ended=((task, Outcome.LOST), *ended), merge=merge)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        if number != self._round or not self._out:  # of a round that has ended
            return Step(), None
        return Step((), *self._end()), None

    def went_on(self, n_versions: int) -> None:
        """See `PlainPolicy.went_on`; each of the versions was a round, and one is open already if tasks are out."""
        self._round += n_versions - bool(self._out)
        self._out, self._n_arrived = {}, 0

    def _end(self) -> tuple[tuple[tuple[Task, Outcome], ...], bool]:
        aborted = tuple((task, Outcome.ABORTED) for task in self._out.values())
        merge = self._n_arrived > 0
        self._out = {}
        self._n_arrived = 0
        return aborted, merge


class TiersPolicy:
    """Each tier runs rounds of its own; a tier's updates are consumed and merged when its round ends."""

    consumes_on_arrival = False

    def __init__(self, n_tiers: int, cohort: int) -> None:
        self._cohort = cohort
        self._out: list[dict[int, Task]] = [{} for _ in range(n_tiers)]
        self._arrived: list[list[Task]] = [[] for _ in range(n_tiers)]
        self._tier_of: dict[int, int] = {}

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return [Opening(tier, self._cohort) for tier, out in enumerate(self._out) if not out]

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        end_s = max(t.arrival_s for t in tasks)
        tasks = [t._replace(due_s=end_s) for t in tasks]
        self._out[domain] = {t.task: t for t in tasks}
        self._tier_of.update((t.task, domain) for t in tasks)
        return tasks, None

    def arrived(self, task: Task) -> Step:
        tier = self._leave(task)
        self._arrived[tier].append(task)
        return self._end(tier)

    def lost(self, task: Task) -> Step:
        step = self._end(self._leave(task))
        return step._replace(ended=((task, Outcome.LOST),))

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        raise AssertionError("no timers in this policy")

    def _leave(self, task: Task) -> int:
        tier = self._tier_of.pop(task.task)
        del self._out[tier][task.task]
        return tier

    def _end(self, tier: int) -> Step:
        if self._out[tier]:
            return Step()
        consumed = tuple(self._arrived[tier])
        self._arrived[tier] = []
        return Step(consumed, merge=bool(consumed))
