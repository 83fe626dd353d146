"""What the server keeps of the version that is being made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float64, Int64


@dataclass
class Merged:
    """What went into the version being made."""

    n_updates: int = 0
    weight_sum: float = 0.0
    staleness_sum: int = 0
    staleness_max: int = 0

    def add(self, staleness: int, weight: float) -> None:
        """One update more."""
        self.n_updates += 1
        self.weight_sum += float(weight)  # a rule may say it in another type: see `fedsim.engine.compiled`
        self.staleness_sum += staleness
        self.staleness_max = max(self.staleness_max, staleness)

    def numbers(self) -> Float64:
        """The same as numbers (4,)."""
        return np.array([self.n_updates, self.weight_sum, self.staleness_sum, self.staleness_max], np.float64)

    @classmethod
    def of(cls, numbers_4: Float64) -> Merged:
        """The inverse of `numbers`."""
        n_updates, weight_sum, staleness_sum, staleness_max = numbers_4.tolist()
        return cls(int(n_updates), weight_sum, int(staleness_sum), int(staleness_max))

    @staticmethod
    def columns(version_V: Int64, virtual_s_V: Float64, wall_s_V: Float64, numbers_V4: Float64) -> list[NDArray[Any]]:
        """The columns of the record's table of versions, of such that were made of one update at least; see `row`."""
        n_updates, weight_sum, staleness_sum, staleness_max = numbers_V4.T
        ends = (weight_sum, staleness_sum / n_updates, staleness_max.astype(np.int64))
        return [version_V, virtual_s_V, wall_s_V, n_updates.astype(np.int64), *ends]

    def row(self, version: int, virtual_s: float, wall_s: float) -> tuple[float, ...]:
        n = self.n_updates
        mean = self.staleness_sum / n if n else math.nan
        return (version, virtual_s, wall_s, n, self.weight_sum, mean, self.staleness_max if n else -1)


@dataclass
class Left:
    """What is left to do of an event once all that is owed is consumed: a version, a last one, one cut short."""

    merge: bool = False
    is_last: bool = False
    is_short: bool = False  # a tier's round, cut short by the stop
    is_patient: bool = False
