"""What is posted where and when, step by step; every order of messages is in tests/property."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from fedsim.comm.transport import Backoff, Command, Counters, Delivered, Evaluated, Failed, Message, Trained
from fedsim.engine.supply import Bounds, Supply
from fedsim.engine.versions import VersionStore
from fedsim.errors import ClientError, StalledError, WorkerError
from fedsim.schedule.placement import ANY_WORKER, placement
from fedsim.types import EvaluationRow, Float32, Task, TaskReport

WIDE = Bounds(group_size=2, n_groups=2, server_rows=100, worker_rows=100, worker_versions=100)


class Post:
    """A transport that notes what is sent, and delivers what the test puts into `inbox`."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.rung_s = 0.0
        self.is_quiet = False
        self.sent: list[tuple[int, Command]] = []
        self.inbox: list[Message] = []

    def rank(self, worker: int) -> int:
        return worker + 1

    def send(self, worker: int, command: Command, versions: Sequence[Float32]) -> None:
        assert [float(vector_P[0]) for vector_P in versions] == list(command.coming)
        self.sent.append((worker, command))

    def wait(self, seconds: float) -> None:
        pass

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return ()

    def poll(self) -> Sequence[Message]:
        messages, self.inbox = self.inbox, []
        return messages

    def counters(self, worker: int) -> Counters:
        return Counters()

    def close(self, timeout_s: float | None = None, shows_stack: bool = False) -> None:
        pass


class Case:
    """A supply whose clock stands where the test puts it."""

    def __init__(self, bounds: Bounds = WIDE, n_workers: int = 1, host_of: Callable[[int], int] | None = None) -> None:
        self.post = Post(n_workers)
        self.versions = VersionStore(1, 10**6)
        self.now_s = 0.0
        self.supply = Supply(self.post, host_of or (lambda client: 0), bounds, self.versions, lambda: self.now_s, 60.0)
        self.supply._rest._backoff = Backoff(sleep=lambda seconds: None)
        self.publish(0)

    def publish(self, version: int) -> None:
        self.versions.add(version, np.array([version], dtype=np.float32))
        if version:
            self.supply.release_version(version - 1)

    def submit(self, *arrivals_s: float, base: int = 0, first: int = 0, wanted: bool = True) -> None:
        """Tasks `first`, `first` + 1, ... of clients of the same numbers, with these arrivals."""
        self.supply.submit(
            [
                Task(first + i, first + i, base, 1, 1, 0, 0.1, 0.0, 0.0, t, 0.0, t, t, False, wanted)
                for i, t in enumerate(arrivals_s)
            ]
        )

    def posted(self) -> list[tuple[int, list[int], list[bool]]]:
        """Groups posted since the last call: worker, tasks, which rows may travel at once."""
        groups = [(w, [t.task for t in c.tasks], list(c.send)) for w, c in self.post.sent if c.tasks]
        self.post.sent = [(w, c) for w, c in self.post.sent if not c.tasks]
        return groups

    def commands(self, what: str) -> list[tuple[int, list[int]]]:
        """What the commands sent so far say under one of their names, where they say anything."""
        return [(w, list(getattr(c, what))) for w, c in self.post.sent if getattr(c, what)]

    def trained(self, tasks: Sequence[int], sent: Sequence[bool], worker: int = 0) -> None:
        rows = np.array([[n] for n, s in zip(tasks, sent, strict=True) if s], dtype=np.float32).reshape(-1, 1)
        reports = [TaskReport(n, worker + 1, 1, 1, 0.0, 0.0, 0.0, 0.0) for n in tasks]
        self.post.inbox.append(Trained(worker, reports, sent, rows))
        self.supply.listen()

    def train_all(self) -> list[tuple[int, list[int], list[bool]]]:
        """Posts and trains until nothing more is posted; the groups, in the order in which they were posted."""
        groups: list[tuple[int, list[int], list[bool]]] = []
        self.supply.pump()
        while new := self.posted():
            groups += new
            for worker, tasks, sent in new:
                assert len(tasks) <= self.supply._bounds.group_size
                self.trained(tasks, sent, worker)
            self.supply.pump()
        return groups


def tasks_of(groups: Sequence[tuple[int, list[int], list[bool]]]) -> list[int]:
    """The tasks of groups, in order."""
    return [task for _, tasks, _ in groups for task in tasks]


def nothing() -> None:
    return None


def test_the_earliest_due_are_posted_first() -> None:
    case = Case()
    case.submit(5.0, 1.0, 4.0, 2.0, 3.0)
    assert tasks_of(case.train_all()) == [1, 3, 4, 2, 0]


def test_equal_arrivals_go_by_number() -> None:
    case = Case()
    case.submit(1.0, 1.0, 1.0, 1.0)
    assert tasks_of(case.train_all()) == [0, 1, 2, 3]


def test_a_worker_has_so_many_groups_at_most() -> None:
    case = Case()
    case.submit(*[float(t) for t in range(50)])
    for _ in range(3):
        case.supply.pump()
    groups = case.posted()
    assert 1 <= len(groups) <= 2 and tasks_of(groups) == list(range(len(tasks_of(groups))))


