"""Columns of whole numbers of which few differ: what is the same for equal ones is asked for once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedsim.types import Float64, Int64


def of_each(values: Int64, function: Callable[[int], float]) -> Float64:
    """What a function gives for each number of a column (R,), (R,); it is called once for each of those that differ.

    >>> of_each(np.array([2, 3, 2]), lambda n: n / 2)
    array([1. , 1.5, 1. ])
    """
    if not values.size:
        return np.empty(0)
    if (values == values[0]).all():
        return np.full(values.size, function(int(values[0])), np.float64)
    known: dict[int, float] = {}
    numbers = values.tolist()
    for number in numbers:
        if number not in known:
            known[number] = function(number)
    return np.array([known[number] for number in numbers], np.float64)


def counted(values: Int64) -> list[tuple[int, int]]:
    """How many there are of each number of a column (R,) of one at least.

    >>> counted(np.array([3, 3, 5]))
    [(3, 2), (5, 1)]
    """
    if (values == values[0]).all():
        return [(int(values[0]), values.size)]
    counts: dict[int, int] = {}
    for value in values.tolist():
        counts[value] = counts.get(value, 0) + 1
    return list(counts.items())
