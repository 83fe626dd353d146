"""Large arrays that are handed out again once nobody holds them any more.

Memory that is new to a process is cleared by the system, page by page: for a version of 400 MB that took 50 ms, as long
as all that is computed with it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LEAST_BYTES = 2**20  # smaller ones come from memory that the C library keeps anyway
_MOST = 64  # arrays that are looked through


def _n_held_here() -> int:
    """How often an array counts as held that nobody holds but a list and a loop over it: that differs among Pythons."""
    kept = [np.empty(0)]
    for array in kept:
        return sys.getrefcount(array)
    raise AssertionError


_HELD_HERE = _n_held_here()


class Recycled:
    """What it handed out last, whole arrays: a view or a request of MPI's that is under way holds its array, too.

    There are never more arrays than were in use at once.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[Any]] = []

    def empty(self, n: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array (n,) with anything in it, writable."""
        kind = np.dtype(dtype)
        if n * kind.itemsize < _LEAST_BYTES:
            return np.empty(n, kind)
        for array in self._kept:
            if sys.getrefcount(array) == _HELD_HERE and array.size == n and array.dtype == kind:
                array.flags.writeable = True
                return array
        array = np.empty(n, kind)
        self._kept.append(array)
        del self._kept[:-_MOST]
        return array
