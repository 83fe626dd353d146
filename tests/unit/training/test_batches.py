"""Which rows each step sees, in the three orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsim import seeding
from fedsim.config import RunConfig
from fedsim.training import batches
from fedsim.types import Int64, Task

Make = Callable[..., Any]


def _rows(config: RunConfig, task: Task) -> list[Int64]:
    """The rows of each batch."""
    size = config.training.batch_size
    return [
        order_N[batch * size : (batch + 1) * size]
        for order_N, start, stop in batches.passes(config.training, config.seed, task, task.n_samples)
        for batch in range(start, stop)
    ]


def _same(a: list[Int64], b: list[Int64]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_sees_each_sample_once_and_keeps_the_short_batch(make_config: Make, make_task: Make) -> None:
    config = make_config(training={"epochs": 3})
    rows = _rows(config, make_task(config, 0, 10))
    assert [len(r) for r in rows] == [4, 4, 2] * 3
    epochs = [np.concatenate(rows[e : e + 3]) for e in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_first_epoch_is_the_tasks_permutation(make_config: Make, make_task: Make) -> None:
    config = make_config(training={"epochs": 2})
    task = make_task(config, 5, 13)
    rows = np.concatenate(_rows(config, task))
    order = seeding.permutations(config.seed, seeding.Purpose.BATCH_ORDER, 5, task.task, 13)
    assert np.array_equal(rows[:13], order)


def test_tasks_and_clients_have_orders_of_their_own(make_config: Make, make_task: Make) -> None:
    config = make_config()
    tasks = [make_task(config, client, 30, task=number) for client in (0, 1) for number in (0, 1)]
    assert len({tuple(np.concatenate(_rows(config, task))) for task in tasks}) == 4


def test_epochs_do_not_depend_on_how_many_are_drawn_at_once(
    make_config: Make, make_task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in ("task", "continued", "sequential"):
        config = make_config(training={"epochs": 7, "order": order})
        task = make_task(config, 1, 9, first_step=4)
        at_once = _rows(config, task)
        with monkeypatch.context() as patch:
            patch.setattr(batches, "_BLOCK_WORDS", 20)
            assert _same(_rows(config, task), at_once)


def test_continued_goes_on_where_the_last_task_ended(make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 50, "order": "continued"})
    whole = _rows(config, make_task(config, 2, 11))
    cut, first = [], 0
    for number, n_steps in enumerate((1, 7, 20, 2, 20)):
        task = make_task(config, 2, 11, task=number, n_steps=n_steps, first_step=first)
        cut += _rows(config, task)
        first += n_steps
    assert _same(cut, whole)
    for start in range(0, 48, 3):
        assert sorted(np.concatenate(whole[start : start + 3])) == list(range(11))


def test_sequential_starts_at_the_first_sample(make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 4, "order": "sequential"})
    rows = _rows(config, make_task(config, 0, 6, first_step=3))
    assert [r.tolist() for r in rows] == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4, 5]]


def test_steps_end_inside_a_pass_or_go_on_through_several(make_config: Make, make_task: Make) -> None:
    for n_steps in (1, 2, 3, 4, 100):
        config = make_config(training={"steps": n_steps})
        assert len(_rows(config, make_task(config, 0, 10))) == n_steps
