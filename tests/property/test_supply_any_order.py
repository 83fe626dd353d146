"""The movement of updates under every order of messages: nothing deadlocks, bounds hold, what comes back is right.

The workers here are models of real ones that do one thing at a time, chosen by a seeded draw: take a command, do a job,
let a message arrive. Messages arrive in any order, as receives of rows complete and those without rows overtake them.
Every model checks what it is told: no version twice, none that it does not know, no more rows than there is room for.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fedsim.comm.transport import NO_VERSION, Backoff, Command, Counters, Delivered, Evaluated, Lost, Message, Trained
from fedsim.engine.supply import Bounds, State, Supply
from fedsim.engine.versions import VersionStore
from fedsim.schedule.placement import placement
from fedsim.types import EvaluationRow, Float32, Task, TaskReport

N_PARAMETERS = 4
MOST_EVALUATIONS = 3
PATIENCE = 3000  # polls in a row without anything consumed: far beyond what any order of messages needs


def version_vector(version: int) -> Float32:
    return np.full(N_PARAMETERS, version, dtype=np.float32)


def update_of(task: Task) -> Float32:
    """What training a task gives: which task, from which version, of which client."""
    return np.array([task.task, task.base_version, task.client, task.task * 7 % 5], dtype=np.float32)


@dataclass
class Worker:
    """The model of one worker: commands under way to it, its jobs, what it knows and holds, messages it has sent."""

    index: int
    commands: deque[tuple[Command, list[Float32], int]] = field(default_factory=deque)  # with evaluations out then
    jobs: deque[Command] = field(default_factory=deque)
    known: dict[int, Float32] = field(default_factory=dict)
    held: dict[int, Float32] = field(default_factory=dict)
    leaving: list[Message] = field(default_factory=list)
    n_evaluating: int = 0

    @property
    def is_busy(self) -> bool:
        return bool(self.commands or self.jobs or self.leaving)


class Network:
    """The transport: `poll` moves a random number of things on, then hands over what has come in."""

    def __init__(self, n_workers: int, bounds: Bounds, draws: random.Random, p_death: float) -> None:
        self.n_workers = n_workers
        self.rung_s = 0.0
        self.is_quiet = False
        self.p_death = p_death
        self.dead: set[int] = set()
        self.workers = [Worker(index) for index in range(n_workers)]
        self.bounds, self.draws = bounds, draws
        self.rows_out: set[int] = set()  # rows that left a worker and are not consumed or thrown away: rank zero's
        self.unwanted: set[int] = set()  # tasks that were given up: their rows are thrown away when they come in
        self.polls_in_vain = 0
        self.n_sent: dict[tuple[int, int], int] = {}

    # ------------------------------------------------------------------------------ the interface

    def rank(self, worker: int) -> int:
        return worker + 1

    def send(self, worker: int, command: Command, versions: Sequence[Float32]) -> None:
        assert len(versions) == len(command.coming) and len(command.tasks) == len(command.send)
        assert len(command.tasks) <= self.bounds.group_size
        if worker in self.dead:
            return
        model = self.workers[worker]
        model.n_evaluating += command.evaluate != NO_VERSION
        model.commands.append((command, [vector_P.copy() for vector_P in versions], model.n_evaluating))

    def wait(self, seconds: float) -> None:
        pass

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return ()

    def poll(self) -> Sequence[Message]:
        self.polls_in_vain += 1
        assert self.polls_in_vain < PATIENCE, "nothing moves any more"
        messages: list[Message] = []
        for _ in range(self.draws.randrange(4)):
            worker = self.draws.choice(self.workers)
            actions = [
                *([self._take] if worker.commands else []),
                *([self._work] if worker.jobs else []),
                *([self._arrive] if worker.leaving else []),
            ]
            if actions:
                messages += self.draws.choice(actions)(worker)
            self._check_room(worker)
        if len(self.dead) + 1 < self.n_workers and self.draws.random() < self.p_death:
            messages.append(self._die(self.draws.choice([w for w in self.workers if w.index not in self.dead])))
        return messages

    def _die(self, worker: Worker) -> Message:
        """A worker takes all that it has with it, the messages that it has sent and that are not here yet, too."""
        self.dead.add(worker.index)
        for message in worker.leaving:
            self.rows_out.difference_update(rows_of(message))
        self.workers[worker.index] = Worker(worker.index)
        self.polls_in_vain = 0
        return Lost(worker.index, "died")

    def counters(self, worker: int) -> Counters:
        return Counters()

    def close(self, timeout_s: float | None = None, shows_stack: bool = False) -> None:
        raise AssertionError("not here")

    # ------------------------------------------------------------------------------ what a worker does

    def _take(self, worker: Worker) -> list[Message]:
        command, vectors, n_evaluating = worker.commands.popleft()
        for version in command.forget:
            del worker.known[version]
        for task in command.drop:
            del worker.held[task]
        for version, vector_P in zip(command.coming, vectors, strict=True):
            assert version not in worker.known, "sent to a worker that knows it"
            assert np.array_equal(vector_P, version_vector(version))
            worker.known[version] = vector_P
        assert len(worker.known) <= self.bounds.worker_versions + n_evaluating
        if command.fetch:
            worker.jobs.appendleft(Command(fetch=command.fetch))
        if command.tasks or command.evaluate != NO_VERSION:
            worker.jobs.append(command)
        return []

    def _work(self, worker: Worker) -> list[Message]:
        command = worker.jobs.popleft()
        if command.fetch:
            rows = np.stack([worker.held.pop(task) for task in command.fetch])
            assert len(rows) <= self.bounds.group_size
            self._leave(worker, Delivered(worker.index, command.fetch, rows), command.fetch)
        if command.evaluate != NO_VERSION:
            loss = float(worker.known[command.evaluate][0])
            worker.leaving.append(
                Evaluated(worker.index, command.evaluate, [EvaluationRow(-1, 1, loss, {"accuracy": 0.0})])
            )
        if command.tasks:
            self._train(worker, command)
        return []

    def _train(self, worker: Worker, command: Command) -> None:
        for task in command.tasks:
            assert np.array_equal(worker.known[task.base_version], version_vector(task.base_version))
        reports = [TaskReport(t.task, worker.index + 1, 1, 1, 0.0, 0.0, 0.0, 0.0) for t in command.tasks]
        sent = [task for task, at_once in zip(command.tasks, command.send, strict=True) if at_once]
        for task, at_once in zip(command.tasks, command.send, strict=True):
            if not at_once:
                worker.held[task.task] = update_of(task)
        rows = np.stack([update_of(task) for task in sent]) if sent else np.empty((0, N_PARAMETERS), np.float32)
        message = Trained(worker.index, reports, command.send, rows)
        self._leave(worker, message, [task.task for task in sent])

    def _leave(self, worker: Worker, message: Message, rows: Sequence[int]) -> None:
        worker.leaving.append(message)
        assert self.rows_out.isdisjoint(rows)
        self.rows_out.update(rows)
        assert len(self.rows_out) <= self.bounds.server_rows, "more rows under way than rank zero has room for"

    def _arrive(self, worker: Worker) -> list[Message]:
        message = worker.leaving.pop(self.draws.randrange(len(worker.leaving)))
        worker.n_evaluating -= isinstance(message, Evaluated)
        self.rows_out -= self.unwanted & set(rows_of(message))
        return [message]

    def _check_room(self, worker: Worker) -> None:
        """Results at a worker: held, or on their way to the server. A group's fill their places when it starts."""
        leaving = sum(len(m.rows) for m in worker.leaving if isinstance(m, Trained | Delivered))
        posted = sum(len(job.tasks) for job in worker.jobs)
        assert len(worker.held) + leaving + posted <= self.bounds.worker_rows


