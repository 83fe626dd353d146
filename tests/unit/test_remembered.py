"""What a function gives for the numbers of a column is asked for once."""

from __future__ import annotations

import numpy as np

from fedsim.columns import Remembered, counted


def test_each_number_is_asked_for_once_until_it_is_forgotten() -> None:
    asked: list[int] = []

    def half(number: int) -> float:
        asked.append(number)
        return number / 2

    halves = Remembered(half, most=4)
    assert halves(np.array([3, 1, 3])).tolist() == [1.5, 0.5, 1.5] and asked == [3, 1]
    assert halves(np.array([], np.int64)).size == 0
    assert halves(np.array([1, 2, 5])).tolist() == [0.5, 1.0, 2.5] and asked == [3, 1, 2, 5]
    assert halves(np.array([9, 3])).tolist() == [4.5, 1.5], "four are known: they make room"
    assert asked == [3, 1, 2, 5, 9, 3]
    halves.forget()
    assert halves(np.array([3])).tolist() == [1.5] and asked[-2:] == [3, 3]


def test_how_many_there_are_of_each() -> None:
    assert counted(np.array([4, 2, 4, 4])) == [(4, 3), (2, 1)] and counted(np.array([], np.int64)) == []
