"""Operations of a step one after the other in one call, compiled: a call from Python costs as much as a small product.

A `Tape` holds what layers would do that have compiled operations, as rows of numbers: which one it is, then its
arguments, sizes first, the slots in front, and then addresses and strides in numbers. Of samples, targets, scales and
pieces the rows do not know where they are; that is in the step's `Batch`, and an address of zero stands for the
samples'. A few slots go through all steps of a call before the next ones do, so that their weights stay in the core's
cache meanwhile: slots know nothing of each other.

The kernels of `products` and `entropy` become part of the code that is kept here: whoever changes one has to touch this
file, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedsim.training.fused import entropy, products
from fedsim.training.fused.values import Context
from fedsim.training.fused.vectors import LANES, Emitter, cgutils, compiled, inner
from fedsim.training.groupbatches import Batch

Row = tuple[int, ...]
FORWARD, BACKWARD, BIAS, RELU, RELU_BACK, ENTROPY = range(6)
_WIDTH = 18  # of the longest row
_N_SIZES = {FORWARD: 4, BACKWARD: 4, BIAS: 3, RELU: 2, RELU_BACK: 2, ENTROPY: 3}
_SLOTS_BYTES = 2**18  # of what slots that go through all steps together read and write: a core's own cache has more
_MOST_OPERATIONS = 16_000_000  # of the steps of a call, half a millisecond or so: messages wait meanwhile


class Tape:
    """The operations of some rows; `n_together` is how many steps of them one call may take."""

    def __init__(self, ctx: Context, rows: Sequence[Row]) -> None:
        self._rows = np.zeros((len(rows), _WIDTH), np.int64)
        for i, row in enumerate(rows):
            self._rows[i, : len(row)] = row
        self._numbers = (ctx.one, type(ctx.one)(ctx.target.beta), type(ctx.one)(ctx.target.alpha))
        self._n_bytes = ctx.arena.dtype.itemsize
        n_operations = sum(math.prod(row[1 : 1 + _N_SIZES[row[0]]]) for row in rows)
        self.n_together = max(_MOST_OPERATIONS // n_operations, 1)
        n_bytes = self._n_bytes * max(_n_values(rows, FORWARD), _n_values(rows, BACKWARD), 1)
        self._n_slots = ctx.n_slots, max(_SLOTS_BYTES // n_bytes, 1)  # all, and those that go through together

    def __call__(self, batch: Batch, n_steps: int = 1) -> None:
        """Does them all, on the samples of a step, then on those of the next ones of the block."""
        _run(*self._numbers, self._n_bytes, self._rows, batch.places, n_steps, *self._n_slots)


def _n_values(rows: Sequence[Row], kind: int) -> int:
    """Weights, inputs and outputs of a slot's products of one kind, which all other operations share."""
    sizes = [row[2:5] for row in rows if row[0] == kind]
    return sum(n_in * n_out + n_rows * (n_in + n_out) for n_rows, n_in, n_out in sizes)


def recorded(
    ctx: Context, work: Sequence[Callable[[Batch], None] | list[Row]]
) -> list[Callable[[Batch], None]]:  # fmt: skip
    """The same work, with a tape in place of rows that follow one another."""
    found: list[Callable[[Batch], None]] = []
    rows: list[Row] = []
    for part in work:
        if isinstance(part, list):
            rows += part
            continue
        if rows:
            found.append(Tape(ctx, rows))
            rows = []
        found.append(part)
    return [*found, Tape(ctx, rows)] if rows else found


def _rectify(e: Emitter, n: Any, x: Any, y: Any) -> None:
    """max(x, 0), and NaN where x is; a zero keeps its sign, as torch's."""
    with cgutils.for_range_slice(e.builder, e.index(0), n, e.index(LANES)) as (i, _):
        numbers = e.load(e.at(x, i))
        is_below = e.builder.fcmp_ordered("<", numbers, e.zero())
        e.store(e.builder.select(is_below, e.zero(), numbers), e.at(y, i))


def _rectify_back(e: Emitter, n: Any, dy: Any, y: Any, dx: Any) -> None:
    """dy where y is above zero or NaN, else 0; written out, because as a loop it is branches that nobody foresees."""
    with cgutils.for_range_slice(e.builder, e.index(0), n, e.index(LANES)) as (i, _):
        is_off = e.builder.fcmp_ordered("<=", e.load(e.at(y, i)), e.zero())
        e.store(e.builder.select(is_off, e.zero(), e.load(e.at(dy, i))), e.at(dx, i))


_relu, _relu_back = inner(_rectify), inner(_rectify_back)


@compiled
def _run(
    one: Any, beta: Any, alpha: Any, n_bytes: int, rows: Any, places: Any, n_steps: int, n_slots: int, n_at_once: int
) -> None:
    samples, x_slot, x_step, targets, targets_slot, targets_step = places[:6]
    scale, scale_slot, scale_step, pieces, pieces_slot, pieces_step = places[6:]
    for first in range(0, n_slots, n_at_once):
        for k in range(n_steps):
            _step(
                one, beta, alpha, n_bytes, rows, first, min(n_at_once, n_slots - first),
                samples + n_bytes * (k * x_step + first * x_slot), x_slot,
                targets + 8 * (k * targets_step + first * targets_slot), targets_slot,
                scale + n_bytes * (k * scale_step + first * scale_slot), scale_slot,
                pieces + n_bytes * (k * pieces_step + first * pieces_slot), pieces_slot,
            )  # fmt: skip


@compiled
def _step(
    one: Any, beta: Any, alpha: Any, n_bytes: int, rows: Any, first: int, n: int, samples: int, x_slot: int,
    targets: int, targets_slot: int, scale: int, scale_slot: int, pieces: int, pieces_slot: int,
) -> None:  # fmt: skip
    """A step of `n` slots from `first` on, whose samples, targets, scales and pieces are given."""
    skipped = n_bytes * first  # times a slot's stride
    for i in range(rows.shape[0]):
        kind, _, b, c, d, e, f, g, h, j, k, m, o, p, q, r, s, t = rows[i]
        if kind == FORWARD:
            x, slot = (samples, x_slot) if e == 0 else (e + skipped * f, f)
            w, bias, y = h + skipped * j, k + skipped * m, o + skipped * p
            products.forward(one, n, b, c, d, x, slot, g, w, j, bias, m, y, p, q, n_bytes)
        elif kind == BACKWARD:
            x, slot = (samples, x_slot) if m == 0 else (m + skipped * o, o)
            dy, w, dx, to = f + skipped * g, j + skipped * k, q + skipped * r, t + skipped * k
            products.backward(one, n, b, c, d, e != 0, dy, g, h, w, k, x, slot, p, dx, r, s, to, to, beta, alpha,
                              n_bytes)  # fmt: skip
        elif kind == BIAS:
            dy, to = d + skipped * e, g + skipped * h
            products.add_sums(one, n, b, c, dy, e, f, to, to, h, beta, alpha, n_bytes)
        elif kind == RELU:
            _relu(one, (n * b, c + skipped * b, d + skipped * b))
        elif kind == RELU_BACK:
            _relu_back(one, (n * b, c + skipped * b, d + skipped * b, e + skipped * b))
        else:
            y, dy = d + skipped * f, e + skipped * f
            entropy.step(
                one, n, b, c, y, dy, f, g, targets, targets_slot, scale, scale_slot, pieces, pieces_slot, n_bytes
            )  # fmt: skip
