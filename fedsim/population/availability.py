"""Who is there when, for each kind of availability that a configuration may name."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsim import seeding
from fedsim.config import AvailabilityConfig
from fedsim.errors import ConfigError
from fedsim.population.windows import LONGEST_S, RESOLVED_PERIODS, ROUNDING, SHORTEST_S, Availability, read_windows
from fedsim.seeding import Purpose
from fedsim.types import Float64, Int64

# Phases are kept for bulk questions up to this many clients (32 MiB), and drawn again for each question above it.
KEPT_PHASES = 2**22
KEPT_OFFSETS = 100_000
CHUNK = 2**16


class Always(Availability):
    """Everybody, all the time."""

    always: ClassVar[bool] = True

    def window(self, client: int, time_s: float) -> tuple[float, float]:
        return 0.0, math.inf

    def windows(self, clients: Int64, time_s: float) -> tuple[Float64, Float64]:
        return np.zeros(clients.shape), np.full(clients.shape, math.inf)

    def resumed_end_s(self, client: int, begin_s: float, end_s: float) -> float:
        return end_s

    def last_end_s(self, client: int) -> float:
        return math.inf


class Periodic(Availability):
    """Windows [k period + offset, k period + offset + on), k any whole number; a client's offset is in [0, period)."""

    def __init__(self, seed: int, n_clients: int, period_s: float, on_s: float) -> None:
        self._seed, self._n_clients = seed, n_clients
        self._period, self._on = period_s, on_s
        self._horizon = period_s * RESOLVED_PERIODS
        self._kept: Float64 | None = None
        self.offset_s = lru_cache(maxsize=KEPT_OFFSETS)(self._drawn_offset_s)

    def _drawn_offset_s(self, client: int) -> float:
        """When the first of the client's windows that starts at or after time zero starts."""
        return seeding.uniform_pair(self._seed, Purpose.AVAILABILITY_PHASE, client, 0)[0] * self._period

    def window(self, client: int, time_s: float) -> tuple[float, float]:
        if time_s >= self._horizon:
            return time_s, math.inf
        offset = self.offset_s(client)
        k = self._cycle(offset, time_s)
        if time_s >= k * self._period + offset + self._on:
            k += 1.0
        start = k * self._period + offset
        return start, start + self._on

    def windows(self, clients: Int64, time_s: float) -> tuple[Float64, Float64]:
        if time_s >= self._horizon:
            return np.full(clients.shape, time_s), np.full(clients.shape, math.inf)
        offset, period = self._offsets(clients), self._period
        k = np.floor((time_s - offset) / period)
        k = k - (time_s < k * period + offset)
        k = k + (time_s >= (k + 1.0) * period + offset)
        k = k + (time_s >= k * period + offset + self._on)
        start = k * period + offset
        return start, start + self._on

    def resumed_end_s(self, client: int, begin_s: float, end_s: float) -> float:
        start, first_end = self.window(client, begin_s)
        if end_s <= first_end * (1.0 + ROUNDING):
            return min(end_s, first_end)
        left = end_s - first_end
        # Windows that the rest takes: all full but the last.
        n = max(1.0, float(math.ceil((left - end_s * ROUNDING) / self._on)))
        offset = self.offset_s(client)
        last_start = (self._cycle(offset, start) + n) * self._period + offset
        return last_start + min(max(left - (n - 1.0) * self._on, 0.0), self._on)

    def last_end_s(self, client: int) -> float:
        return math.inf

    def _cycle(self, offset: float, time_s: float) -> float:
        """The number of the last window that starts at or before `time_s`; the quotient may be one off by rounding."""
        k = float(math.floor((time_s - offset) / self._period))
        if time_s < k * self._period + offset:
            return k - 1.0
        return k + 1.0 if time_s >= (k + 1.0) * self._period + offset else k

    def _offsets(self, clients: Int64) -> Float64:
        """`offset_s` of clients; drawn once each where they can be kept."""
        if self._n_clients > KEPT_PHASES:
            return self._drawn_offsets(clients)
        if self._kept is None:
            self._kept = np.full(self._n_clients, np.nan)
        offsets: Float64 = self._kept[clients]
        missing = np.isnan(offsets)
        if missing.any():
            self._kept[clients[missing]] = self._drawn_offsets(clients[missing])
            offsets = self._kept[clients]
        return offsets

    def _drawn_offsets(self, clients: Int64) -> Float64:
        parts = [
            seeding.uniforms(self._seed, Purpose.AVAILABILITY_PHASE, clients[at : at + CHUNK], 0, 1)[:, 0]
            for at in range(0, clients.size, CHUNK)
        ]
        return np.concatenate(parts or [np.empty(0)]) * self._period


def build_availability(
    config: AvailabilityConfig, where: str, seed: int, base_dir: Path, n_clients: int
) -> Availability:
    """The windows of a configuration. `where` is its key, for messages; `base_dir` is where relative paths start.

    Raises ConfigError for periods that the clock cannot resolve, DataError for a bad trace.
    """
    period = None if config.kind == "always" else config.period_s
    if period is not None and period > LONGEST_S:
        raise ConfigError(f"{where}.period_s: got {period:.6g}, allowed: up to {LONGEST_S:.0e} seconds")
    if config.kind == "trace":
        return read_windows(base_dir / config.path, config.period_s, n_clients)
    if config.kind == "always" or config.on_fraction == 1.0:
        return Always()
    on_s = config.on_fraction * config.period_s
    if on_s < SHORTEST_S:
        raise ConfigError(
            f"{where}: period_s x on_fraction is {on_s:.3g} s, allowed: windows of at least {SHORTEST_S:.0e} s"
        )
    return Periodic(seed, n_clients, config.period_s, on_s)
