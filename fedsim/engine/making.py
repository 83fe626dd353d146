"""What the server keeps of the version that is being made."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        self.weight_sum += weight
        self.staleness_sum += staleness
        self.staleness_max = max(self.staleness_max, staleness)

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
