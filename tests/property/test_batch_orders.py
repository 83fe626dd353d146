"""Laws of the batches: every pass is a permutation, and cutting a client's life into tasks changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.config import TrainingConfig
from fedsim.tables import TaskTable
from fedsim.training import copying
from fedsim.training.batches import passes
from fedsim.training.grouporders import GroupOrders
from fedsim.training.plan import batches_per_pass
from fedsim.types import Float32, Int64, Task
from fedsim.whereabouts import address

Make = Callable[..., Any]
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    order=st.sampled_from(["task", "continued", "sequential"]),
    n_steps=st.integers(1, 60),
    first_step=st.integers(0, 10**6),
)
def test_passes(
    make_config: Make, make_task: Make, n: int, batch_size: int, order: str, n_steps: int, first_step: int
) -> None:
    config = make_config(training={"batch_size": batch_size, "steps": n_steps, "order": order})
    found = list(passes(config.training, 1, make_task(config, 0, n, first_step=first_step), n))
    per_pass = batches_per_pass(config.training, n)
    assert sum(stop - start for _, start, stop in found) == n_steps
    assert all(np.array_equal(np.sort(order_N), np.arange(n)) for order_N, _, _ in found)
    assert all(0 <= start < stop <= per_pass for _, start, stop in found)
    assert all(stop == per_pass for _, _, stop in found[:-1]) and all(start == 0 for _, start, _ in found[1:])
    assert found[0].start == (first_step % per_pass if order == "continued" else 0)


@SETTINGS
@given(n=st.integers(1, 20), lengths=st.lists(st.integers(1, 15), min_size=1, max_size=6))
def test_continued_does_not_depend_on_the_cut(make_config: Make, make_task: Make, n: int, lengths: list[int]) -> None:
    config = make_config(training={"steps": 1, "order": "continued", "batch_size": 3})

    def rows(n_steps: int, first_step: int, number: int) -> list[list[int]]:
        task = make_task(config, 4, n, task=number, n_steps=n_steps, first_step=first_step)
        return [
            order_N[3 * batch : 3 * batch + 3].tolist()
            for order_N, start, stop in passes(config.training, 1, task, n)
            for batch in range(start, stop)
        ]

    cut: list[list[int]] = []
    for number, n_steps in enumerate(lengths):
        cut += rows(n_steps, len(cut), number)
    assert cut == rows(sum(lengths), 0, 99)


@SETTINGS
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch_size=st.integers(1, 9),
    n_steps=st.integers(1, 40),
    order=st.sampled_from(["task", "continued", "sequential"]),
    first_step=st.integers(0, 50),
    n_block=st.integers(1, 12),
    is_long=st.booleans(),
)
def test_a_group_sees_what_its_tasks_see_alone(
    make_config: Make,
    make_task: Make,
    sizes: list[int],
    batch_size: int,
    n_steps: int,
    order: str,
    first_step: int,
    n_block: int,
    is_long: bool,
) -> None:
    if is_long:
        sizes, n_steps = [*sizes, 30_000, 30_000], n_steps * 100  # more words than are drawn in one call
    config = make_config(training={"batch_size": batch_size, "steps": n_steps, "order": order})
    tasks = [
        make_task(config, i, n, task=50 - i, n_steps=n_steps - i % n_steps, first_step=first_step + i)
        for i, n in enumerate(sizes)
    ]
    tasks.sort(key=lambda task: -task.n_steps)
    together = _rows_of_a_group(config.training, tasks, n_block)
    for task, ours in zip(tasks, together, strict=True):
        alone = [
            order_N[batch * batch_size : (batch + 1) * batch_size].tolist()
            for order_N, start, stop in passes(config.training, 1, task, task.n_samples)
            for batch in range(start, stop)
        ]
        assert ours == alone


def _rows_of_a_group(training: TrainingConfig, tasks: list[Task], n_block: int) -> list[list[list[int]]]:
    """The samples of each batch of each task, planned a block of steps at a time.

    Every other task's shard has a place, where a sample's two numbers are twice its own and one more, and its target is
    its own negative; of the others the numbers of the rows are asked for.
    """
    size, n_tasks = training.batch_size, len(tasks)
    table_FG = np.ascontiguousarray(TaskTable.of(tasks).rows.view(np.int64).reshape(n_tasks, -1).T)
    orders, places_2G = GroupOrders(training, 1), np.zeros((2, n_tasks), np.int64)
    shards = [(np.arange(2 * task.n_samples, dtype=np.float32), -np.arange(task.n_samples)) for task in tasks]
    for s in range(0, n_tasks, 2):
        places_2G[:, s] = [address(array) for array in shards[s]]
    orders.start(table_FG)
    rows_GR = np.empty((n_tasks, n_block * size), np.int64)
    x_GRF, y_GR = np.full((n_tasks, n_block * size, 5), 0.5, np.float32), np.full((n_tasks, n_block * size), 99)
    n_valid_GK, scale_GKB = np.zeros((n_tasks, n_block), np.int64), np.zeros((n_tasks, n_block, size))
    found: list[list[list[int]]] = [[] for _ in tasks]
    for first in range(0, tasks[0].n_steps, n_block):
        g, n = sum(task.n_steps > first for task in tasks), min(n_block, tasks[0].n_steps - first)
        orders.reach(first, n, g)
        copying.fill(
            np.float32(1), np.int64(1), places_2G, table_FG, orders.passes_7G, orders.orders_R, np.ones(n_tasks), first,
            n, g, 2, x_GRF.reshape(-1), y_GR.reshape(-1), np.array([77]), scale_GKB, n_valid_GK, rows_GR,
        )  # fmt: skip
        assert np.array_equal((scale_GKB[:g, :n] > 0).sum(2), n_valid_GK[:g, :n])
        for s in range(g):
            n_left = min(n, tasks[s].n_steps - first)
            assert places_2G[0, s] or (rows_GR[s, n_left * size :] == copying.LEFT).all()
            for k in range(n_left):
                part, n_valid = slice(k * size, (k + 1) * size), int(n_valid_GK[s, k])
                rows = _gathered(x_GRF[s, part], y_GR[s, part]) if places_2G[0, s] else rows_GR[s, part].tolist()
                assert rows[n_valid:] == [copying.NOTHING] * (size - n_valid)
                found[s].append(rows[:n_valid])
    return found


def _gathered(x_BF: Float32, y_B: Int64) -> list[int]:
    """Which samples lie in the rows of a batch, as both inputs and targets say; what lies beside them was let alone."""
    assert (x_BF[:, 2:] == 0.5).all(), "the padding of rows"
    is_empty = y_B == 77
    assert (x_BF[is_empty, :2] == 0).all() and (x_BF[~is_empty, 1] == x_BF[~is_empty, 0] + 1).all()
    assert np.array_equal(x_BF[~is_empty, 0], -2 * y_B[~is_empty])
    return [copying.NOTHING if y == 77 else -int(y) for y in y_B]
