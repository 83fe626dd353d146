"""The twin: rank zero, its workers and the messages between them as a discrete-event simulation.

Rank zero does one thing at a time: it takes a reply, consumes the updates that are due, posts groups. A worker has
two groups at most, one in training. Tasks are due in virtual time, so an update that is in early waits for those due
before it, as in `fedsim.engine.supply`. Where ranks are more than cores, whatever computes waits for one: rank zero at
its service, a worker at what its task takes of a processor. Cores go to who asked first. A message costs latency, and
its bytes cost time on rank zero's link, which carries one message at a time in each direction, and as much of rank
zero's own, which copies them (LogGP's L + o and G; Alexandrov et al., SPAA 1995).
What it leaves out: contention in the network beyond rank zero's link, evaluations, checkpoints, and noise.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedsim.seeding import Purpose, generator

_START_UP = 0.25  # of the updates are left out: until then the pipeline fills
_N_GROUPS = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """What things cost. Times in seconds, of one core; those with `_byte_s` are seconds a byte.

    `update_s` is rank zero's for an update, whatever its size: taking it, applying it, recording it, posting the next
    task. Of the model's bytes in float32: `mix_byte_s` to make a version of one update (FedAsync), `add_byte_s` to add
    one to a buffer, `version_byte_s` to make a version of what was added, `total_byte_s` to add a worker's total.
    A byte of a message takes `message_byte_s` on the link, and of rank zero. `group_s` is what it pays for a group's
    messages besides. `task_s` is a worker's overhead a task, `task_cpu_s` the processor time that a task takes in all,
    which may be spent beside what the task waits for.
    All ranks share so many `cores`, of which rank zero's polling takes `rest_cores`; with 0 each has one of its own.
    """

    update_s: float = 0.0
    mix_byte_s: float = 0.0
    add_byte_s: float = 0.0
    version_byte_s: float = 0.0
    total_byte_s: float = 0.0
    group_s: float = 0.0
    task_s: float = 0.0
    task_byte_s: float = 0.0
    latency_s: float = 0.0
    message_byte_s: float = 0.0
    task_cpu_s: float = 0.0
    cores: int = 0
    rest_cores: float = 0.0

    def scaled(self, factor: float) -> Machine:
        """The same with rank zero's costs times `factor`, but for the copies of messages: for error bands."""
        names = ("update_s", "mix_byte_s", "add_byte_s", "version_byte_s", "total_byte_s", "group_s")
        return replace(self, **{name: factor * getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class Job:
    """What runs: workers, groups in flight, the length of a group's training, bytes of the model.

    A group is `group` tasks that are trained, sent and due together. `buffer` updates make a version. `wire` is the
    share of the bytes that travels (0.5 for half precision). `reduced` says that workers sum their updates, so that a
    version costs one vector a worker, of 64-bit numbers, and not one an update. `is_exponential` is about the wall time
    of training.
    On the virtual clock (`is_ordered`) updates are applied in the order in which they are due: a task's virtual
    duration is `shift` of its mean, and for the rest exponential. On the wall clock they are applied as they come.
    """

    n_workers: int
    n_in_flight: int
    group_s: float
    model_bytes: float
    group: int = 1
    buffer: int = 1
    wire: float = 1.0
    reduced: bool = False
    is_exponential: bool = True
    is_ordered: bool = True
    shift: float = 0.0

    @property
    def totals(self) -> float:
        """Workers' totals an update, where they sum."""
        return min(1.0, self.n_workers / self.buffer)

    @property
    def update_bytes(self) -> float:
        """What comes to rank zero of an update."""
        return 2.0 * self.totals * self.model_bytes if self.reduced else self.wire * self.model_bytes


class Outcome(NamedTuple):
    """What the twin says: updates a second, the share of its time that rank zero works, that a worker trains."""

    updates_per_s: float
    server_busy: float
    worker_busy: float


class _Worker:
    __slots__ = ("at_work", "busy_s", "free_at_s", "known", "n_groups", "waiting")

    def __init__(self) -> None:
        self.n_groups = 0
        self.at_work = False
        self.waiting: tuple[int, float] | None = None  # the next group: its number, and when it was in
        self.free_at_s = 0.0
        self.busy_s = 0.0
        self.known = -1  # the newest version it has


class Twin:
    """One simulated job; `run` says how fast it goes. Random numbers are those of `seed`."""

    def __init__(self, machine: Machine, job: Job, seed: int = 0) -> None:
        self._machine, self._job = machine, job
        self._copied_s = job.group * job.update_bytes * machine.message_byte_s  # of a reply
        self._sent_s = job.model_bytes * job.wire * machine.message_byte_s  # of a version
        self._consumed_s = job.group * update_cost_s(machine, job)
        self._draws = generator(seed, Purpose.INJECTION)  # as delays that are injected into the engine
        self._block: deque[float] = deque()
        self._now_s = 0.0
        self._busy_s = 0.0
        self._link_in_s = self._link_out_s = 0.0
        self._n_done = 0
        self._n_number = 0
        self._workers = [_Worker() for _ in range(job.n_workers)]
        self._wanting = [deque(range(job.n_workers)), deque[int]()]  # workers by the groups they have
        self._due: list[tuple[float, int]] = []
        self._ready: list[tuple[float, int, int]] = []
        self._here: set[int] = set()
        self._asleep: list[tuple[float, int, int, int]] = []  # tasks by when they need a core
        self._replies: list[tuple[float, int, int, int]] = []
        self._cores = [0.0] * machine.cores  # when each is free
        self._stretch = machine.cores / (machine.cores - machine.rest_cores) if machine.cores else 1.0
        self._n_sent = 0

    def run(self, n_updates: int) -> Outcome:
        """Simulates `n_updates`, of which the first quarter is left out."""
        for _ in range(self._job.n_in_flight):
            self._dispatch(0.0)
        first = int(_START_UP * n_updates)
        start_s = start_busy_s = 0.0
        trained_s = 0.0
        self._post()
        while self._n_done < n_updates:
            before = self._n_done
            self._take_reply()
            if before < first <= self._n_done:
                start_s, start_busy_s = self._now_s, self._busy_s
                trained_s = sum(worker.busy_s for worker in self._workers)
        span_s = self._now_s - start_s
        trained_s = sum(worker.busy_s for worker in self._workers) - trained_s
        return Outcome(
            (self._n_done - first) / span_s,
            (self._busy_s - start_busy_s) / span_s,
            min(1.0, trained_s / span_s / self._job.n_workers),
        )

    def _exponential(self) -> float:
        if not self._block:
            self._block.extend(self._draws.standard_exponential(4096).tolist())
        return self._block.popleft()

    def _works(self, seconds: float) -> None:
        """Rank zero computes: after those who asked for a core before it."""
        if self._cores:
            while self._asleep and self._asleep[0][0] <= self._now_s:
                self._wake()
        self._now_s = self._on_a_core(self._now_s, seconds)
        self._busy_s += seconds

    def _on_a_core(self, asked_s: float, seconds: float) -> float:
        """When a computation ends that was asked for then."""
        if not self._cores:
            return asked_s + seconds
        end_s = max(asked_s, self._cores[0]) + self._stretch * seconds
        heapq.heapreplace(self._cores, end_s)
        return end_s

    def _dispatch(self, virtual_s: float) -> None:
        """A task starts from the newest version; it is due when its update would reach the server."""
        number = self._n_number
        self._n_number += 1
        shift = self._job.shift
        due_s = virtual_s + shift + (1.0 - shift) * self._exponential() if self._job.is_ordered else float(number)
        if self._job.is_ordered:
            heapq.heappush(self._due, (due_s, number))
        heapq.heappush(self._ready, (due_s, number, self._n_done // self._job.buffer))

    def _take_reply(self) -> None:
        """Takes the next reply, consumes what is due, posts what is ready."""
        while self._asleep and (not self._replies or self._asleep[0][0] < self._replies[0][0]):
            self._wake()
        sent_s, _, worker, group = heapq.heappop(self._replies)
        self._link_in_s = max(self._link_in_s, sent_s) + self._copied_s
        self._now_s = max(self._now_s, self._link_in_s + self._machine.latency_s)
        self._works(self._machine.group_s + self._copied_s)
        has = self._workers[worker].n_groups = self._workers[worker].n_groups - 1
        self._wanting[has].append(worker)
        if self._job.is_ordered:
            self._here.add(group)
            while self._due[0][1] in self._here:
                due_s, number = heapq.heappop(self._due)
                self._here.remove(number)
                self._consume(due_s)
        else:
            self._consume(0.0)
        self._post()

    def _consume(self, due_s: float) -> None:
        self._works(self._consumed_s)
        self._n_done += self._job.group
        self._dispatch(due_s)

    def _post(self) -> None:
        """A group to each idle worker, then a second one where there is plenty, as `fedsim.engine.supply` has it."""
        for n_groups, wanting in enumerate(self._wanting):
            while wanting and self._ready:
                if self._workers[wanting[0]].n_groups != n_groups:  # it moved on
                    wanting.popleft()
                    continue
                if n_groups and self._job.is_ordered and len(self._ready) < 1 + self._job.n_workers:
                    return
                self._post_group(wanting.popleft())

    def _post_group(self, index: int) -> None:
        machine, worker = self._machine, self._workers[index]
        _, number, base = heapq.heappop(self._ready)
        sent_s = 0.0
        if base > worker.known:
            worker.known = base
            sent_s = self._sent_s
            self._works(sent_s)
        worker.n_groups += 1
        if worker.n_groups < _N_GROUPS:
            self._wanting[worker.n_groups].append(index)
        self._link_out_s = max(self._link_out_s, self._now_s) + sent_s
        in_s = self._link_out_s + machine.latency_s
        if worker.at_work:
            worker.waiting = (number, in_s)
        else:
            self._start(index, number, max(worker.free_at_s, in_s))

    def _start(self, index: int, number: int, start_s: float) -> None:
        """A worker begins with a group: it comes to need a core when all else of it is over."""
        worker, machine, job = self._workers[index], self._machine, self._job
        length_s = self._group_length_s()
        worker.at_work = True
        worker.busy_s += length_s
        self._n_sent += 1
        asked_s = start_s + max(length_s - job.group * machine.task_cpu_s, 0.0)
        heapq.heappush(self._asleep, (asked_s, self._n_sent, index, number))

    def _wake(self) -> None:
        """The task that is the first to need a core gets one, and its worker goes on with its next group."""
        asked_s, order, index, number = heapq.heappop(self._asleep)
        worker = self._workers[index]
        worker.free_at_s = self._on_a_core(asked_s, self._job.group * self._machine.task_cpu_s)
        worker.at_work = False
        heapq.heappush(self._replies, (worker.free_at_s, order, index, number))
        if worker.waiting is not None:
            (following, in_s), worker.waiting = worker.waiting, None
            self._start(index, following, max(worker.free_at_s, in_s))

    def _group_length_s(self) -> float:
        job, machine = self._job, self._machine
        length_s = job.group_s * (self._exponential() if job.is_exponential else 1.0)
        return length_s + job.group * (machine.task_s + machine.task_byte_s * job.model_bytes)


def update_cost_s(machine: Machine, job: Job) -> float:
    """What an update costs rank zero beside the copies of messages, its share of the version included."""
    if job.reduced:
        passes_s = job.totals * machine.total_byte_s + (machine.version_byte_s + machine.total_byte_s) / job.buffer
    elif job.buffer == 1:
        passes_s = machine.mix_byte_s
    else:
        passes_s = machine.add_byte_s + machine.version_byte_s / job.buffer
    return machine.update_s + passes_s * job.model_bytes


def limit_per_s(machine: Machine, job: Job) -> float:
    """Updates a second at which rank zero has no time left: the most that any number of workers gets.

    It copies what its link carries, so the link is full no sooner.
    """
    in_s = job.update_bytes * machine.message_byte_s
    n_sent = min(1.0 / job.group, job.n_workers / job.buffer)  # a group starts from a version that is new there, or not
    out_s = n_sent * job.model_bytes * job.wire * machine.message_byte_s
    server_s = update_cost_s(machine, job) + in_s + out_s + machine.group_s / job.group
    return 1.0 / max(server_s, math.ulp(1.0))
