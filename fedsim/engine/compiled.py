"""What the fast lane does for each update, compiled: the same operations in the same order as one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.schedule.compiled import machine_code
from fedsim.types import Float64, Int64


@machine_code
def merged(
    begun: Float64, staleness: Int64, weights: Float64, makes_version: NDArray[np.bool_]
) -> tuple[Float64, Float64]:
    """What went into each version that the updates (R,) make, and what into the next one so far.

    Rows (V, 4) of the number of updates, their weights, sum and maximum of their staleness, each as
    `fedsim.engine.making.Merged` adds it up; `begun` (4,) is what was there before.
    """
    one, rows, n = begun.copy(), np.empty((int(makes_version.sum()), 4)), 0
    for r in range(staleness.size):
        one[0] += 1.0
        one[1] += weights[r]
        one[2] += staleness[r]
        one[3] = max(one[3], staleness[r])
        if makes_version[r]:
            rows[n] = one
            one[:] = 0.0
            n += 1
    return rows, one
