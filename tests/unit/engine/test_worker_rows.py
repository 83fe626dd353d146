"""Where a worker's updates lie: rows that it shares, or its own, which hold no more than they have to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim.comm.faults import Trouble
from fedsim.comm.pieces import ALONE_BYTES
from fedsim.engine.worker import Worker
from fedsim.types import Float32, Rows, Task, TaskReport

N = ALONE_BYTES  # values, of large updates


class FakeTrainer:
    """Each client's update is its number everywhere; `fails` names those that cannot be trained."""

    def __init__(self, takes_rows: bool, fails: Sequence[int] = ()) -> None:
        self.takes_rows, self._fails = takes_rows, fails

    def train(
        self, tasks: Sequence[Task], base_of: Callable[[int], Float32], out: Rows, progress: Callable[[], None]
    ) -> list[TaskReport]:
        assert self.takes_rows or isinstance(out, np.ndarray)
        for task, row in zip(tasks, out, strict=True):
            if task.client in self._fails:
                raise ValueError(task.client)
            row[:] = task.client
        return [TaskReport(task.task, 1, 1, 1, 0.0, 0.0, 0.0, 0.0) for task in tasks]


class FakeRoom:
    """Six rows that lie apart."""

    def __init__(self) -> None:
        self.rows = [np.zeros(N, np.float32) for _ in range(6)]
        self.free = set(range(6))

    def take(self, n: int) -> tuple[list[int], Rows] | None:
        if len(self.free) < n:
            return None
        numbers = sorted(self.free)[:n]
        self.free -= set(numbers)
        return numbers, [self.rows[number] for number in numbers]

    def give_back(self, numbers: Sequence[int]) -> None:
        self.free |= set(numbers)


def tasks(*clients: int) -> list[Task]:
    nan = float("nan")
    return [Task(i, client, 0, 1, 1, 0, 0.1, *(nan,) * 6, False, True) for i, client in enumerate(clients)]


def worker(trainer: FakeTrainer, room: Any = None, group_size: int = 4) -> Worker:
    nobody: Any = None
    return Worker(0, "here", N, trainer, nobody, lambda: 0.0, Trouble(), room=room, group_size=group_size)


@pytest.mark.parametrize("takes_rows", [True, False])
def test_updates_lie_in_rows_in_common_as_long_as_there_are_some(takes_rows: bool) -> None:
    room = FakeRoom()
    own = worker(FakeTrainer(takes_rows), room)
    first = own.train(tasks(3, 5, 7, 9), [True] * 4, lambda: None)
    assert first.places == [0, 1, 2, 3] and [room.rows[i][0] for i in first.places] == [3, 5, 7, 9]
    held = own.train(tasks(1, 2), [True, False], lambda: None)
    assert not held.places and len(held.rows) == 1, "what is held is the worker's own"
    more = own.train(tasks(4, 6, 8), [True] * 3, lambda: None)
    assert not more.places and [row[0] for row in more.rows] == [4, 6, 8], "two rows are left"
    assert room.free == {4, 5}


def test_rows_come_back_where_training_fails() -> None:
    room = FakeRoom()
    own = worker(FakeTrainer(True, fails=[5]), room)
    some = own.train(tasks(3, 5, 7), [True] * 3, lambda: None)
    assert not some.places and [row[0] for row in some.rows] == [3, 7] and len(some.failed) == 1
    none = own.train(tasks(5), [True], lambda: None)
    assert not none.places and not len(none.rows) and len(room.free) == 6


def test_own_rows_are_the_same_memory_again_once_nobody_holds_them() -> None:
    own = worker(FakeTrainer(True))
    first = own.train(tasks(1, 2, 3, 4), [True] * 4, lambda: None).rows
    second = own.train(tasks(5), [True], lambda: None).rows
    assert not np.shares_memory(first[0], second[0]) and first[0][0] == 1.0
    del first
    third = own.train(tasks(6, 7), [True] * 2, lambda: None).rows
    assert [array.size for array in own._recycled._kept] == [4 * N, 4 * N] and second[0][0] == 5.0
    assert third[1][0] == 7.0
