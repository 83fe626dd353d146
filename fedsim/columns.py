"""Columns of whole numbers of which few differ: what is the same for equal ones is asked for once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from fedsim.types import Float64, Int64


class Tabled:
    """What a function gives for the numbers of a column (R,), (R,), where that is the same each time.

    It is asked once for each number. For long columns of numbers from 0 on, such as those of clients.

    >>> double = Tabled(lambda n: 2 * n)
    >>> double(np.array([2, 3, 2]))
    array([4, 6, 4])
    """

    def __init__(self, function: Callable[[int], int]) -> None:
        self._function = function
        self._known: Int64 = np.empty(0, np.int64)
        self._is_known = np.empty(0, np.bool_)

    def __call__(self, values: Int64) -> Int64:
        n_more = int(values.max(initial=-1)) + 1 - self._known.size
        if n_more > 0:
            n_more = max(n_more, self._known.size)
            self._known = np.pad(self._known, (0, n_more))
            self._is_known = np.pad(self._is_known, (0, n_more))
        are_known = self._is_known.take(values)
        if not are_known.all():
            for value in set(values[~are_known].tolist()):
                self._known[value] = self._function(value)
                self._is_known[value] = True
        return self._known.take(values)


class Remembered:
    """What a function gives for the numbers of a column (R,), (R,), where that is the same each time.

    It is asked once for each number; again, once `most` have been.

    >>> half = Remembered(lambda n: n / 2)
    >>> half(np.array([2, 3, 2]))
    array([1. , 1.5, 1. ])
    """

    def __init__(self, function: Callable[[int], float], most: int = 2**16) -> None:
        self._function = function
        self._most = most
        self._known: dict[int, float] = {}

    def __call__(self, values: Int64) -> Float64:
        known, numbers = self._known, values.tolist()
        try:
            return np.array([known[number] for number in numbers], np.float64)
        except KeyError:
            if len(known) >= self._most:
                known.clear()
            for number in numbers:
                if number not in known:
                    known[number] = self._function(number)
            return self(values)

    def forget(self) -> None:
        """It may give other numbers from now on."""
        self._known.clear()


def looked_up(values: Int64, known: Callable[[Int64], Float64]) -> Float64:
    """What a function of a column gives for the numbers of another one (R,), which lie close together.

    It is asked once for each number from the least to the greatest.

    >>> looked_up(np.array([7, 9, 7]), lambda numbers: numbers / 2)
    array([3.5, 4.5, 3.5])
    """
    if not values.size:
        return np.empty(0)
    first = int(values.min())
    return known(np.arange(first, int(values.max()) + 1))[values - first]


def counted(values: Int64) -> list[tuple[int, int]]:
    """How many there are of each number of a column, in the order in which they come.

    >>> counted(np.array([3, 5, 3]))
    [(3, 2), (5, 1)]
    """
    return list(Counter(values.tolist()).items())