def test_what_is_not_wanted_is_not_trained() -> None:
    case = Case()
    case.submit(1.0, 2.0, wanted=False)
    case.submit(3.0, first=2)
    assert tasks_of(case.train_all()) == [2]
    assert case.versions.release(0) is False, "task 2 needs it"


def test_clients_stay_with_their_worker() -> None:
    case = Case(n_workers=2, host_of=lambda client: client % 2)
    case.submit(*[float(t) for t in range(6)])
    groups = case.train_all()
    assert [tasks_of([g for g in groups if g[0] == worker]) for worker in (0, 1)] == [[0, 2, 4], [1, 3, 5]]


def test_without_placement_any_worker_takes_any_task() -> None:
    case = Case(n_workers=3, host_of=lambda client: ANY_WORKER)
    case.submit(*[float(t) for t in range(12)])
    case.supply.pump()
    groups = case.posted()
    assert {worker for worker, _, _ in groups} == {0, 1, 2} and tasks_of(groups)[0] == 0
    for worker, tasks, sent in groups:
        case.trained(tasks, sent, worker)
    assert sorted(tasks_of(groups) + tasks_of(case.train_all())) == list(range(12))


def test_a_version_travels_once_and_is_forgotten_when_nobody_needs_it() -> None:
    case = Case()
    case.submit(1.0, 2.0, 3.0, 4.0)
    case.train_all()
    for task in range(3):
        case.supply.take(task)
    case.publish(1)
    case.submit(5.0, base=1, first=4)
    case.supply.pump()
    assert case.post.sent[-1][1].coming == [1] and case.post.sent[-1][1].forget == (), "task 3 needs version 0"
    case.train_all()
    case.supply.take(3)
    case.submit(6.0, base=1, first=5)
    case.supply.pump()
    assert case.post.sent[-1][1].coming == [] and case.post.sent[-1][1].forget == [0]


def test_rank_zeros_room_is_granted_in_order_and_the_last_row_is_for_the_due() -> None:
    case = Case(replace(WIDE, server_rows=3))
    case.submit(1.0, 2.0, 3.0, 4.0)
    assert [sent for _, _, part in case.train_all() for sent in part] == [True, True, False, False]
    assert case.commands("fetch") == [], "two of three rows are taken, and the third is the due one's"
    case.supply.take(0)
    case.supply.pump()
    assert case.commands("fetch") == [(0, [2])]


def test_the_due_one_takes_the_reserved_row() -> None:
    case = Case(replace(WIDE, server_rows=1))
    case.submit(1.0, 2.0)
    assert [sent for _, _, part in case.train_all() for sent in part] == [False, False]
    calls: list[str] = []

    def while_waiting() -> None:
        calls.append("waiting")
        case.post.inbox.append(Delivered(0, [0], np.array([[7.0]], dtype=np.float32)))

    case.supply.bring(0, while_waiting)
    assert case.commands("fetch") == [(0, [0])] and calls == ["waiting"]
    update, item = case.supply.take(0)
    assert update.vector_P[0] == 7.0 and update.report.task == 0 and item.arrived_s == 0.0


def test_a_full_worker_drops_what_is_due_last() -> None:
    # Room for two results, both taken by tasks 1 and 2; then task 9, due before them, comes.
    case = Case(Bounds(2, 2, 1, 2, 2))
    case.submit(5.0, 6.0, first=1)
    assert tasks_of(case.train_all()) == [1, 2]
    case.submit(1.0, first=9)

    def train_it() -> None:
        assert case.posted() == [(0, [9], [True])]
        case.trained([9], [True])

    case.supply.bring(9, train_it)
    assert case.commands("drop") == [(0, [2])] and case.supply.n_retrained == 1
    case.supply.take(9)
    assert case.train_all() == [(0, [2], [False])], "what was dropped is trained again"


def test_room_at_a_worker_is_not_exceeded() -> None:
    case = Case(Bounds(3, 2, 1, 4, 9))
    case.submit(*[float(t) for t in range(9)])
    assert tasks_of(case.train_all()) == [0, 1, 2, 3], "nobody fetches them: four results are there"


def test_room_for_versions_cuts_a_group() -> None:
    case = Case(Bounds(4, 1, 100, 100, 2))
    for version in range(3):
        case.submit(float(version), base=version, first=version)
        case.publish(version + 1)
    case.supply.pump()
    assert len(tasks_of(case.posted())) <= 2


def test_fetched_rows_come_a_group_at_a_time() -> None:
    case = Case(Bounds(2, 3, 2, 100, 100))
    case.submit(*[float(t) for t in range(6)])
    case.train_all()
    case.supply._bounds = replace(case.supply._bounds, server_rows=100)
    case.supply.pump()
    assert case.commands("fetch") == [(0, [1, 2]), (0, [3, 4]), (0, [5])]


