"""Policies that decide by what they have seen: lag bounds, Pisces' pace, FedCompass' groups, SAFA's rounds.

What they keep are plain values: numbers, lists and dictionaries. They see tasks and times, as a server would: durations
are known to them from arrivals, not from the device profiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.schedule.policies import BufferedPolicy, Opening, Step, Timer, none_ended
from fedsim.types import Outcome, Task

_MANY = 2.0**53


class LagBoundedPolicy(BufferedPolicy):
    """Every `buffer` arrivals make a version, unless that would leave a task at work more than `max_lag` behind.

    Then the version waits for that task, and is made of all that has arrived by then (PORT, Su and Li 2022, whose
    server asks such clients for what they have; here tasks are fixed at dispatch, so it waits).
    """

    def __init__(self, concurrency: int, buffer: int, max_lag: int) -> None:
        super().__init__(concurrency, buffer)
        self._max_lag = max_lag
        self._version = 0
        self._bases: dict[int, int] = {}

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        self._version = max(self._version, tasks[0].base_version)  # a run that goes on may begin above 0
        self._bases.update((task.task, task.base_version) for task in tasks)
        return tasks, None

    def arrived(self, task: Task) -> Step:
        del self._bases[task.task]
        self._n_buffered += 1
        return Step((task,), merge=self._merges())

    def lost(self, task: Task) -> Step:
        del self._bases[task.task]
        return none_ended(task)._replace(merge=self._merges())

    def _merges(self) -> bool:
        if self._n_buffered < self._buffer or min(self._bases.values(), default=self._version) < self._oldest_allowed():
            return False
        self._n_buffered = 0
        self._version += 1
        return True

    def _oldest_allowed(self) -> int:
        return self._version + 1 - self._max_lag


class PiscesPolicy:
    """A version once the last is as old as the longest latency of the clients at work, divided by `bound`.

    Reference: Jiang et al., "Pisces", SoCC 2022, algorithm 2 (adaptive aggregation pace): so no update waits for more
    than about `bound` versions. A client's latency is that of its last task; one not seen yet counts as 0.
    """

    consumes_on_arrival = True

    def __init__(self, concurrency: int, bound: float) -> None:
        self._concurrency = concurrency
        self._bound = bound
        self._running: dict[int, int] = {}
        self._latency_s: dict[int, float] = {}
        self._last_s = 0.0
        self._n_buffered = 0
        self._timer_s = math.inf  # when the timer that runs goes off

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return (Opening(0, self._concurrency - n_in_flight),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        self._running.update((task.task, task.client) for task in tasks)
        return tasks, self._sooner(now_s)

    def arrived(self, task: Task) -> Step:
        del self._running[task.task]
        self._latency_s[task.client] = task.arrival_s - task.dispatch_s
        self._n_buffered += 1
        return Step((task,), merge=self._merges(task.arrival_s))

    def lost(self, task: Task) -> Step:
        del self._running[task.task]
        return none_ended(task)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        if now_s >= self._timer_s:  # else one that a sooner one has overtaken
            self._timer_s = math.inf
        return Step(merge=self._merges(now_s)), self._sooner(now_s)

    def _sooner(self, now_s: float) -> Timer | None:
        """The next version's timer, where none runs that is as soon: the due time falls when the slowest is back."""
        due_s = max(now_s, self._due_s())
        if not self._n_buffered or due_s >= self._timer_s:
            return None
        self._timer_s = due_s
        return Timer(due_s, 0)

    def _due_s(self) -> float:
        longest = max((self._latency_s.get(client, 0.0) for client in self._running.values()), default=0.0)
        return self._last_s + longest / self._bound

    def _merges(self, now_s: float) -> bool:
        if not self._n_buffered or now_s < self._due_s():
            return False
        self._last_s, self._n_buffered = now_s, 0
        return True


