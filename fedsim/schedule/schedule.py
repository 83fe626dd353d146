"""The federation's future: tasks in flight, the events to come, and who is dispatched next.

The engine drives it so, on the virtual clock:

    tasks = schedule.dispatch(0.0)
    while (event := schedule.peek()) is not None:
        step = schedule.step(event)         # what is consumed, what ended otherwise, is there a version
        ...                                 # the engine consumes and merges
        if schedule.instant_over(): tasks = schedule.dispatch(event.time_s)

On the wall clock arrivals are not in the queue: the engine makes their events as updates come in, and takes only
timers from `peek`. Everything else is the same.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from fedsim import snapshot, states
from fedsim.errors import RecordError, StalledError
from fedsim.schedule.learning import Learner, Pace
from fedsim.schedule.policies import Opening, PlainPolicy, Policy, Step, Timer
from fedsim.schedule.selection import Domain, Selection
from fedsim.snapshot import Snapshot
from fedsim.types import Event, EventKind, Feedback, Int64, Outcome, Task

_NAN = math.nan
_SPARE_EVENTS = 1024
_KEPT_SIZES = 100_000
_ARRIVAL, _LOSS, _TIMER = EventKind.ARRIVAL, EventKind.LOSS, EventKind.TIMER  # looked up for every event
_COLUMNS = ("tasks", "domains", "positions", "waits")  # of tasks in flight or waiting, in a checkpoint
_PLACES = {  # a schedule's other fields by their names in a checkpoint
    "now_s": "now_s",
    "version": "version",
    "n_consumed": "n_consumed",
    "events": "_events",
    "steps_given": "_steps_given",
    "wake_s": "_wake_s",
    "next_task": "_next_task",
    "n_fruitless": "_n_fruitless",
}


class Plain(NamedTuple):
    """A schedule of one domain in which nothing waits and no timer runs: counters, and the tasks in flight in the
    order of dispatch, each with its client's position."""

    now_s: float
    version: int
    n_consumed: int
    next_task: int
    tasks: Sequence[Task]
    positions: Sequence[int]


class TaskPlanner(Protocol):
    """What the schedule asks of the devices: a plan is (download_s, compute_s, upload_s, arrival_s, lost)."""

    def plan(self, client: int, task: int, n_steps: int, n_samples: int, dispatch_s: float) -> Any: ...

    def plan_many(
        self, clients: Int64, tasks: Int64, n_steps: Int64, n_samples: Int64, dispatch_s: float
    ) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Work:
    """What a task asks of a client: its samples, steps and samples processed for them, learning rate at a version.

    `n_processed_in` is the samples processed in so many steps (samples, steps), where a pace decides these.
    `keeps_state`: clients keep a state from task to task, so that a task counts for its client even if it gets lost.
    """

    n_samples: Callable[[Int64], Int64]
    n_steps: Callable[[int], int]
    n_processed: Callable[[int], int]
    learning_rate: Callable[[int], float]
    counts_steps: bool
    n_processed_in: Callable[[int, int], int] | None = None
    keeps_state: bool = False


