"""Real time, as an argument. The virtual clock needs no class: it is the time of the event being handled."""

from __future__ import annotations

import time
from collections.abc import Callable


class WallClock:
    """Seconds since it was made, plus `offset_s`; `source` is the monotonic clock beneath."""

    def __init__(self, offset_s: float = 0.0, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._start_s = source() - offset_s

    def __call__(self) -> float:
        """Seconds since the start."""
        return self._source() - self._start_s
