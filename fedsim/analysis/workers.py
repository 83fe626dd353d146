"""What the workers' time went into, from the cumulative rows of the table `workers`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.record.reader import Run

COUNTERS = (
    "n_tasks",
    "n_groups",
    "busy_s",
    "evaluating_s",
    "waiting_s",
    "sending_s",
    "sent_bytes",
    "received_bytes",
    "cpu_s",
)


class WorkerUse(NamedTuple):
    """One worker over all attempts: wall seconds that it was there and how they were spent, tasks, bytes."""

    worker: int
    wall_s: float
    n_tasks: int
    n_groups: int
    busy_s: float
    evaluating_s: float
    waiting_s: float
    sending_s: float
    sent_bytes: int
    received_bytes: int
    cpu_s: float
    peak_rss_bytes: int

    def share(self, seconds: float) -> float:
        """A part of the worker's wall time, between 0 and 1; 0 where none went by."""
        return seconds / self.wall_s if self.wall_s > 0 else 0.0


def worker_use(run: Run) -> list[WorkerUse]:
    """A `WorkerUse` for each worker that has rows, by rank. Counters begin at 0 with each attempt: they are added."""
    columns = run.columns("workers", ["worker", "wall_s", "rss_bytes", *COUNTERS])
    attempts = _attempt_of_row(run)
    return [_of(int(worker), columns, attempts) for worker in np.unique(columns["worker"])]


def _attempt_of_row(run: Run) -> NDArray[np.int64]:
    counts = [int(attempt["rows"]["workers"]) for attempt in run.attempts]
    return np.repeat(np.arange(len(counts)), counts)


def _of(worker: int, columns: dict[str, NDArray[np.generic]], attempts: NDArray[np.int64]) -> WorkerUse:
    rows = np.flatnonzero(columns["worker"] == worker)
    # The last row of each attempt: the place before which the next attempt's rows begin.
    last = rows[np.append(np.diff(attempts[rows]) > 0, True)]
    sums = {name: columns[name][last].sum().item() for name in ("wall_s", *COUNTERS)}
    return WorkerUse(worker=worker, peak_rss_bytes=int(columns["rss_bytes"][rows].max()), **sums)
