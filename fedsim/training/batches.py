"""Which samples each local step sees: a function of configuration, seed and task alone.

A pass is one way through a client's samples, cut into batches of which the last may be short.
Shape: `N` samples.
"""

from __future__ import annotations

from collections.abc import Iterator
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
