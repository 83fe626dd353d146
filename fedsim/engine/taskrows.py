"""Rows of the record's table of tasks."""

from __future__ import annotations

import math
from typing import Any

from fedsim.types import Outcome, Task, TaskReport

_NAN = math.nan


def applied_row(
    task: Task,
    arrival_s: float,
    met_version: int,
    report: TaskReport,
    times_s: tuple[float, float],
    diagnostics: Any,
) -> tuple[float, ...]:
    """A row of the `tasks` table for a consumed update; `times_s` are those of its dispatch and arrival in reality."""
    return (
        task.task,
        task.client,
        report.worker,
        Outcome.APPLIED,
        task.base_version,
        met_version + 1,
        met_version - task.base_version,
        task.dispatch_s,
        task.download_s,
        task.compute_s,
        task.upload_s,
        arrival_s,
        *times_s,
        report.train_s,
        report.n_samples,
        report.n_steps,
        report.loss_before,
        report.loss_after,
        diagnostics.weight,
        report.update_norm,
        *diagnostics.scalars,
    )


def ended_row(task: Task, outcome: Outcome, n_scalars: int) -> tuple[float, ...]:
    """A row of the `tasks` table for a task that ended without an update being consumed."""
    return (
        task.task,
        task.client,
        -1,
        outcome,
        task.base_version,
        -1,
        -1,
        task.dispatch_s,
        task.download_s,
        task.compute_s,
        task.upload_s,
        task.arrival_s,
        *(_NAN, _NAN, _NAN),
        task.n_samples,
        task.n_steps,
        *(_NAN,) * (4 + n_scalars),
    )
