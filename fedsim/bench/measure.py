"""What a record says about speed, load and memory, start-up left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsim.errors import RecordError
from fedsim.record.reader import Run
from fedsim.types import Float64, Outcome

START_UP = 0.2  # share of a run's updates in which shards are made and torch and the caches warm up


class Window(NamedTuple):
    """The steady part of a run: from one arrival to the last, in wall seconds, and the updates between."""

    start_s: float
    end_s: float
    n_updates: int

    @property
    def updates_per_s(self) -> float:
        """Updates a second."""
        return self.n_updates / (self.end_s - self.start_s)


def steady(run: Run, start_up: float = START_UP) -> Window:
    """The run without the first `start_up` of its updates, by the arrivals at rank zero.

    Raises:
        RecordError: there are too few updates to tell.
    """
    columns = run.columns("tasks", ["outcome", "wall_arrival_s"])
    arrivals_s = np.sort(columns["wall_arrival_s"][columns["outcome"] == Outcome.APPLIED])
    first = int(start_up * arrivals_s.size)
    if arrivals_s.size - first < 2 or not arrivals_s[-1] > arrivals_s[first]:
        raise RecordError(f"{run.path}: {arrivals_s.size} updates are too few to measure; allowed: more --updates")
    return Window(float(arrivals_s[first]), float(arrivals_s[-1]), int(arrivals_s.size - first - 1))


def share_of_time(run: Run, rank: int, counter: str, window: Window) -> float:
    """Growth of a time counter of `workers` (`busy_s`, `cpu_s`) over the wall time that it took, within the window.

    Raises:
        RecordError: the rank has fewer than two rows there.
    """
    columns = run.columns("workers", ["wall_s", "worker", counter])
    walls_s = columns["wall_s"]
    rows = np.flatnonzero((columns["worker"] == rank) & (walls_s >= window.start_s) & (walls_s <= window.end_s))
    if rows.size < 2:
        raise RecordError(
            f"{run.path}: {rows.size} rows of rank {rank} in {window.end_s - window.start_s:.2f} steady seconds; "
            "allowed: two or more, by more --updates or a smaller record.flush_s"
        )
    first, last = rows[0], rows[-1]
    return float((columns[counter][last] - columns[counter][first]) / (walls_s[last] - walls_s[first]))


def resident_bytes(run: Run, updates: Sequence[int]) -> dict[int, list[int]]:
    """Resident memory of each rank when so many updates had been applied: by rank, in the order of `updates`.

    It is that of the rank's first row at or after the moment, or of its last one.
    """
    moments_s = applied_s(run)[np.asarray(updates) - 1]
    columns = run.columns("workers", ["wall_s", "worker", "rss_bytes"])
    found = {}
    for rank in np.unique(columns["worker"]).tolist():
        rows = np.flatnonzero(columns["worker"] == rank)
        at = np.minimum(np.searchsorted(columns["wall_s"][rows], moments_s), rows.size - 1)
        found[rank] = [int(value) for value in columns["rss_bytes"][rows[at]]]
    return found


def applied_s(run: Run) -> Float64:
    """Wall time at which each update was part of a version, in the order of application: (updates,)."""
    columns = run.columns("versions", ["wall_s", "n_updates"])
    moments_s: Float64 = np.repeat(columns["wall_s"], columns["n_updates"])
    return moments_s
