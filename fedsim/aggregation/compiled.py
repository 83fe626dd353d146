"""The passes of `fedsim.aggregation.accumulate` over short vectors, compiled: the same operations on each value in the
same order, so the same bits, in one call each (2,410 values: 2 us instead of 7).

Loading this takes half a second: it is for long runs (`Kernels.hasten`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from fedsim.types import Float32, Float64

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    """The function as machine code, kept on the disk between processes; no multiplication is fused with an addition."""
    return cast(F, numba.njit(cache=True, fastmath=False)(function))


@_compiled
def add(total_P: Float64, vector_P: Float32, weight: float, keep: float, is_first: bool) -> None:
    """See `Kernels.add`. A factor of 1 changes nothing, so it needs no case of its own."""
    if is_first:
        for i in range(total_P.size):
            total_P[i] = vector_P[i] * weight
    else:
        for i in range(total_P.size):
            total_P[i] = total_P[i] * keep + vector_P[i] * weight


@_compiled
def complete(
    weights_P: Float64,
    total_P: Float64,
    vector_P: Float32,
    new_P: Float32,
    weight: float,
    kept: float,
    keep: float,
    scale: float,
    is_first: bool,
) -> None:
    """See `Kernels.complete`."""
    for i in range(weights_P.size):
        term = vector_P[i] * weight
        if not is_first:
            term += total_P[i] * kept
        weights_P[i] = weights_P[i] * keep + term * scale
        new_P[i] = weights_P[i]
