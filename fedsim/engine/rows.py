"""The rows that the fast lane knows: columns of tasks in the order in which they are consumed, and of their results."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.schedule.ahead import Planned
from fedsim.tables import REPORT, TASK
from fedsim.types import Float32, Float64, Int64, Outcome, Task, TaskReport

_COPIED = 2048  # consumed rows that are kept before all columns are copied without them


class Rows:
    """Rows from `first` on; `row - first` is an index into every column. Consumed ones stay until they are recorded.

    `tasks` are records as they travel (`TASK`), `reports` likewise (`REPORT`); the other columns say which version an
    update meets, when its task was submitted and it arrived, where it lies, and what the rule said of it.
    `hold` is the number of the array that an update came in, `place` its place there: updates that came in one array
    are let go of with the last of them.
    """

    def __init__(self, n_scalars: int) -> None:
        from fedsim import addresses  # loads numba, as does the next
        from fedsim.engine import compiled

        self._compiled, self._address = compiled, addresses.start
        self.first = 0
        self.n_recorded = 0  # rows before that are in the record
        self._held: list[Any] = []  # arrays (G, P), or (P,) of a large update
        self._n_left = np.empty(0, np.int64)  # updates in each that are not let go of
        self._free: list[int] = []  # numbers of what holds none
        self.tasks: NDArray[Any] = np.empty(0, TASK)
        self.reports: NDArray[Any] = np.empty(0, REPORT)
        self.number = self.base = self.host = np.empty(0, np.int64)
        self.download_s = self.compute_s = self.upload_s = self.arrival_s = np.empty(0)
        self.makes_version = np.empty(0, np.bool_)
        self.stage = np.empty(0, np.int8)
        self.met_version = self.staleness = np.empty(0, np.int64)
        self.worker = self.address = self.hold = self.place = np.empty(0, np.int64)
        self.submitted_s = self.arrived_s = self.weight = np.empty(0)
        self.scalars = np.empty((0, n_scalars))

    @property
    def stop(self) -> int:
        """One past the last row known."""
        return self.first + self.number.size

    def extend(self, planned: Planned, host: Int64, stage: NDArray[np.int8], submitted_s: Float64) -> None:
        """Knows further rows: those planned, with the host and stage of each, and since when it can be trained."""
        done = max(self.n_recorded - self.first, 0)
        done = done if done > _COPIED or done == self.number.size else 0
        columns, n = planned.tasks, planned.rates.size
        tasks = np.zeros(n, TASK)
        for name in ("task", "client", "base_version", "n_samples", "n_steps", "dispatch_s", "arrival_s"):
            tasks[name] = getattr(columns, name)
        tasks["learning_rate"] = planned.rates
        new = {
            "tasks": tasks,
            "number": columns.task,
            "base": columns.base_version,
            "host": host,
            "stage": stage,
            "submitted_s": submitted_s,
            "makes_version": planned.makes_version,
            "met_version": columns.applied_version - 1,
            "staleness": columns.staleness,
            "download_s": columns.download_s,
            "compute_s": columns.compute_s,
            "upload_s": columns.upload_s,
            "arrival_s": columns.arrival_s,
        }
        for name, old in self._columns():
            block = new.get(name)
            if block is None:
                block = np.empty((n, *old.shape[1:]), old.dtype)
            setattr(self, name, _joined(old[done:], block))
        self.first += done

    def _columns(self) -> list[tuple[str, NDArray[Any]]]:
        return [(name, value) for name, value in vars(self).items() if name[0] != "_" and isinstance(value, np.ndarray)]

    def put(self, index: Int64, worker: int, reports: NDArray[Any], updates: Any, arrived_s: float) -> None:
        """The updates of some rows are here, (G, P) or a list of (P,), with their reports."""
        assert len(updates) == index.size
        if isinstance(updates, np.ndarray):
            self._put(index, worker, reports, updates, updates.strides[0], arrived_s)
            return
        for i, update in enumerate(updates):  # large ones, each in memory of its own
            self._put(index[i : i + 1], worker, reports[i : i + 1], update, 0, arrived_s)

    def _put(
        self, index: Int64, worker: int, reports: NDArray[Any], updates: Any, stride: int, arrived_s: float
    ) -> None:
        hold = self._hold(updates, index.size)
        are_theirs = self._compiled.put(
            index, reports, self._address(updates), stride, hold, worker, arrived_s, self.number, self.stage,
            self.reports, self.address, self.hold, self.place, self.worker, self.arrived_s,
        )  # fmt: skip
        assert are_theirs

    def _hold(self, updates: Any, n: int) -> int:
        """The number of an array from now on, until `n` updates in it were let go of."""
        if not self._free:
            n_more = max(64, len(self._held))
            self._free = list(range(len(self._held), len(self._held) + n_more))
            self._held += [None] * n_more
            self._n_left = np.concatenate([self._n_left, np.zeros(n_more, np.int64)])
        hold = self._free.pop()
        self._held[hold], self._n_left[hold] = updates, n
        return hold

    def vector(self, index: int) -> Float32:
        """The update of a row, (P,)."""
        held = self._held[int(self.hold[index])]
        vector_P: Float32 = held[self.place[index]] if held.ndim > 1 else held
        return vector_P

    def let_go(self, part: slice) -> None:
        """The updates of some rows are looked at no more."""
        for hold in self._compiled.let_go(self.hold[part], self._n_left).tolist():
            self._held[hold] = None
            self._free.append(hold)

    def task(self, index: int) -> Task:
        """All of a row's task."""
        own = self.tasks[index].tolist()
        durations = (float(self.download_s[index]), float(self.compute_s[index]), float(self.upload_s[index]))
        arrival_s = float(self.arrival_s[index])
        return Task._make((*own[:8], *durations, arrival_s, arrival_s, False, True))

    def report(self, index: int) -> TaskReport:
        """What was said of a row's update."""
        record = self.reports[index].tolist()
        return TaskReport(record[0], int(self.worker[index]), *record[1:7])

    def unrecorded(self, row: int) -> list[NDArray[Any]]:
        """The columns of the record's table of tasks for what was consumed before `row` and is not recorded yet; views,
        to be copied before anything else happens."""
        start, stop = self.n_recorded - self.first, row - self.first
        self.n_recorded = row
        part = slice(start, stop)
        tasks, reports, met = self.tasks[part], self.reports[part], self.met_version[part]
        columns = [tasks["task"], tasks["client"], self.worker[part], np.full(stop - start, int(Outcome.APPLIED))]
        columns += [tasks["base_version"], met + 1, self.staleness[part], tasks["dispatch_s"]]
        columns += [self.download_s[part], self.compute_s[part], self.upload_s[part], self.arrival_s[part]]
        columns += [self.submitted_s[part], self.arrived_s[part], reports["train_s"]]
        columns += [reports["n_samples"], reports["n_steps"], reports["loss_before"], reports["loss_after"]]
        return [*columns, self.weight[part], reports["update_norm"], *self.scalars[part].T]


def _joined(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """One array behind the other; records as the words that they consist of, since fields take twenty times as long."""
    if old.dtype.names is None:
        return np.concatenate([old, new])
    words = [records.view(np.int64) for records in (old, new)]
    return np.concatenate(words).view(old.dtype)