class Federation:
    """A little engine: tasks with random arrivals, versions, evaluations, and what it is asked to give up."""

    def __init__(
        self, bounds: Bounds, n_workers: int, kind: Any, seed: int, versions_in_memory: int, p_death: float
    ) -> None:
        self.draws = random.Random(seed)
        self.network = Network(n_workers, bounds, self.draws, p_death)
        self.versions = VersionStore(N_PARAMETERS, 4 * N_PARAMETERS * versions_in_memory)
        self.versions.add(0, version_vector(0))
        self.version = 0
        host_of = placement(kind, n_workers, np.arange(1, 41))
        self.supply = Supply(self.network, host_of, bounds, self.versions, lambda: 0.0, 60.0)
        self.supply._backoff = Backoff(sleep=lambda seconds: None)
        self.open: list[tuple[float, int, Task]] = []
        self.n_tasks = 0
        self.n_evaluated = self.n_asked = 0

    def start(self, n: int, now_s: float, on_wall: bool = False) -> list[Task]:
        """Submits `n` tasks from the current version; some of them arrive soon, some late, several at once."""
        tasks = []
        for _ in range(n):
            arrival_s = now_s + self.draws.choice([1.0, 1.0, 2.0, self.draws.expovariate(0.3), 50.0])
            due_s = float("nan") if on_wall else arrival_s + self.draws.choice([0.0, 0.0, 5.0])
            task = Task(
                task=self.n_tasks,
                client=self.draws.randrange(40),
                base_version=self.version,
                n_samples=1,
                n_steps=1,
                first_step=0,
                learning_rate=1.0,
                dispatch_s=now_s,
                download_s=0.0,
                compute_s=arrival_s - now_s,
                upload_s=0.0,
                arrival_s=arrival_s,
                due_s=due_s,
                lost=False,
                wanted=self.draws.random() < 0.9,
            )
            self.n_tasks += 1
            tasks.append(task)
        self.supply.submit(tasks)
        return [task for task in tasks if task.wanted]

    def publish(self) -> None:
        """A new version, sometimes evaluated."""
        self.version += 1
        self.versions.add(self.version, version_vector(self.version))
        self.supply.release_version(self.version - 1)
        self.collect()
        if self.draws.random() < 0.2 and self.n_asked - self.n_evaluated < MOST_EVALUATIONS:
            self.n_asked += 1
            self.supply.evaluate(self.version)

    def collect(self) -> None:
        for message in self.supply.evaluations():
            assert message.rows[0].loss == message.version
            self.n_evaluated += 1

    def consumed(self, task: Task) -> None:
        """Takes an update and looks whether it is the right one."""
        update, item = self.supply.take(task.task)
        assert item.task == task and update.report.task == task.task
        assert np.array_equal(update.vector_P, update_of(task))
        self.network.rows_out.remove(task.task)
        self.network.polls_in_vain = 0

    def given_up(self, task: Task) -> None:
        """Cancels a task; a row of it that is here already is thrown away now, one under way when it comes in."""
        self.supply.cancel(task.task)
        self.network.unwanted.add(task.task)
        leaving = {n for worker in self.network.workers for message in worker.leaving for n in rows_of(message)}
        if task.task not in leaving:
            self.network.rows_out.discard(task.task)

    def settle(self) -> None:
        """Lets everything under way come in; then nothing may be left anywhere."""
        while any(worker.is_busy for worker in self.network.workers):
            self.supply.listen()
        self.collect()
        assert not any(worker.held for worker in self.network.workers)
        assert self.network.rows_out == set() and self.n_evaluated == self.n_asked
        supply = self.supply
        assert supply._items == {} and supply._n_server_rows == 0
        assert [(desk.n_rows, desk.n_groups) for desk in supply._desks] == [(0, 0)] * self.network.n_workers
        assert len(self.versions) == 1, "only the current version has a user left"
        self.check_shelves()
        supply.release_version(self.version)
        assert len(self.versions) == 0 and self.versions.n_spilled == 0
        self.check_shelves()

    def check_shelves(self) -> None:
        """What the server takes a worker to know it knows, and all but the current version is to be forgotten."""
        shelves = self.supply._shelves
        for worker in self.network.workers:
            believed, to_forget = set(shelves._users[worker.index]), set(shelves._to_forget[worker.index])
            assert believed | to_forget == set(worker.known) and not believed & to_forget
            assert believed <= {self.version} and not shelves._tasks[worker.index]


