"""The passes of `fedsim.aggregation.accumulate` over short vectors, compiled: the same operations on each value in the
same order, so the same bits, in one call each (2,410 values: 2 us instead of 7).

Loading this takes half a second: it is for long runs (`Kernels.hasten`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from fedsim.addresses import array, pointer
from fedsim.types import Float32, Float64, Int64

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


# Values of a block: 4 MiB of weights and sum, which stay in the last cache. Updates come from memory, and long runs of
# each come faster: a million values took 224 us with this block, 328 with 2^16, 368 with 4,096; with a version of each
# update 355, 437 and 518. Of 2 million: 530, 637 and 640.
_BLOCK = 2**18


@_compiled
def consume(weights_P: Float64, total_P: Float64, addresses: Int64, new: Int64, steps: Float64) -> None:
    """`add` of one vector after the other, or `complete` where `new` has the address of a version to be written.

    All are float32 (P,), by their addresses (R,); `steps` (R, 5) has weight, kept, keep, scale of each, and whether
    it is the first of its sum. Block by block, so that what all of them change is read and written once.
    """
    one, n = np.float32(1.0), weights_P.size
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        weights, total = weights_P[start:stop], total_P[start:stop]
        for r in range(addresses.size):
            vector = array(pointer(one, addresses[r] + 4 * start), (stop - start,))
            weight, kept, keep, scale, is_first = steps[r, 0], steps[r, 1], steps[r, 2], steps[r, 3], steps[r, 4] != 0.0
            if new[r] == 0:
                add(total, vector, weight, kept, is_first)
            else:
                complete(weights, total, vector, array(pointer(one, new[r] + 4 * start), (stop - start,)), weight, kept,
                         keep, scale, is_first)  # fmt: skip


@_compiled
def mean_steps(
    shares: Float64, discounts: Float64, makes_version: NDArray[np.bool_], rate: float, weight_sum: float, n: int
) -> tuple[Float64, float, int]:
    """What `MeanRule.accumulate` and `complete` tell the kernels of `R` updates, (R, 5) as in `consume`.

    And the sum of shares and the number of updates that the next version has when they are in.
    """
    steps = np.ones((shares.size, 5))
    for r in range(shares.size):
        weight_sum = shares[r] if n == 0 else weight_sum + shares[r]
        steps[r, 0], steps[r, 3], steps[r, 4] = shares[r] * discounts[r], rate / weight_sum, n == 0
        n += 1
        if makes_version[r]:
            weight_sum, n = 0.0, 0
    return steps, weight_sum, n


@_compiled
def mixing_steps(weights: Float64, makes_version: NDArray[np.bool_], kept: float, n: int) -> tuple[Float64, float, int]:
    """The same of FedAsync, of updates that enter with `weights`; what is kept of the old model in place of a sum."""
    steps = np.ones((weights.size, 5))
    for r in range(weights.size):
        keep = (1.0 - weights[r]) * (kept if n else 1.0)
        steps[r, 0], steps[r, 1], steps[r, 2], steps[r, 4] = weights[r], 1.0 - weights[r], keep, n == 0
        kept, n = keep, n + 1
        if makes_version[r]:
            kept, n = 0.0, 0
    return steps, kept, n