class CompassPolicy:
    """Groups that arrive together: a client joins one that it can reach in [min_steps, max_steps] steps, or founds one.

    A version is made when the last of a group has arrived, or at the group's latest time, of those who have; who comes
    later is taken into the next version. The first task of a client has `max_steps`, and makes a version of its own.
    Reference: Li et al., "FedCompass", ICLR 2024 (arXiv:2309.14675), algorithms 1 to 3, by the authors' framework
    (APPFL) where the paper leaves it open: of the groups in reach the one with most steps; a founder aims at the next
    arrival of a group whose fastest member would take `max_steps` again; seconds a step by a moving average.
    Deviations: a step's seconds include the transfers, as the server sees them. Who restarts at one instant is
    dispatched in the order of the selection's draws, not by speed.
    """

    consumes_on_arrival = False

    def __init__(
        self, n_clients: int, min_steps: int, max_steps: int, latest_factor: float, speed_momentum: float
    ) -> None:
        self._n_clients = n_clients
        self._min_steps, self._max_steps = min_steps, max_steps
        self._latest_factor = latest_factor
        self._speed_momentum = speed_momentum
        self._step_s: dict[int, float] = {}  # seconds a step, by client
        self._expected_s: dict[int, float] = {}  # by group
        self._latest_s: dict[int, float] = {}
        self._group_of: dict[int, int] = {}  # of tasks at work; a client's first task has none
        self._client_of: dict[int, int] = {}
        self._arrived: list[Task] = []  # waiting for their groups
        self._waits_for: dict[int, int] = {}  # their groups, by task
        self._chosen: dict[int, int] = {}  # client about to start -> group
        self._next_group = 0

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return [Opening(0, 1)] * (self._n_clients - n_in_flight - len(self._arrived))

    def n_steps(self, client: int, planned: int, now_s: float) -> int:
        """The steps of a client's task that starts now: see `fedsim.schedule.learning.Pace`."""
        if client not in self._step_s:
            return self._max_steps
        number, steps = self._joined(client, now_s)
        if number is None:
            steps = self._founding_steps(client, now_s)
            span_s, number = steps * self._step_s[client], self._next_group
            self._expected_s[number] = now_s + span_s
            self._latest_s[number] = now_s + span_s * self._latest_factor
            self._next_group += 1
        self._chosen[client] = number
        return steps

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        (task,) = tasks  # openings are of one task, so that each may set a timer
        number = self._chosen.pop(task.client, None)
        if number is None:
            return tasks, None
        founded = not self._members(number)
        self._group_of[task.task], self._client_of[task.task] = number, task.client
        return tasks, Timer(self._latest_s[number], number) if founded else None

    def arrived(self, task: Task) -> Step:
        self._measure(task)
        number = self._left(task)
        if number is None:
            return Step((task,), merge=True)
        if task.arrival_s > self._latest_s[number]:  # accumulated now, merged with the next version
            self._close_if_empty(number)
            return Step((task,))
        self._arrived.append(task)
        self._waits_for[task.task] = number
        return self._close_if_empty(number)

    def lost(self, task: Task) -> Step:
        number = self._left(task)
        step = Step() if number is None else self._close_if_empty(number)
        return step._replace(ended=none_ended(task).ended)

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        if number not in self._latest_s:
            return Step(), None
        self._expected_s[number] = self._latest_s[number] = -math.inf
        return self._consumed(number), None

    def _left(self, task: Task) -> int | None:
        """The group of a task that is at work no more."""
        self._client_of.pop(task.task, None)
        return self._group_of.pop(task.task, None)

    def _members(self, number: int) -> list[int]:
        """The clients of a group: those at work, then those waiting."""
        at_work = [self._client_of[task] for task, group in self._group_of.items() if group == number]
        return at_work + [task.client for task in self._arrived if self._waits_for[task.task] == number]

    def _close_if_empty(self, number: int) -> Step:
        """Ends a group that nobody is at work for: those who wait are consumed, and make a version."""
        if number in self._group_of.values():
            return Step()
        del self._expected_s[number], self._latest_s[number]
        return self._consumed(number)

    def _consumed(self, number: int) -> Step:
        tasks = tuple(task for task in self._arrived if self._waits_for[task.task] == number)
        self._arrived = [task for task in self._arrived if self._waits_for[task.task] != number]
        for task in tasks:
            del self._waits_for[task.task]
        return Step(tasks, merge=bool(tasks))

    def _measure(self, task: Task) -> None:
        taken_s = (task.arrival_s - task.dispatch_s) / task.n_steps
        old_s, share = self._step_s.get(task.client, taken_s), self._speed_momentum
        self._step_s[task.client] = (1.0 - share) * old_s + share * taken_s

    def _joined(self, client: int, now_s: float) -> tuple[int | None, int]:
        """The group in reach that leaves the client most steps, the latest of equals; None if there is none."""
        best, steps = None, 0
        for number, expected_s in self._expected_s.items():
            reached = _steps_within(expected_s - now_s, self._step_s[client])
            if self._min_steps <= reached <= self._max_steps and reached >= steps:
                best, steps = number, reached
        return best, steps

    def _founding_steps(self, client: int, now_s: float) -> int:
        """Steps up to the next arrival of some group, if the client can take them, the more the better; else all."""
        best = -1
        for number, latest_s in self._latest_s.items():
            members = self._members(number)
            if now_s < latest_s and members:
                next_s = latest_s + self._max_steps * min(self._step_s[member] for member in members)
                reached = _steps_within(next_s - now_s, self._step_s[client])
                best = max(best, reached) if reached <= self._max_steps else best
        return self._max_steps if best < 0 else max(best, self._min_steps)