def rows_of(message: Message) -> Sequence[int]:
    """The tasks whose rows a message holds."""
    if isinstance(message, Trained):
        return [report.task for report, sent in zip(message.reports, message.sent, strict=True) if sent]
    return message.tasks if isinstance(message, Delivered) else ()


def some_bounds(reserve: int) -> st.SearchStrategy[Bounds]:
    """Room of every size, the smallest that works included."""

    def build(group: int, groups: int, server: int, worker: int, versions: int) -> Bounds:
        return Bounds(group, groups, server, group + worker, group + versions, reserve)

    extra = st.sampled_from([0, 0, 1, 3, 100])
    return st.builds(build, st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 2, 3, 7, 100]), extra, extra)


def take_any(due: list[tuple[float, float, int, Task]], draws: random.Random) -> tuple[float, float, int, Task]:
    """Removes some entry from a heap."""
    entry = due.pop(draws.randrange(len(due)))
    heapq.heapify(due)
    return entry


P_DEATHS = st.sampled_from([0.0, 0.0, 0.01, 0.1])
KINDS = st.sampled_from(["home", "balanced", "dynamic"])
SEEDS = st.integers(0, 2**32)


@given(some_bounds(1), st.integers(1, 4), KINDS, st.integers(1, 12), SEEDS, P_DEATHS)
@settings(max_examples=250, deadline=None)
def test_in_the_order_of_events(
    bounds: Bounds, n_workers: int, kind: str, concurrency: int, seed: int, p_death: float
) -> None:
    """The virtual clock: the earliest is brought, whoever trains it; some tasks are given up before they are due."""
    federation = Federation(bounds, n_workers, kind, seed, 1 + seed % 3, p_death)
    draws = federation.draws
    due: list[tuple[float, float, int, Task]] = []
    now_s = 0.0
    while due or federation.n_tasks < 60:
        if not due or (federation.n_tasks < 60 and draws.random() < 0.7):
            for task in federation.start(concurrency - len(due), now_s):
                heapq.heappush(due, (task.due_s, task.arrival_s, task.task, task))
            continue
        if len(due) > 1 and draws.random() < 0.1:
            federation.given_up(take_any(due, draws)[3])
        # Where two rounds end at one instant, the order of consumption is not that of what was due first.
        now_s, _, number, task = take_any(due, draws) if draws.random() < 0.2 else heapq.heappop(due)
        federation.supply.bring(number, lambda: None)
        federation.consumed(task)
        if draws.random() < 0.6:
            federation.publish()
    event(f"{len(federation.network.dead)} workers died")
    event("trained again" if federation.supply.n_retrained else "never again")
    federation.settle()


