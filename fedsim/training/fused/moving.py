"""Parameters between flat vectors and a slab's rows on the host, compiled: all of them, of all slots, in one call.

A row of `table` says of a parameter: its first number in a vector, its rows and their length, a row's stride in the
slab, a slot's stride there, and the address of the first slot. Vectors are given by their addresses.
Shapes: `T` parameters of a table, `G` vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import compiled, reordered


@compiled
def load(one: Any, table_T: Any, vectors_G: Any, n_bytes: int) -> None:
    """The first slots become what flat vectors say."""
    for i in range(table_T.shape[0]):
        source, n_rows, n, stride, slot, to = table_T[i]
        for s in range(vectors_G.size):
            for row in range(n_rows):
                values = array(pointer(one, vectors_G[s] + n_bytes * (source + row * n)), (n,))
                target = array(pointer(one, to + n_bytes * (s * slot + row * stride)), (n,))
                for j in range(n):
                    target[j] = values[j]


@compiled
def read(one: Any, table_T: Any, first: int, out_G: Any, n_bytes: int) -> None:
    """Flat vectors become what slots from `first` on hold."""
    for i in range(table_T.shape[0]):
        source, n_rows, n, stride, slot, at = table_T[i]
        for s in range(out_G.size):
            for row in range(n_rows):
                values = array(pointer(one, at + n_bytes * ((first + s) * slot + row * stride)), (n,))
                target = array(pointer(one, out_G[s] + n_bytes * (source + row * n)), (n,))
                for j in range(n):
                    target[j] = values[j]


@compiled
def subtract(
    one: Any, table_T: Any, first: int, base_G: Any, out_G: Any, n_bytes: int, n_values: int, norms_G: Any
) -> None:
    """Flat vectors of `n_values` numbers become what slots from `first` on hold, less the base of each; and their norms
    if there is room for those, as `norms` has them: each is read again while it is in the core's cache."""
    for s in range(out_G.size):
        for i in range(table_T.shape[0]):
            source, n_rows, n, stride, slot, at = table_T[i]
            for row in range(n_rows):
                values = array(pointer(one, at + n_bytes * ((first + s) * slot + row * stride)), (n,))
                less = array(pointer(one, base_G[s] + n_bytes * (source + row * n)), (n,))
                target = array(pointer(one, out_G[s] + n_bytes * (source + row * n)), (n,))
                for j in range(n):
                    target[j] = values[j] - less[j]
        if norms_G.size:
            norms_G[s] = math.sqrt(_squares(array(pointer(one, out_G[s]), (n_values,))))


@compiled
def norms(one: Any, vectors_G: Any, base_G: Any, n: int, norms_G: Any) -> None:
    """The Euclidean norms of flat vectors of `n` numbers, or where there are bases of their differences from those.

    Differences are taken in the vectors' own type, their squares added up in float64.
    """
    for s in range(vectors_G.size):
        values = array(pointer(one, vectors_G[s]), (n,))
        if base_G.size:
            norms_G[s] = math.sqrt(_squares_apart(values, array(pointer(one, base_G[s]), (n,))))
        else:
            norms_G[s] = math.sqrt(_squares(values))


@reordered
def _squares(values: Any) -> float:
    total = 0.0
    for i in range(values.size):
        value = np.float64(values[i])
        total += value * value
    return total


@reordered
def _squares_apart(values: Any, base: Any) -> float:
    total = 0.0
    for i in range(values.size):
        difference = np.float64(values[i] - base[i])
        total += difference * difference
    return total
