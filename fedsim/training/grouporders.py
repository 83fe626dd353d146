"""Which samples the local steps of a group's tasks see, compiled: what `fedsim.training.batches.passes` says of each.

The generator's code and the places of fields in `fedsim.tables` become part of the code that is kept here: whoever
changes `fedsim.philox`, or those, has to touch this file, too.
Shapes: `G` tasks, `g` of them still at work, `R` samples of several passes; `table_FG` has a row a field of tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim import philox, seeding
from fedsim.config import TrainingConfig
from fedsim.tables import TASK_FIELDS
from fedsim.training.fused.vectors import compiled
from fedsim.types import Int64

TASKS, CLIENTS, SIZES, N_STEPS, FIRST_STEPS = map(
    TASK_FIELDS.__getitem__, ("task", "client", "n_samples", "n_steps", "first_step")
)
KEYS, STARTS, N_PASSES, BEGIN, STOP, FIRSTS, STRIDES = range(7)  # rows of `passes_7G`
_ORDERS = ("task", "continued", "sequential")
_CONTINUED, _SEQUENTIAL = 1, 2
_BLOCK_WORDS = 65536  # as many passes are drawn at once as have so many samples, or else those of a block
_FOREVER = np.iinfo(np.int64).max


class GroupOrders:
    """The orders of the tasks of a group, for blocks of steps that come one after the other.

    After `reach`, the order of pass `BEGIN` of a task is in `orders_R` from `FIRSTS` on, and those of the passes up to
    `STOP` lie `STRIDES` behind one another. Steps are counted from the begin of the task's first pass, in which it
    starts at `STARTS`.
    """

    def __init__(self, training: TrainingConfig, seed: int) -> None:
        self._n_batch, self._order = training.batch_size, _ORDERS.index(training.order)
        self._key = np.uint64(seeding.stream_key(seed, seeding.Purpose.BATCH_ORDER))
        self.passes_7G = np.empty((7, 0), np.int64)
        self.finish()

    def start(self, table_FG: Int64) -> None:
        """Takes new tasks."""
        self._table_FG = table_FG
        self.passes_7G = np.empty((7, table_FG.shape[1]), np.int64)

    def finish(self) -> None:
        """Lets go of the orders, which may be many."""
        self.orders_R = np.empty(0, np.int64)

    def reach(self, first: int, n_block: int, n_slots: int) -> None:
        """Draws what the first slots need of `n_block` steps from `first` on, at least one each, if it is not there."""
        self.orders_R = _reach(
            self._table_FG, self.passes_7G, self.orders_R, first, n_block, n_slots, self._n_batch, self._order,
            self._key,
        )  # fmt: skip


@compiled
def _reach(
    table_FG: Any, passes_7G: Any, orders_R: Any, first: int, n_block: int, n_slots: int, n_batch: int, order: int,
    key: Any,
) -> Any:  # fmt: skip
    """The orders, which are `orders_R` if everything is there."""
    if first == 0:
        n_words = _begin(table_FG, passes_7G, n_batch, order)
        if order == _SEQUENTIAL:  # one order, which is every pass of every task
            return np.arange(table_FG[SIZES].max())
        if n_words <= _BLOCK_WORDS:
            passes_7G[STOP] = passes_7G[N_PASSES]
            return _drawn(table_FG, passes_7G, n_slots, order, key)
    is_there = True
    for s in range(n_slots):
        n = min(table_FG[N_STEPS, s] - first, n_block)
        is_there &= (passes_7G[STARTS, s] + first + n - 1) // -(-table_FG[SIZES, s] // n_batch) < passes_7G[STOP, s]
    if is_there:
        return orders_R
    for s in range(n_slots):
        n, size = min(table_FG[N_STEPS, s] - first, n_block), table_FG[SIZES, s]
        step, per_pass = passes_7G[STARTS, s] + first, -(-size // n_batch)
        begin, end = step // per_pass, (step + n - 1) // per_pass + 1
        passes_7G[BEGIN, s] = begin
        passes_7G[STOP, s] = min(max(begin + _BLOCK_WORDS // n_slots // size, end), passes_7G[N_PASSES, s])
    return _drawn(table_FG, passes_7G, n_slots, order, key)


@compiled
def _begin(table_FG: Any, passes_7G: Any, n_batch: int, order: int) -> int:
    """How many samples all passes of all tasks have; says of each task where it begins."""
    n_words = 0
    for s in range(table_FG.shape[1]):
        size = table_FG[SIZES, s]
        per_pass, first_step = -(-size // n_batch), table_FG[FIRST_STEPS, s] if order == _CONTINUED else 0
        passes_7G[STARTS, s] = first_step % per_pass
        passes_7G[KEYS, s] = first_step // per_pass if order == _CONTINUED else table_FG[TASKS, s]
        n_passes = -(-(passes_7G[STARTS, s] + table_FG[N_STEPS, s]) // per_pass)
        passes_7G[N_PASSES, s] = n_passes
        passes_7G[BEGIN, s] = passes_7G[FIRSTS, s] = 0
        passes_7G[STOP, s], passes_7G[STRIDES, s] = (_FOREVER, 0) if order == _SEQUENTIAL else (0, size)
        n_words += size * n_passes
    return n_words


@compiled
def _drawn(table_FG: Any, passes_7G: Any, n_slots: int, order: int, key: Any) -> Any:
    """The orders of passes `BEGIN` to `STOP` of the first slots, whose places become `FIRSTS`."""
    begin_g = passes_7G[BEGIN, :n_slots]
    orders_R, passes_7G[FIRSTS, :n_slots] = philox.draw_orders(
        table_FG[CLIENTS, :n_slots], passes_7G[KEYS, :n_slots], table_FG[SIZES, :n_slots], begin_g,
        passes_7G[STOP, :n_slots] - begin_g, order != _CONTINUED, key,
    )  # fmt: skip
    return orders_R
