"""Which rows of the fast lane a worker gets, by hand."""

from __future__ import annotations

import numpy as np

from fedsim.engine import compiled
from fedsim.engine.stages import HERE, POSTED, READY, WAITING
from fedsim.schedule.placement import ANY_WORKER


def _posted(stage: list[int], group_size: int) -> list[int]:
    """Rows that the first of two idle workers gets while the server waits; the last row makes a version."""
    n = len(stage)
    makes_version = np.zeros(n, np.bool_)
    makes_version[-1] = True
    column, host, workers = np.array(stage, np.int8), np.full(n, ANY_WORKER), np.full(n, -1)
    rows = compiled.posted(column, host, makes_version, workers, 0, 0, 0, 0, 2, 2, 2, group_size, n, True)
    assert (column[rows] == POSTED).all() and (workers[rows] == 0).all()
    found: list[int] = rows.tolist()
    return found


def test_an_idle_worker_gets_what_comes_before_anything_that_cannot_start() -> None:
    assert _posted([READY] * 3 + [WAITING] + [READY] * 20, group_size=6) == [0, 1, 2]


def test_such_a_group_has_three_eighths_of_a_full_one_at_least() -> None:
    assert _posted([READY] * 3 + [WAITING] + [READY] * 20, group_size=16) == [0, 1, 2, 4, 5, 6]


def test_rows_that_are_here_and_not_consumed_yet_do_not_count() -> None:
    assert _posted([HERE] * 5 + [READY] * 3 + [WAITING] + [READY] * 20, group_size=6) == [5, 6, 7]