class Schedule:
    """The state of the federation's schedule. `devices` is None on the wall clock.

    `pace`, if there is one, decides a task's steps; `learners` are told of every consumed update.
    """

    ends = False

    def __init__(
        self,
        policy: Policy,
        domains: Sequence[Domain],
        selection: Selection,
        work: Work,
        devices: TaskPlanner | None,
        pace: Pace | None = None,
        learners: Sequence[Learner] = (),
    ) -> None:
        self._pace = pace
        self._learners = learners
        self.learns = bool(learners)
        self._policy = policy
        self._domains = domains
        self._selection = selection
        self._begin: Callable[[int], None] | None = getattr(selection, "begin", None)
        self._work = work
        self._devices = devices
        self._events: list[Event] = []
        self._in_flight: dict[int, tuple[Task, int, int]] = {}  # task -> (task, domain, position)
        self._waiting: dict[int, tuple[Task, int, int]] = {}  # arrived, but not consumed
        self._steps_given: dict[int, int] = {}
        self._sizes: dict[int, int] = {}  # memos of `work`, within bounds; nothing depends on what they hold
        self._amounts: dict[int, tuple[int, int]] = {}
        self._rate = (-1, _NAN)
        self._wake_s = math.inf
        self._next_task = 0
        self._n_fruitless = 0
        self.now_s = 0.0
        self.version = 0
        self.n_consumed = 0

    @property
    def consumes_on_arrival(self) -> bool:
        """Whether an arrival's step consumes just that update."""
        return self._policy.consumes_on_arrival

    @property
    def n_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def n_dispatched(self) -> int:
        return self._next_task

    def peek(self) -> Event | None:
        """The next event of the queue that still means something, or None."""
        events = self._events
        while events:
            event = events[0]
            if event.kind > _LOSS or event.number in self._in_flight:
                return event
            heapq.heappop(events)  # of a task that was aborted
        return None

    def instant_over(self) -> bool:
        """True when no further event of the current instant is in the queue: now is the time to dispatch."""
        event = self.peek()
        return event is None or event.time_s > self.now_s

    def step(self, event: Event, has_failed: bool = False) -> Step:
        """What an event leads to. An event that came from `peek` leaves the queue.

        `has_failed`: it would be an arrival, but the client's training failed; the update is lost with that outcome.
        """
        if self._events and self._events[0] is event:
            heapq.heappop(self._events)
        if self._devices is not None:
            assert event.time_s >= self.now_s, "virtual time went back"
        self.now_s = max(event.time_s, self.now_s)  # on the wall clock a timer is seen a little late
        step = self._failed(event.number) if has_failed else self._react(event)
        for task, _ in step.ended:
            if task.task in self._in_flight:
                self._leave(task.task)
        for task in step.consumed if self._waiting else ():
            _, domain, position = self._waiting.pop(task.task)
            self._domains[domain].release(position)
        self._count(step)
        return step

    def is_in_flight(self, number: int) -> bool:
        """Whether a task was dispatched and has not ended."""
        return number in self._in_flight

    def learned(self, feedback: Feedback) -> None:
        """Tells those who learn of an update that was consumed; called only where somebody `learns`."""
        for learner in self._learners:
            learner.learned(feedback)

    def dispatch(self, now_s: float) -> list[Task]:
        """The tasks that start now, all from the current version, numbered in order."""
        self.now_s = now_s
        tasks: list[Task] = []
        for opening in self._policy.openings(len(self._in_flight)):
            if opening.n > 0:
                tasks += self._fill(opening, now_s)
        return tasks

    def unconsumed(self) -> list[Task]:
        """The tasks that may still be consumed: those that wait for it, and those in flight."""
        return [task for task, _, _ in (*self._waiting.values(), *self._in_flight.values())]

    def plain(self) -> Plain:
        """The state right after a version was made and tasks were dispatched, for who goes on with it elsewhere."""
        tasks, _, positions = zip(*self._in_flight.values(), strict=True) if self._in_flight else ((), (), ())
        return Plain(self.now_s, self.version, self.n_consumed, self._next_task, tasks, positions)

    def put_plain(self, plain: Plain) -> None:
        """Goes on from a state in which a version was just made, and nobody was dispatched since."""
        (domain,) = self._domains
        for _, _, position in self._in_flight.values():
            domain.release(position)
        cast(PlainPolicy, self._policy).went_on(plain.version - self.version)
        self.now_s, self.version, self.n_consumed = plain.now_s, plain.version, plain.n_consumed
        self._next_task, self._n_fruitless = plain.next_task, 0
        entries = list(zip(plain.tasks, plain.positions, strict=True))
        self._in_flight = {task.task: (task, 0, position) for task, position in entries}
        for position in plain.positions:
            domain.take(position)
        self._events = [Event(task.arrival_s, _ARRIVAL, task.task) for task in plain.tasks]
        heapq.heapify(self._events)

    def snapshot(self) -> Snapshot:
        """Everything that a schedule of the same configuration needs to go on from here."""
        entries = [(*entry, False) for entry in self._in_flight.values()]
        entries += [(*entry, True) for entry in self._waiting.values()]
        columns = {name: [entry[i] for entry in entries] for i, name in enumerate(_COLUMNS)}
        own = states.of({name: getattr(self, place) for name, place in _PLACES.items()} | columns)
        others = {name: states.of_object(other) for name, other in self._others().items()}
        return snapshot.joined({"own": own} | others)

    def restore(self, saved: Snapshot) -> None:
        """Goes on from a snapshot; this schedule must be a new one. Raises RecordError for one that cannot be."""
        here: dict[str, Any] = {name: getattr(self, place) for name, place in _PLACES.items()}
        state = states.restored(snapshot.part(saved, "own"), here | {name: [] for name in _COLUMNS})
        for name, other in self._others().items():
            states.restore_object(other, snapshot.part(saved, name))
        for name, place in _PLACES.items():
            setattr(self, place, state[name])
        for task, number, position, waits in zip(*(state[name] for name in _COLUMNS), strict=True):
            domain = self._domains[number] if 0 <= number < len(self._domains) else None
            if domain is None or not domain.is_idle(position, task.client):
                raise RecordError(f"checkpoint: task {task.task} is of a client that cannot have it")
            domain.take(position)
            (self._waiting if waits else self._in_flight)[task.task] = (task, number, position)

    def restore_learned(self, saved: Snapshot) -> None:
        """Takes over what pace and learners knew, and nothing else, but which tasks there have been."""
        for name, other in self._others().items():
            if name != "policy" or other in self._learners:
                states.restore_object(other, snapshot.part(saved, name))
        self._next_task = states.restored(snapshot.part(saved, "own"), {"next_task": 0})["next_task"]

    def begin_after(self, version: int, next_task: int, steps_given: dict[int, int], now_s: float) -> None:
        """Begins at a version that was just made, with nobody at work."""
        self.version, self.now_s = version, now_s
        self._next_task = max(self._next_task, next_task)
        if self._work.counts_steps:
            self._steps_given = steps_given

    def _others(self) -> dict[str, Any]:
        """Who else keeps a state, by its name in a checkpoint: the policy, the pace and the learners, each once."""
        others: dict[str, Any] = {"policy": self._policy}
        if self._pace is not None:
            others["pace"] = self._pace
        for index, learner in enumerate(self._learners):
            if all(learner is not other for other in others.values()):
                others[f"learner-{index}"] = learner
        return others

    def _react(self, event: Event) -> Step:
        kind = event.kind
        if kind == _ARRIVAL:
            return self._policy.arrived(self._come_in(event.number))
        if kind == _LOSS:
            return self._policy.lost(self._leave(event.number))
        if kind == _TIMER:
            step, timer = self._policy.timer(event.number, event.time_s)
            self._set(timer)
            return step
        self._wake_s = math.inf
        return Step()

    def _failed(self, number: int) -> Step:
        step = self._policy.lost(self._leave(number))
        ended = [(task, Outcome.FAILED if task.task == number else outcome) for task, outcome in step.ended]
        return step._replace(ended=tuple(ended))

    def _count(self, step: Step) -> None:
        self.n_consumed += len(step.consumed)
        self.version += step.merge
        self._n_fruitless = 0 if step.consumed else self._n_fruitless + len(step.ended)
        if self._n_fruitless > 10_000 and self._n_fruitless > self._most_fruitless():
            raise StalledError(
                f"stalled at {self.now_s:.6g} virtual seconds: the last {self._n_fruitless} tasks were all lost or "
                "aborted; a longer deadline, faster devices or fewer losses would let updates arrive"
            )

    def _most_fruitless(self) -> int:
        return 10_000 + 100 * sum(min(d.size, 1000) for d in self._domains)

    def _come_in(self, number: int) -> Task:
        """The task of an update that is here. Its client is idle again once the update is consumed."""
        if self._policy.consumes_on_arrival:
            return self._leave(number)
        self._waiting[number] = self._in_flight.pop(number)
        return self._waiting[number][0]

    def _leave(self, number: int) -> Task:
        task, domain, position = self._in_flight.pop(number)
        self._domains[domain].release(position)
        return task

    def _set(self, timer: Timer | None) -> None:
        if timer is not None:
            heapq.heappush(self._events, Event(timer.time_s, EventKind.TIMER, timer.number))

    def _fill(self, opening: Opening, now_s: float) -> list[Task]:
        domain = self._domains[opening.domain]
        positions: list[int] = []
        if self._begin is not None:
            self._begin(self._next_task)
        for number in range(self._next_task, self._next_task + opening.n):
            position = self._selection.choose(domain, number, now_s)
            if position is None:
                self._wait_for(domain, now_s)
                break
            domain.take(position)
            positions.append(position)
        if not positions:
            return []
        tasks, timer = self._policy.opened(opening.domain, self._plan(domain, positions, now_s), now_s)
        self._set(timer)
        for task, position in zip(tasks, positions, strict=True):
            self._enter(task, opening.domain, position)
        return tasks

    def _wait_for(self, domain: Domain, now_s: float) -> None:
        """Wakes the schedule when the next idle client of the domain comes back."""
        if domain.n_idle == 0:
            return
        wake_s = self._selection.next_available_s(domain, now_s)
        if wake_s <= now_s:  # rounding at a window's edge
            wake_s = math.nextafter(now_s, math.inf)
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            heapq.heappush(self._events, Event(wake_s, EventKind.AVAILABILITY, 0))

    def _enter(self, task: Task, domain: int, position: int) -> None:
        self._in_flight[task.task] = (task, domain, position)
        if self._devices is not None:
            kind = _LOSS if task.lost else _ARRIVAL
            heapq.heappush(self._events, Event(task.arrival_s, kind, task.task))
            if len(self._events) > _SPARE_EVENTS + 4 * len(self._in_flight):
                self._sweep()

    def _sweep(self) -> None:
        """Takes the events of aborted tasks out of the queue, which would stay there until their time."""
        self._events = [e for e in self._events if e.kind > EventKind.LOSS or e.number in self._in_flight]
        heapq.heapify(self._events)

    def _plan(self, domain: Domain, positions: list[int], now_s: float) -> list[Task]:
        """The tasks for the chosen positions, with everything fixed at dispatch."""
        if len(positions) == 1 and self._pace is None:
            return [self._plan_one(domain.client(positions[0]), now_s)]
        clients = domain.clients(np.array(positions, dtype=np.int64))
        sizes = self._work.n_samples(clients).tolist()
        steps = [self._work.n_steps(size) for size in sizes]
        if self._pace is not None:
            paced = zip(clients.tolist(), steps, strict=True)
            steps = [self._pace.n_steps(client, planned, now_s) for client, planned in paced]
        first = self._next_task
        self._next_task += len(positions)
        learning_rate = self._learning_rate()
        plans = self._plans(clients, first, steps, sizes, now_s)
        return [
            self._task(first + i, client, sizes[i], steps[i], learning_rate, now_s, plans[i])
            for i, client in enumerate(clients.tolist())
        ]

    def _plan_one(self, client: int, now_s: float) -> Task:
        """`_plan` of one client, without arrays: asynchronous policies dispatch one task for each that arrives."""
        size = self._sizes.get(client)
        if size is None:
            size = int(self._work.n_samples(np.array([client], dtype=np.int64))[0])
            if len(self._sizes) >= _KEPT_SIZES:
                self._sizes.clear()
            self._sizes[client] = size
        amount = self._amounts.get(size)
        if amount is None:
            if len(self._amounts) >= _KEPT_SIZES:
                self._amounts.clear()
            amount = self._amounts[size] = (self._work.n_steps(size), self._work.n_processed(size))
        steps, processed = amount
        number = self._next_task
        self._next_task += 1
        plan = None if self._devices is None else self._devices.plan(client, number, steps, processed, now_s)
        return self._task(number, client, size, steps, self._learning_rate(), now_s, plan)

    def _learning_rate(self) -> float:
        version, rate = self._rate
        if version != self.version:
            rate = self._work.learning_rate(self.version)
            self._rate = (self.version, rate)
        return rate

    def _plans(self, clients: Int64, first: int, steps: list[int], sizes: list[int], now_s: float) -> Sequence[Any]:
        if self._devices is None:
            return [None] * len(steps)
        processed = self._processed(sizes, steps)
        if len(steps) == 1:
            return [self._devices.plan(int(clients[0]), first, steps[0], processed[0], now_s)]
        tasks = np.arange(first, first + len(steps), dtype=np.int64)
        return self._devices.plan_many(clients, tasks, np.array(steps), np.array(processed), now_s)

    def _processed(self, sizes: list[int], steps: list[int]) -> list[int]:
        if self._pace is None:
            return [self._work.n_processed(size) for size in sizes]
        assert self._work.n_processed_in is not None
        return [self._work.n_processed_in(size, n) for size, n in zip(sizes, steps, strict=True)]

    def _task(
        self, number: int, client: int, size: int, steps: int, learning_rate: float, now_s: float, plan: Any
    ) -> Task:
        first_step = 0
        if self._work.counts_steps:
            first_step = self._steps_given.get(client, 0)
            self._steps_given[client] = first_step + steps
        version = self.version
        if plan is None:
            times = (_NAN, _NAN, _NAN, _NAN, _NAN, False, True)
            return Task(number, client, version, size, steps, first_step, learning_rate, now_s, *times)
        download_s, compute_s, upload_s, arrival_s, lost = plan
        wanted = self._work.keeps_state or not lost
        times = (download_s, compute_s, upload_s, arrival_s, arrival_s, lost, wanted)
        return Task(number, client, version, size, steps, first_step, learning_rate, now_s, *times)
