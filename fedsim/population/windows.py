"""When clients are there: half-open windows [start, end) on the virtual clock, of each client; and those of a trace.

Every question is answered from one: which window holds a time, or which is the next. Bounds of windows are computed in
one way only (cycle x period + offset), so a client is there at the very start that was announced, and never at an end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsim.population.traces import Columns, read_columns
from fedsim.types import Float64, Int64

# Past this many periods a float64 no longer resolves a period well: clients count as there from then on.
RESOLVED_PERIODS = 2.0**40
# Work as long as what is left of a window must not wait for the next one because 0.1 + 0.2 > 0.3.
ROUNDING = 2.0**-50
# Windows shorter than this, and periods and times beyond this, would not leave all arithmetic finite.
SHORTEST_S, LONGEST_S = 1e-9, 1e60


class Availability(ABC):
    """The windows of all clients."""

    always: ClassVar[bool] = False

    @abstractmethod
    def window(self, client: int, time_s: float) -> tuple[float, float]:
        """(start_s, end_s) of the client's window that holds `time_s`, else of its next one; (inf, inf): no more."""

    @abstractmethod
    def windows(self, clients: Int64, time_s: float) -> tuple[Float64, Float64]:
        """`window` for clients of shape (C,): starts and ends, of shape (C,), equal bit for bit."""

    @abstractmethod
    def resumed_end_s(self, client: int, begin_s: float, end_s: float) -> float:
        """When work that would last from `begin_s` to `end_s` is over if it stands still while the client is away.

        The client is there at `begin_s`. inf if its windows end before the work does.
        """

    @abstractmethod
    def last_end_s(self, client: int) -> float:
        """When the client's last window ends: inf if they go on for ever, -inf if it has none."""


