"""The cores that the calling thread may use, where the system tells and lets one choose."""

from __future__ import annotations

import contextlib
import os


def allowed() -> frozenset[int]:
    """Their numbers; none where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def keep_to(cores: frozenset[int]) -> None:
    """From now on it uses these cores alone, as far as the system lets it; none change nothing."""
    if cores:
        with contextlib.suppress(OSError):  # the system may have taken cores away meanwhile
            os.sched_setaffinity(0, cores)
