"""Tasks and reports in columns, as they travel: sequences whose items are made when somebody asks for one.

Where rank zero handles tasks by the thousand a tuple each would be most of its work, and at a worker that trains tiny
models a good part of it; so they keep the records that the messages hold (`rows`) and work on their columns.
Compiled code knows the places of their fields: `grouporders`, `copying` and `reporting` of `fedsim.training` have to be
touched when these change, or what was kept on a disk reads other columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Task, TaskReport

Records = NDArray[Any]  # structured, (n,)

TASK = np.dtype(
    [  # eight bytes each: the stacked paths read them as a table
        ("task", "<i8"),
        ("client", "<i8"),
        ("base_version", "<i8"),
        ("n_samples", "<i8"),
        ("n_steps", "<i8"),
        ("first_step", "<i8"),
        ("learning_rate", "<f8"),
        ("dispatch_s", "<f8"),
        ("arrival_s", "<f8"),
        ("send", "<i8"),
    ]
)
REPORT = np.dtype(
    [
        ("task", "<i8"),
        ("n_samples", "<i8"),
        ("n_steps", "<i8"),
        ("loss_before", "<f8"),
        ("loss_after", "<f8"),
        ("update_norm", "<f8"),
        ("train_s", "<f8"),
        ("sent", "<i8"),
    ]
)

TASK_FIELDS = {name: place for place, name in enumerate(TASK.names or ())}
REPORT_FIELDS = {name: place for place, name in enumerate(REPORT.names or ())}

NOT_SENT, SENT, IN_ROW = range(3)  # of a report's `sent`: from IN_ROW on, the update lies in a row of that number more


class TaskTable(Sequence[Task]):
    """Tasks from their records; of a task's durations none are there."""

    def __init__(self, rows: Records) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.size

    def __iter__(self) -> Iterator[Task]:
        return map(_task, self.rows.tolist())

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> TaskTable: ...
    def __getitem__(self, index: int | slice) -> Task | TaskTable:
        return TaskTable(self.rows[index]) if isinstance(index, slice) else _task(self.rows[index].tolist())

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> TaskTable:
        """The same tasks; as they are if they come from records."""
        if isinstance(tasks, TaskTable):
            return tasks
        return cls(np.array([(*task[:8], task.arrival_s, 1) for task in tasks], dtype=TASK))


class ReportTable(Sequence[TaskReport]):
    """Reports from their records; all are from the worker of rank `rank`."""

    def __init__(self, rows: Records, rank: int) -> None:
        self.rows = rows
        self.rank = rank

    def __len__(self) -> int:
        return self.rows.size

    def __iter__(self) -> Iterator[TaskReport]:
        rank = self.rank
        return (_report(record, rank) for record in self.rows.tolist())

    @overload
    def __getitem__(self, index: int) -> TaskReport: ...
    @overload
    def __getitem__(self, index: slice) -> ReportTable: ...
    def __getitem__(self, index: int | slice) -> TaskReport | ReportTable:
        if isinstance(index, slice):
            return ReportTable(self.rows[index], self.rank)
        return _report(self.rows[index].tolist(), self.rank)

    @classmethod
    def of(cls, reports: Sequence[TaskReport]) -> ReportTable:
        """The same reports, of one worker; as they are if they come from records."""
        if isinstance(reports, ReportTable):
            return reports
        rows = np.array([(r.task, *r[2:], 1) for r in reports], dtype=REPORT)
        return cls(rows, reports[0].worker if reports else 0)


def _task(record: Sequence[Any]) -> Task:
    task, client, base_version, n_samples, n_steps, first_step, learning_rate, dispatch_s, arrival_s, _ = record
    times = (dispatch_s, math.nan, math.nan, math.nan, arrival_s, math.nan)
    return Task(task, client, base_version, n_samples, n_steps, first_step, learning_rate, *times, False, True)


def _report(record: Sequence[Any], rank: int) -> TaskReport:
    return TaskReport(record[0], rank, *record[1:7])
