"""The rows of the fast lane: updates are looked at until they are let go of, and no longer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from fedsim.engine.rows import Rows
from fedsim.engine.stages import POSTED
from fedsim.schedule.ahead import Planned
from fedsim.schedule.alone import TaskColumns
from fedsim.tables import REPORT


class Vector(np.ndarray[Any, Any]):
    """An array that a weak reference can be had of."""


def known(n: int) -> Rows:
    whole, real = np.arange(n), np.zeros(n)
    columns = TaskColumns(
        task=whole, client=whole, outcome=whole, base_version=whole, applied_version=whole, staleness=whole,
        dispatch_s=real, download_s=real, compute_s=real, upload_s=real, arrival_s=real, n_samples=whole, n_steps=whole,
    )  # fmt: skip
    rows = Rows(n_scalars=0)
    rows.extend(Planned(columns, real, np.zeros(n, np.bool_), {}), whole, np.full(n, POSTED, np.int8), real)
    return rows


def vectors(values: list[float]) -> list[Vector]:
    return [np.full(3, value, np.float32).view(Vector) for value in values]


def put(rows: Rows, index: list[int], updates: Any) -> None:
    reports = np.zeros(len(index), REPORT)
    reports["task"] = index
    rows.put(np.array(index), 1, reports, updates, 0.0)


def test_an_update_is_found_by_its_row_however_it_came() -> None:
    rows = known(5)
    put(rows, [0, 2], np.array([[0.0] * 3, [2.0] * 3], np.float32))
    put(rows, [3, 1], vectors([3.0, 1.0]))
    assert [float(rows.vector(row)[0]) for row in range(4)] == [0.0, 1.0, 2.0, 3.0]
    rows.let_go(slice(0, 2))
    assert [float(rows.vector(row)[0]) for row in (2, 3)] == [2.0, 3.0]


def test_large_updates_are_let_go_of_one_by_one_and_small_ones_with_the_last_that_came_with_them() -> None:
    rows = known(4)
    large = vectors([0.0, 2.0])
    whole = np.zeros((2, 3), np.float32).view(Vector)
    alive = [weakref.ref(vector) for vector in (*large, whole)]
    put(rows, [0, 2], large)
    put(rows, [1, 3], whole)
    del large, whole

    def living() -> list[bool]:
        gc.collect()
        return [vector() is not None for vector in alive]

    assert living() == [True, True, True]
    rows.let_go(slice(0, 2))
    assert living() == [False, True, True]
    rows.let_go(slice(2, 3))
    assert living() == [False, False, True]
    rows.let_go(slice(3, 4))
    assert living() == [False, False, False]
