"""Which samples each local step sees: a function of configuration, seed and task alone.

A pass is one way through a client's samples, cut into batches of which the last may be short. Shape: `N` samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from fedsim import seeding
from fedsim.config import TrainingConfig
from fedsim.training.plan import batches_per_pass
from fedsim.types import Int64, Task

_BLOCK_WORDS = 65536  # orders are drawn for as many passes at once as fit: one call costs 60 us, most of it overhead


class Pass(NamedTuple):
    """The part of a pass that a task takes: the order of all samples, int64 (N,), and its batches `start` to `stop`."""

    order_N: Int64
    start: int
    stop: int


def passes(training: TrainingConfig, seed: int, task: Task, n_samples: int) -> Iterator[Pass]:
    """The passes of a task in order; together they hold `task.n_steps` batches.

    Order `task`: pass p of a task is a permutation of its own, words p*N to (p+1)*N of the stream (client, task).
    Order `continued`: pass p of the client's whole life is keyed by (client, p), and local step `first_step` + i
    lies in pass (`first_step` + i) // batches per pass. Order `sequential`: each task starts at the first sample,
    and no pass shuffles.
    """
    per_pass = batches_per_pass(training, n_samples)
    first_pass, start = divmod(task.first_step if training.order == "continued" else 0, per_pass)
    n_passes = -(-(start + task.n_steps) // per_pass)
    n_left = task.n_steps
    for order_N in _orders(training.order, seed, task, n_samples, range(first_pass, first_pass + n_passes)):
        stop = min(per_pass, start + n_left)
        yield Pass(order_N, start, stop)
        n_left -= stop - start
        start = 0


def group_passes(training: TrainingConfig, seed: int, tasks: Sequence[Task]) -> list[Iterator[Pass]]:
    """What `passes` gives for each of the tasks; tasks of one length share a call, where that is cheaper."""
    is_continued = training.order == "continued"
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        start = task.first_step % batches_per_pass(training, task.n_samples) if is_continued else 0
        alike[task.n_samples, task.n_steps, start].append(i)
    found: list[Iterator[Pass]] = [iter(())] * len(tasks)
    for (n, n_steps, start), members in alike.items():
        stops = _stops(batches_per_pass(training, n), start + n_steps)
        if n * len(stops) * len(members) > _BLOCK_WORDS:
            orders = [passes(training, seed, tasks[i], n) for i in members]
        elif training.order == "sequential":
            same = [Pass(np.arange(n), 0, stop) for stop in stops]
            orders = [iter(same) for _ in members]
        else:
            drawn = _bulk(training, seed, [tasks[i] for i in members], len(stops))
            orders = [map(Pass, order_EN, chain((start,), repeat(0)), stops) for order_EN in drawn]
        for i, order in zip(members, orders, strict=True):
            found[i] = order
    return found


def _stops(per_pass: int, n_steps: int) -> list[int]:
    """Where each pass ends, of a task that takes `n_steps` batches from the start of a pass."""
    n_passes = -(-n_steps // per_pass)
    return [per_pass] * (n_passes - 1) + [n_steps - (n_passes - 1) * per_pass]


def _bulk(training: TrainingConfig, seed: int, tasks: Sequence[Task], n_passes: int) -> Int64:
    """The orders of some tasks of one length, of all their passes: int64 (tasks, passes, N)."""
    n = tasks[0].n_samples
    clients, numbers, first_steps = np.array([(task.client, task.task, task.first_step) for task in tasks]).T
    if training.order == "continued":
        keys = first_steps[:, None] // batches_per_pass(training, n) + np.arange(n_passes)
        return seeding.permutations(seed, seeding.Purpose.BATCH_ORDER, clients[:, None], keys, n)
    from fedsim import philox  # takes half a second to load

    words = philox.bits(seed, seeding.Purpose.BATCH_ORDER, clients, numbers, n * n_passes)
    orders: Int64 = np.argsort(words.reshape(len(tasks), n_passes, n), axis=-1, kind="stable")
    return orders


def _orders(order: str, seed: int, task: Task, n: int, numbers: range) -> Iterator[Int64]:
    """The order of the samples in each of the passes of these numbers: int64 (N,) each."""
    n_block = max(1, _BLOCK_WORDS // n)
    for first in range(numbers.start, numbers.stop, n_block):
        block = range(first, min(first + n_block, numbers.stop))
        if order == "sequential":
            yield from [np.arange(n)] * len(block)
        elif order == "continued":
            keys = np.arange(block.start, block.stop)
            yield from seeding.permutations(seed, seeding.Purpose.BATCH_ORDER, task.client, keys, n)
        else:
            words = seeding.bits(
                seed, seeding.Purpose.BATCH_ORDER, task.client, task.task, n * len(block), first=n * first
            )
            yield from np.argsort(words.reshape(len(block), n), axis=-1, kind="stable")
