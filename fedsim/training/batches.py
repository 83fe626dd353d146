"""Which samples each local step sees: a function of configuration, seed and task alone.

A pass is one way through a client's samples, cut into batches of which the last may be short.
Shapes: `N` samples, `G` tasks of a group, `g` of them still at work, `R` samples of several passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fedsim import seeding
from fedsim.config import TrainingConfig
from fedsim.tables import TASK, TaskTable
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


class Numbers(NamedTuple):
    """What decides which samples the tasks of a group see, and for how long: a number a task, int64 (G,)."""

    tasks_G: Int64
    clients_G: Int64
    versions_G: Int64
    sizes_G: Int64
    n_steps_G: Int64
    first_steps_G: Int64


def numbers_of(tasks: TaskTable) -> Numbers:
    """The first fields of the tasks, a column each."""
    table = np.ascontiguousarray(tasks.rows).view(np.int64).reshape(-1, TASK.itemsize // 8)
    return Numbers(*np.ascontiguousarray(table[:, : len(Numbers._fields)].T))


class GroupOrders:
    """What `passes` gives for each task of a group, for blocks of steps that come one after the other.

    After `reach`, the order of pass `begin_G` of a task is in `orders_R` from `firsts_G` on, and those of the next ones
    lie `strides_G` behind one another. Steps are counted from the begin of the task's first pass, in which it starts
    at `starts_G`. As many passes are drawn at once as have `_BLOCK_WORDS` samples, or else those of a block.
    """

    def __init__(self, training: TrainingConfig, seed: int, numbers: Numbers) -> None:
        self._seed, self._numbers, sizes_G = seed, numbers, numbers.sizes_G
        self._is_continued = training.order == "continued"
        self._per_pass_G = -(-sizes_G // training.batch_size)
        none_G = np.zeros_like(sizes_G)
        self._first_pass_G, self.starts_G = none_G, none_G
        if self._is_continued:
            self._first_pass_G, self.starts_G = np.divmod(numbers.first_steps_G, self._per_pass_G)
        self.begin_G = self._stop_G = none_G
        self.strides_G = sizes_G
        if training.order == "sequential":  # one order, which is every pass of every task
            self.orders_R, self.firsts_G, self.strides_G = np.arange(sizes_G.max()), none_G, none_G
            self._stop_G = np.full_like(sizes_G, np.iinfo(np.int64).max)
            return
        self._n_passes_G = -(-(self.starts_G + numbers.n_steps_G) // self._per_pass_G)
        if int(sizes_G @ self._n_passes_G) <= _BLOCK_WORDS:
            self._draw(self.begin_G, self._n_passes_G)

    def reach(self, first: int, n_steps_g: Int64) -> None:
        """Draws what steps `first` and on of the first slots need, at least one step each, if it is not there."""
        g = n_steps_g.size
        steps_g, per_pass_g = self.starts_G[:g] + first, self._per_pass_G[:g]
        last_g = (steps_g + n_steps_g - 1) // per_pass_g
        if (last_g < self._stop_G[:g]).all():
            return
        begin_g = steps_g // per_pass_g
        fitting_g = _BLOCK_WORDS // g // self._numbers.sizes_G[:g]
        self._draw(begin_g, np.clip(fitting_g, last_g + 1 - begin_g, self._n_passes_G[:g] - begin_g))

    def _draw(self, begin_g: Int64, n_passes_g: Int64) -> None:
        from fedsim import philox  # takes half a second to load

        g, numbers = begin_g.size, self._numbers
        keys_g = self._first_pass_G[:g] if self._is_continued else numbers.tasks_G[:g]
        self.orders_R, self.firsts_G = philox.orders(
            self._seed, seeding.Purpose.BATCH_ORDER, numbers.clients_G[:g], keys_g, numbers.sizes_G[:g], begin_g,
            n_passes_g, is_one_stream=not self._is_continued,
        )  # fmt: skip
        self.begin_G, self._stop_G = begin_g, begin_g + n_passes_g


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
