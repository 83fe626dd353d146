"""Tiers: clients ranked by the expected time of a task, in equal parts, fastest first (TiFL, Chai et al. 2020)."""

from __future__ import annotations

import numpy as np

from fedsim.types import Float64, Int64


def tiers(expected_s: Float64, n_tiers: int) -> list[Int64]:
    """The clients of each tier, ascending, int64; equal times are ranked by client number."""
    order = np.argsort(expected_s, kind="stable")
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, n_tiers)]