class Traced(Availability):
    """Windows from a trace, repeated every `period_s` if that is given. A client without rows is never there."""

    def __init__(self, merged: Iterable[tuple[int, list[tuple[float, float]]]], period_s: float | None) -> None:
        """`merged` gives clients in rising order and their windows, sorted and disjoint, all starts in [0, period)."""
        self._period = 0.0 if period_s is None else period_s
        self._horizon = math.inf if period_s is None else period_s * RESOLVED_PERIODS
        self._starts, self._ends = array("d"), array("d")
        self._done = array("d")  # time there from the client's first window to the end of this one
        self._spans: dict[int, tuple[int, int]] = {}
        for client, windows in merged:
            self._add(client, windows)
        self._clients = np.array(list(self._spans), np.int64)
        self._bounds = np.array(list(self._spans.values()), np.int64)
        self._starts_np, self._ends_np = np.array(self._starts), np.array(self._ends)

    def _add(self, client: int, windows: list[tuple[float, float]]) -> None:
        first, done = len(self._starts), 0.0
        for start, end in windows:
            done += end - start
            self._starts.append(start)
            self._ends.append(end)
            self._done.append(done)
        self._spans[client] = (first, len(self._starts))

    def window(self, client: int, time_s: float) -> tuple[float, float]:
        span = self._spans.get(client)
        if span is None:
            return math.inf, math.inf
        if time_s >= self._horizon:
            return time_s, math.inf
        cycle, j = self._last_started(span, time_s)
        if j < span[0] or time_s >= cycle * self._period + self._ends[j]:
            cycle, j = self._following(span, cycle, j)
        if j == span[1]:
            return math.inf, math.inf
        base = cycle * self._period
        return base + self._starts[j], base + self._ends[j]

    def windows(self, clients: Int64, time_s: float) -> tuple[Float64, Float64]:
        starts, ends = np.full(clients.shape, math.inf), np.full(clients.shape, math.inf)
        known, low, high = self._spans_of(clients)
        if time_s >= self._horizon:
            starts[known] = time_s
            return starts, ends
        base, j = self._period * self._cycle(time_s), low.copy()
        stop = high.copy()
        while (open_ := j < stop).any():  # binary search of all clients at once: the first window that has not started
            middle = np.minimum((j + stop) // 2, high - 1)
            started = base + self._starts_np[middle] <= time_s
            j = np.where(open_ & started, middle + 1, j)
            stop = np.where(open_ & ~started, middle, stop)
        cycle, j = self._current_or_following(low, high, j - 1, time_s)
        some = j < high
        at, base_C = known[some], cycle[some] * self._period
        starts[at], ends[at] = base_C + self._starts_np[j[some]], base_C + self._ends_np[j[some]]
        return starts, ends

    def _current_or_following(self, low: Int64, high: Int64, j: Int64, time_s: float) -> tuple[Float64, Int64]:
        """(cycle, index) of the windows that hold `time_s` or come next, given the last started; index `high`: none."""
        cycle = np.full(j.shape, self._cycle(time_s))
        if self._period:
            wrapped = j < low
            cycle, j = cycle - wrapped, np.where(wrapped, high - 1, j)
        over = (j < low) | (time_s >= cycle * self._period + self._ends_np[np.maximum(j, low)])
        j = j + over
        if self._period:
            wrapped = j == high
            cycle, j = cycle + wrapped, np.where(wrapped, low, j)
        return cycle, j

    def _spans_of(self, clients: Int64) -> tuple[Int64, Int64, Int64]:
        """Positions in `clients` of those that have windows, and the bounds of their spans."""
        slot = np.minimum(np.searchsorted(self._clients, clients), self._clients.size - 1)
        known = np.flatnonzero(self._clients[slot] == clients)
        bounds = self._bounds[slot[known]]
        return known, bounds[:, 0], bounds[:, 1]

    def resumed_end_s(self, client: int, begin_s: float, end_s: float) -> float:
        if begin_s >= self._horizon:
            return end_s
        span = self._spans[client]
        cycle, j = self._last_started(span, begin_s)
        first_end = cycle * self._period + self._ends[j]
        if end_s <= first_end * (1.0 + ROUNDING):
            return min(end_s, first_end)
        return self._when_done(span, cycle, self._done[j] + (end_s - first_end), end_s * ROUNDING)

    def _when_done(self, span: tuple[int, int], cycle: float, done: float, slack: float) -> float:
        """When the client has been there for `done` seconds, counted from its first window of `cycle`; inf if never."""
        low, high = span
        if self._period:
            each = self._done[high - 1]
            n = max(0.0, float(math.ceil((done - slack) / each)) - 1.0)
            cycle, done = cycle + n, done - n * each
        j = bisect_left(self._done, done - slack, low, high)
        if j == high:
            if not self._period:
                return math.inf
            j -= 1
        into = max(done - (self._done[j - 1] if j > low else 0.0), 0.0)
        return cycle * self._period + min(self._starts[j] + into, self._ends[j])

    def last_end_s(self, client: int) -> float:
        if client not in self._spans:
            return -math.inf
        return math.inf if self._period else self._ends[self._spans[client][1] - 1]

    def _last_started(self, span: tuple[int, int], time_s: float) -> tuple[float, int]:
        """(cycle, index) of the client's last window with a start up to `time_s`; an index below the span: none yet."""
        cycle = self._cycle(time_s)
        j = bisect_right(self._starts, time_s, *span, key=(cycle * self._period).__add__) - 1
        if j < span[0] and self._period:
            return cycle - 1.0, span[1] - 1
        return cycle, j

    def _following(self, span: tuple[int, int], cycle: float, j: int) -> tuple[float, int]:
        """(cycle, index) of the window after that one; the index after the span's last: none."""
        if j + 1 == span[1] and self._period:
            return cycle + 1.0, span[0]
        return cycle, j + 1

    def _cycle(self, time_s: float) -> float:
        """The number of the period that holds `time_s` (0 without periods); the quotient may be one off by rounding."""
        if not self._period:
            return 0.0
        k = float(math.floor(time_s / self._period))
        if time_s < k * self._period:
            return k - 1.0
        return k + 1.0 if time_s >= (k + 1.0) * self._period else k


def read_windows(path: Path, period_s: float | None, n_clients: int) -> Traced:
    """The windows of a CSV file with columns client, start_s, end_s, those that overlap or touch made one.

    With a period, windows lie in [0, period_s], and one that touches its end goes on in one that starts at 0.
    Raises DataError for a bad file.
    """
    columns = read_columns(path, required=("client", "start_s", "end_s"), optional=(), n_clients=n_clients)
    _refuse_bad_windows(columns, LONGEST_S if period_s is None else period_s)
    assert columns.clients is not None
    start, end = columns.floats["start_s"], columns.floats["end_s"]
    order = np.lexsort((start, columns.clients))
    rows = zip(columns.clients[order].tolist(), start[order].tolist(), end[order].tolist(), strict=True)
    groups = groupby(rows, key=itemgetter(0))
    return Traced(((client, _merged(((s, e) for _, s, e in group), period_s)) for client, group in groups), period_s)


def _refuse_bad_windows(columns: Columns, longest_s: float) -> None:
    start, end = columns.floats["start_s"], columns.floats["end_s"]
    columns.refuse(start < 0.0, "start_s", "at least 0")
    columns.refuse(end > longest_s, "end_s", f"up to {longest_s:.6g}, where the period or the clock ends")
    columns.refuse(end - start < SHORTEST_S, "end_s", f"at least {SHORTEST_S:.0e} s after start_s")


def _merged(windows: Iterable[tuple[float, float]], period_s: float | None) -> list[tuple[float, float]]:
    """Disjoint windows from sorted ones; over a period's end, too."""
    merged: list[tuple[float, float]] = []
    for start, end in windows:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if merged[0][0] == 0.0 and merged[-1][1] == period_s:
        first_end = merged[0][1]
        if len(merged) == 1:
            return [(0.0, math.inf)]
        merged[-1] = (merged[-1][0], period_s + first_end)
        del merged[0]
    return merged