def test_evaluations_go_to_the_idlest_in_turn() -> None:
    case = Case(n_workers=3, host_of=lambda client: 0)
    case.submit(1.0)
    case.supply.pump()
    case.supply.evaluate(0)
    case.supply.evaluate(0)
    assert sorted(w for w, c in case.post.sent if c.evaluate == 0) == [1, 2]
    for worker in (1, 2):
        case.post.inbox.append(Evaluated(worker, 0, [EvaluationRow(-1, 1, 0.0, {})]))
    case.supply.listen()
    assert [message.worker for message in case.supply.evaluations()] == [1, 2] and case.supply.evaluations() == []


@pytest.mark.parametrize(("is_user_error", "kind"), [(True, ClientError), (False, WorkerError)])
def test_a_failure_ends_the_run(is_user_error: bool, kind: Any) -> None:
    case = Case()
    case.post.inbox.append(Failed(0, 4, 3, is_user_error, "what went wrong"))
    with pytest.raises(kind, match="what went wrong"):
        case.supply.listen()


def test_silence_is_a_stall_only_if_someone_should_speak() -> None:
    case = Case()
    case.now_s = 1000.0
    case.supply.listen()
    case.submit(1.0)
    case.supply.pump()
    case.now_s = 1059.0
    case.supply.listen()
    case.now_s = 1061.0
    with pytest.raises(StalledError, match="no sign of life from any worker for 61 s with 1 groups"):
        case.supply.listen()


def test_messages_are_looked_at_even_if_all_is_there() -> None:
    # After every eighth event whose update is here already, idle workers get full groups.
    case = Case(replace(WIDE, group_size=10))
    case.submit(*[float(t) for t in range(10)])
    case.train_all()
    case.submit(50.0, 51.0, 52.0, first=10)
    seen = []
    for task in range(8):
        case.supply.bring(task, nothing)
        case.supply.take(task)
        case.supply.service()
        seen.append(tasks_of(case.posted()))
    assert seen[:7] == [[]] * 7 and seen[7][:2] == [9, 10], "9 did not fill a group"


def test_an_idle_worker_gets_part_of_a_group_only_when_the_server_waits() -> None:
    # 26 in flight among three workers, each with two groups: two tasks are a full group.
    case = Case(replace(WIDE, group_size=8), n_workers=3, host_of=lambda client: ANY_WORKER)
    case.submit(*[float(t) for t in range(26)])
    assert len(tasks_of(case.train_all())) == 26
    case.submit(30.0, first=26)
    case.supply.pump()
    assert case.posted() == []
    posted = []

    def train_it() -> None:
        posted.extend(case.posted())
        case.trained([26], [True], posted[-1][0])

    case.supply.bring(26, train_it)
    assert [group[1:] for group in posted] == [([26], [True])]


def test_wall_arrivals_come_in_their_order_once() -> None:
    case = Case(replace(WIDE, reserve=0), n_workers=4, host_of=lambda client: client)
    nan = float("nan")
    tasks = [Task(n, n, 0, 1, 1, 0, 0.1, 0.0, nan, nan, nan, nan, nan, False, True) for n in range(4)]
    case.supply.submit(tasks)
    case.supply.pump()
    assert sorted(tasks_of(case.posted())) == [0, 1, 2, 3]
    for task in (2, 3, 0, 1):
        case.trained([task], [True], worker=task)
    case.supply.cancel(3)
    assert case.supply.arrivals() == [2, 0, 1] and case.supply.arrivals() == []


@pytest.mark.parametrize("on_wall", [False, True])
def test_no_worker_is_favoured_where_any_may_take_a_task(on_wall: bool) -> None:
    """One task at a time, and the workers next to the server answer at once: each of them gets as many tasks."""
    bounds = replace(WIDE, reserve=0) if on_wall else WIDE
    case = Case(bounds, n_workers=5, host_of=lambda client: ANY_WORKER)
    counts = [0] * 5
    for number in range(40):
        case.submit(float(number), first=number)
        case.supply.pump(None if on_wall else case.supply._items[number])
        [(worker, tasks, sent)] = case.posted()
        counts[worker] += 1
        case.trained(tasks, sent, worker)
        case.supply.take(number)
    assert counts == [8] * 5


def test_placements_know_of_workers_only_not_of_hosts() -> None:
    """Clients are dealt evenly, so a host gets as many as it has workers, the server's like any other."""
    sizes = np.random.default_rng(0).integers(1, 100, 7000)
    kinds: tuple[Literal["home", "balanced"], ...] = ("home", "balanced")
    for kind in kinds:
        host_of = placement(kind, 7, sizes)
        hosts = np.array([host_of(client) for client in range(7000)])
        loads = np.bincount(hosts, weights=sizes if kind == "balanced" else None, minlength=7)
        assert loads.max() - loads.min() <= (sizes.max() if kind == "balanced" else 1)


def test_where_all_who_send_ring_it_sleeps_before_it_looks() -> None:
    case = Case()
    done: list[str] = []
    post: Any = case.post
    post.is_quiet, post.rung_s = True, 1.0
    post.wait = lambda seconds: done.append(f"wait {seconds}")
    post.poll = lambda: done.append("poll") or []
    assert not case.supply.listen()
    assert not case.supply.listen(wait=False)
    assert done == ["wait 1.0", "poll", "poll"]