def _steps_within(span_s: float, step_s: float) -> int:
    """How many steps of `step_s` seconds fit into a span; many if they take no time."""
    if span_s < 0.0:
        return -1
    return int(min(span_s / step_s, _MANY)) if step_s > 0.0 else int(_MANY)


class SafaPolicy:
    """Rounds of everybody: the first `quota` updates of clients not picked in the last round make a version.

    Where these are too few when nobody is out any more, updates of clients picked before fill up. The others of the
    round are undrafted: consumed after the picked. Who is still at work goes on into the next round, unless the new
    version leaves it more than `lag_tolerance` behind: its task is aborted, and the client starts anew (deprecated).
    Reference: Wu et al., "SAFA", IEEE TC 2021 (arXiv:1910.01355), algorithms 1 and 2 (compensatory
    first-come-first-merge).
    Deviations: a round has no deadline of its own; it ends with its quota, or when nobody is out.
    """

    consumes_on_arrival = False

    def __init__(self, n_clients: int, quota: int, lag_tolerance: int) -> None:
        self._n_clients = n_clients
        self._quota = min(quota, n_clients)
        self._lag_tolerance = lag_tolerance
        self._version = 0
        self._out: dict[int, Task] = {}
        self._picked: list[Task] = []
        self._others: list[Task] = []
        self._picked_last: dict[int, int] = {}  # clients of the last round's picked updates

    def openings(self, n_in_flight: int) -> Sequence[Opening]:
        return (Opening(0, self._n_clients - n_in_flight - len(self._picked) - len(self._others)),)

    def opened(self, domain: int, tasks: list[Task], now_s: float) -> tuple[list[Task], Timer | None]:
        self._out.update((task.task, task) for task in tasks)
        return tasks, None

    def arrived(self, task: Task) -> Step:
        del self._out[task.task]
        (self._others if task.client in self._picked_last else self._picked).append(task)
        return self._end() if len(self._picked) == self._quota or not self._out else Step()

    def lost(self, task: Task) -> Step:
        del self._out[task.task]
        step = none_ended(task)
        if self._out:
            return step
        end = self._end()
        return end._replace(ended=(*step.ended, *end.ended))

    def timer(self, number: int, now_s: float) -> tuple[Step, Timer | None]:
        raise AssertionError("no timers in this policy")

    def _end(self) -> Step:
        consumed = (*self._picked, *self._others)
        if not consumed:
            return Step()
        self._version += 1
        self._picked_last = {task.client: 1 for task in consumed[: self._quota]}
        self._picked, self._others = [], []
        oldest = self._version - self._lag_tolerance
        deprecated = [task for task in self._out.values() if task.base_version < oldest]
        for task in deprecated:
            del self._out[task.task]
        return Step(consumed, tuple((task, Outcome.ABORTED) for task in deprecated), merge=True)
