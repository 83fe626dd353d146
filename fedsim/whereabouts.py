"""Where arrays lie in memory, for compiled code that takes them by address. Shape: `G` vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Int64


def address(array: NDArray[Any]) -> int:
    """That of an array's first number."""
    return int(array.__array_interface__["data"][0])  # in half the time of `array.ctypes.data`


def addresses(vectors: NDArray[Any] | Sequence[NDArray[Any]]) -> Int64:
    """Those of the first numbers of vectors, the rows of an array or each wherever it lies: (G,)."""
    if isinstance(vectors, np.ndarray):
        return address(vectors) + vectors.strides[0] * np.arange(len(vectors))
    return np.array([address(vector) for vector in vectors], np.int64)
