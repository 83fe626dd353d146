"""Which worker knows which versions."""

from __future__ import annotations

from fedsim.comm.wire import MAX_TASKS
from fedsim.engine.shelves import Shelves


def test_a_version_is_sent_once() -> None:
    shelves = Shelves(2, bound=4)
    assert [shelves.pin_for_tasks(0, 7), shelves.pin_for_tasks(0, 7), shelves.pin(0, 7)] == [True, False, False]
    assert shelves.pin_for_tasks(1, 7)
    shelves.unpin_from_tasks(0, 7)
    shelves.unpin_from_tasks(0, 7)
    shelves.unpin(0, 7)
    assert not shelves.pin_for_tasks(0, 7), "it stays there while someone may need it"


def test_room_counts_the_versions_that_tasks_use() -> None:
    shelves = Shelves(1, bound=3)
    shelves.pin(0, 9)  # by an evaluation: that is beside the bound
    assert shelves.room(0) == 3 and not shelves.is_used_by_tasks(0, 9)
    for version in (1, 1, 2):
        shelves.pin_for_tasks(0, version)
    assert shelves.room(0) == 1 and shelves.is_used_by_tasks(0, 1)
    shelves.unpin_from_tasks(0, 1)
    assert shelves.room(0) == 1
    shelves.unpin_from_tasks(0, 1)
    assert shelves.room(0) == 2 and not shelves.is_used_by_tasks(0, 1)


def test_the_oldest_unused_makes_room() -> None:
    shelves = Shelves(1, bound=2)
    for version in (0, 1):
        shelves.pin_for_tasks(0, version)
    shelves.unpin_from_tasks(0, 0)
    shelves.unpin_from_tasks(0, 1)
    assert shelves.pin_for_tasks(0, 2)
    assert shelves.forgotten(0) == [0]
    assert not shelves.pin_for_tasks(0, 1), "1 is still there"
    assert shelves.forgotten(0) == []


def test_what_an_evaluation_added_goes_with_it() -> None:
    shelves = Shelves(1, bound=1)
    shelves.pin_for_tasks(0, 0)
    assert shelves.pin(0, 1)  # two known: one by the bound, one for the evaluation
    assert shelves.forgotten(0) == []
    shelves.unpin(0, 1)
    assert shelves.forgotten(0) == [1]


def test_retired_versions_are_forgotten_everywhere() -> None:
    shelves = Shelves(3, bound=5)
    for worker in (0, 2):
        shelves.pin_for_tasks(worker, 4)
        shelves.unpin_from_tasks(worker, 4)
    shelves.retire(4)
    assert [shelves.forgotten(worker) for worker in range(3)] == [[4], [], [4]]
    assert shelves.pin_for_tasks(0, 4), "known no more"
    shelves.retire(99)  # never sent anywhere


def test_what_a_worker_was_not_told_to_forget_is_still_there() -> None:
    shelves = Shelves(1, bound=1)
    shelves.pin_for_tasks(0, 0)
    shelves.unpin_from_tasks(0, 0)
    shelves.pin_for_tasks(0, 1)  # 0 makes room
    shelves.unpin_from_tasks(0, 1)
    assert not shelves.pin_for_tasks(0, 0), "not told yet: no need to send it again"
    assert shelves.forgotten(0) == [1]


def test_a_command_holds_so_many_names_at_most() -> None:
    n = 2 * MAX_TASKS + 3
    shelves = Shelves(1, bound=n)
    for version in range(n):
        shelves.pin_for_tasks(0, version)
        shelves.unpin_from_tasks(0, version)
        shelves.retire(version)
    parts = [shelves.forgotten(0) for _ in range(4)]
    assert [len(part) for part in parts] == [MAX_TASKS, MAX_TASKS, 3, 0]
    assert [version for part in parts for version in part] == list(range(n))


def test_a_dead_worker_knows_nothing() -> None:
    shelves = Shelves(2, 3)
    assert shelves.pin_for_tasks(0, 1) and shelves.pin(0, 2) and shelves.pin(1, 1)
    shelves.retire(2)
    shelves.lose(0)
    assert shelves.forgotten(0) == [] and shelves.room(0) == 3
    shelves.retire(1)
    assert shelves.forgotten(0) == [] and shelves.forgotten(1) == [1]
