"""What is said of failures that a run survives; each becomes a row of the record's `failures`."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int, int, str, str], None]
"""Told of a failure: worker (its index), client, task (-1: none), kind, text."""

WORKER_LOST = "WorkerLost"


def unreported(worker: int, client: int, task: int, kind: str, text: str) -> None:
    """For nobody's ears."""