@given(some_bounds(0), st.integers(1, 4), KINDS, st.integers(1, 12), SEEDS, P_DEATHS)
@settings(max_examples=250, deadline=None)
def test_in_the_order_of_arrival(
    bounds: Bounds, n_workers: int, kind: str, concurrency: int, seed: int, p_death: float
) -> None:
    """The wall clock: what comes in is consumed; rounds end and give up tasks in every state."""
    federation = Federation(bounds, n_workers, kind, seed, 2, p_death)
    draws = federation.draws
    open_tasks: dict[int, Task] = {}
    n_consumed = 0
    states: set[State] = set()
    while n_consumed < 40:
        if federation.n_tasks < 80 and len(open_tasks) < concurrency:
            started = federation.start(concurrency - len(open_tasks), 0.0, on_wall=True)
            open_tasks.update({task.task: task for task in started})
        if not open_tasks:
            if federation.n_tasks >= 80:
                break
            continue
        federation.supply.pump()
        federation.supply.listen()
        for number in federation.supply.arrivals():
            if number in open_tasks:
                federation.consumed(open_tasks.pop(number))
                n_consumed += 1
                if draws.random() < 0.4:
                    federation.publish()
            if open_tasks and draws.random() < 0.3:
                lost = draws.choice(sorted(open_tasks))
                states.add(federation.supply._items[lost].state)
                federation.given_up(open_tasks.pop(lost))
    for number in sorted(open_tasks):
        states.add(federation.supply._items[number].state)
        federation.given_up(open_tasks[number])
    for state in states:
        event(f"given up while {state.name}")
    federation.settle()
