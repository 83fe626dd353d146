"""Products of linear layers on the host, compiled: a slot's weights are read once forward, and once back with the step.

torch takes a stacked product for each of the three, and each goes through all weights; with the few rows of a small
batch that, and the calls, are most of the time. Here a block of numbers stays in the core's nearest cache or in
registers until everything is done with it. Slots are taken one after the other, so a client's bits depend on nothing
but its own numbers.

Rows of x, y, weights and gradients have padding to 16 numbers, which holds zeros. Every `..._slot` and `..._row` is a
stride in numbers, every other argument named like an operand its address.
"""

from __future__ import annotations

from typing import Any

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import IS_WIDE, LANES, Emitter, cgutils, compiled, inner

MOST_ROWS = 64  # of a batch: with more, the libraries' blocked products are as fast
PANEL = 256  # numbers of a row that are summed up at once: eight rows of weights and ten of samples fill half of 32 KiB
OUTPUTS = 8  # of a tile
_BLOCKS = (10, 8, 4, 2, 1)  # rows of a batch that are kept in registers; ten take 20 of 32, or 31 with the step


def _tile(n_rows: int) -> Any:
    """Adds the products of some rows of x with eight of the weights, over `n` numbers, to what `start` has.

    All eight go through the numbers together where registers take all sums, else four sums at a time: a third faster.
    """
    n_at_once = OUTPUTS if IS_WIDE else 4 // n_rows

    def emit(e: Emitter, *operands: Any) -> None:
        n, x, x_row, w, w_row, start, start_row, y, y_row = operands
        b = e.builder
        sums = e.variables(n_rows * OUTPUTS)
        for place in sums:
            b.store(e.zero(), place)
        x_rows = [e.at(x, b.mul(x_row, e.index(i))) for i in range(n_rows)]
        w_rows = [e.at(w, b.mul(w_row, e.index(i))) for i in range(OUTPUTS)]
        for first in range(0, OUTPUTS, n_at_once):
            with cgutils.for_range_slice(b, e.index(0), n, e.index(LANES)) as (c, _):
                xs = [e.load(e.at(row, c)) for row in x_rows]
                for i in range(first, first + n_at_once):
                    weights = e.load(e.at(w_rows[i], c))
                    for place, numbers in zip(sums[i::OUTPUTS], xs, strict=True):
                        b.store(e.fma(numbers, weights, b.load(place)), place)
        for i in range(n_rows):
            total = e.sums([b.load(place) for place in sums[i * OUTPUTS : (i + 1) * OUTPUTS]])
            before = e.load(e.at(start, b.mul(start_row, e.index(i))), OUTPUTS)
            e.store(b.fadd(before, total), e.at(y, b.mul(y_row, e.index(i))))

    return inner(emit)


def _column(n_rows: int, *, has_dx: bool, has_step: bool) -> Any:
    """A column of 16 numbers of the weights, all outputs, with some rows of the batch: dx, or the step, or both."""

    def emit(e: Emitter, *operands: Any) -> None:
        n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha = operands
        b = e.builder
        rows = [e.at(dy, b.mul(dy_row, e.index(i))) for i in range(n_rows)]
        sums = e.variables(n_rows if has_dx else 0)
        for place in sums:
            b.store(e.zero(), place)
        factors = []
        if has_step:
            beta_all, alpha_all = e.spread(beta), e.spread(alpha)
            factors = [b.fmul(alpha_all, e.load(e.at(x, b.mul(x_row, e.index(i))))) for i in range(n_rows)]
            is_kept = b.fcmp_unordered("!=", beta_all, e.zero())
        with cgutils.for_range(b, n_out) as loop:
            o, offset = loop.index, b.mul(loop.index, w_row)
            gradients = [e.number(e.at(row, o)) for row in rows]
            if has_dx:
                weights = e.load(e.at(w, offset))
                for place, gradient in zip(sums, gradients, strict=True):
                    b.store(e.fma(gradient, weights, b.load(place)), place)
                e.ahead(e.at(w, offset, LANES))
            if has_step:
                where = e.at(to, offset)
                value = b.select(is_kept, b.fmul(beta_all, e.load(e.at(kept, offset))), e.zero())
                for factor, gradient in zip(factors, gradients, strict=True):
                    value = e.fma(gradient, factor, value)
                e.store(value, where)
                e.ahead(e.at(where, LANES))
                if not has_dx:  # with dx what is kept are the weights, or lies where the step goes
                    e.ahead(e.at(kept, offset, LANES))
        for i, place in enumerate(sums):
            e.store(b.load(place), e.at(dx, b.mul(dx_row, e.index(i))))

    return inner(emit)


_two_rows, _one_row = _tile(2), _tile(1)
_both_10, _both_8, _both_4, _both_2, _both_1 = (_column(n, has_dx=True, has_step=True) for n in _BLOCKS)
_dx_10, _dx_8, _dx_4, _dx_2, _dx_1 = (_column(n, has_dx=True, has_step=False) for n in _BLOCKS)
_step_10, _step_8, _step_4, _step_2, _step_1 = (_column(n, has_dx=False, has_step=True) for n in _BLOCKS)


@compiled
def forward(
    one: Any, n_slots: int, n_rows: int, n_in: int, n_out: int, x: int, x_slot: int, x_row: int,
    w: int, w_slot: int, bias: int, bias_slot: int, y: int, y_slot: int, y_row: int, n_bytes: int,
) -> None:  # fmt: skip
    """y <- x W^T + bias; `bias` may be zeros with strides of nothing. `n_in` is a multiple of 16, and W's row."""
    for s in range(n_slots):
        x_s, y_s = x + n_bytes * s * x_slot, y + n_bytes * s * y_slot
        for c in range(0, n_in, PANEL):
            n = min(PANEL, n_in - c)
            for o in range(0, n_out, OUTPUTS):
                w_o = w + n_bytes * (s * w_slot + o * n_in + c)
                for r in range(0, n_rows, 2):
                    x_r, y_r = x_s + n_bytes * (r * x_row + c), y_s + n_bytes * (r * y_row + o)
                    start, start_row = (bias + n_bytes * (s * bias_slot + o), 0) if c == 0 else (y_r, y_row)
                    if r + 1 < n_rows:
                        _two_rows(one, (n, x_r, x_row, w_o, n_in, start, start_row, y_r, y_row))
                    else:
                        _one_row(one, (n, x_r, x_row, w_o, n_in, start, start_row, y_r, y_row))


@compiled
def backward(
    one: Any, n_slots: int, n_rows: int, n_in: int, n_out: int, has_dx: bool, dy: int, dy_slot: int, dy_row: int,
    w: int, w_slot: int, x: int, x_slot: int, x_row: int, dx: int, dx_slot: int, dx_row: int,
    to: int, kept: int, beta: Any, alpha: Any, n_bytes: int,
) -> None:  # fmt: skip
    """dx <- dy W if wanted, then `to` <- beta `kept` + alpha dy^T x; all three lie like W, and may be the same."""
    is_one_block = n_rows == 10 or n_rows == 8 or n_rows == 4 or n_rows == 2 or n_rows == 1
    for s in range(n_slots):
        dy_s = dy + n_bytes * s * dy_slot
        for c in range(0, n_in, LANES):
            x_c, dx_c = x + n_bytes * (s * x_slot + c), dx + n_bytes * (s * dx_slot + c)
            w_c, to_c = w + n_bytes * (s * w_slot + c), to + n_bytes * (s * w_slot + c)
            kept_c = kept + n_bytes * (s * w_slot + c)
            if has_dx and is_one_block:
                _all(one, n_rows, n_out, dy_s, dy_row, w_c, n_in, x_c, x_row, dx_c, dx_row, to_c, kept_c, beta,
                     alpha)  # fmt: skip
                continue
            if has_dx:
                _gradients(one, n_rows, n_out, n_bytes, dy_s, dy_row, w_c, n_in, dx_c, dx_row, beta, alpha)
            _steps(one, n_rows, n_out, n_bytes, dy_s, dy_row, x_c, x_row, to_c, kept_c, n_in, beta, alpha)


@compiled
def _all(
    one: Any, n: int, n_out: int, dy: int, dy_row: int, w: int, w_row: int, x: int, x_row: int, dx: int, dx_row: int,
    to: int, kept: int, beta: Any, alpha: Any,
) -> None:  # fmt: skip
    """Both for a block of rows."""
    if n == 10:
        _both_10(one, (n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha))
    elif n == 8:
        _both_8(one, (n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha))
    elif n == 4:
        _both_4(one, (n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha))
    elif n == 2:
        _both_2(one, (n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha))
    else:
        _both_1(one, (n_out, dy, dy_row, w, w_row, x, x_row, dx, dx_row, to, kept, beta, alpha))


@compiled
def _gradients(
    one: Any, n_rows: int, n_out: int, n_bytes: int, dy: int, dy_row: int, w: int, w_row: int, dx: int, dx_row: int,
    beta: Any, alpha: Any,
) -> None:  # fmt: skip
    """A column of dx, block by block."""
    r = 0
    while r < n_rows:
        n, dy_r, dx_r = _block(n_rows - r), dy + n_bytes * r * dy_row, dx + n_bytes * r * dx_row
        if n == 10:
            _dx_10(one, (n_out, dy_r, dy_row, w, w_row, 0, 0, dx_r, dx_row, 0, 0, beta, alpha))
        elif n == 8:
            _dx_8(one, (n_out, dy_r, dy_row, w, w_row, 0, 0, dx_r, dx_row, 0, 0, beta, alpha))
        elif n == 4:
            _dx_4(one, (n_out, dy_r, dy_row, w, w_row, 0, 0, dx_r, dx_row, 0, 0, beta, alpha))
        elif n == 2:
            _dx_2(one, (n_out, dy_r, dy_row, w, w_row, 0, 0, dx_r, dx_row, 0, 0, beta, alpha))
        else:
            _dx_1(one, (n_out, dy_r, dy_row, w, w_row, 0, 0, dx_r, dx_row, 0, 0, beta, alpha))
        r += n


@compiled
def _steps(
    one: Any, n_rows: int, n_out: int, n_bytes: int, dy: int, dy_row: int, x: int, x_row: int, to: int, kept: int,
    w_row: int, beta: Any, alpha: Any,
) -> None:  # fmt: skip
    """A column of the step, block by block; only the first scales what was there."""
    r = 0
    while r < n_rows:
        n, dy_r, x_r = _block(n_rows - r), dy + n_bytes * r * dy_row, x + n_bytes * r * x_row
        factor, start = (beta, kept) if r == 0 else (one, to)
        if n == 10:
            _step_10(one, (n_out, dy_r, dy_row, 0, w_row, x_r, x_row, 0, 0, to, start, factor, alpha))
        elif n == 8:
            _step_8(one, (n_out, dy_r, dy_row, 0, w_row, x_r, x_row, 0, 0, to, start, factor, alpha))
        elif n == 4:
            _step_4(one, (n_out, dy_r, dy_row, 0, w_row, x_r, x_row, 0, 0, to, start, factor, alpha))
        elif n == 2:
            _step_2(one, (n_out, dy_r, dy_row, 0, w_row, x_r, x_row, 0, 0, to, start, factor, alpha))
        else:
            _step_1(one, (n_out, dy_r, dy_row, 0, w_row, x_r, x_row, 0, 0, to, start, factor, alpha))
        r += n


@compiled
def _block(n_rows: int) -> int:
    """How many of the rows that are left the next block takes."""
    if n_rows >= 10 and n_rows != 16:
        return 10
    if n_rows >= 8:
        return 8
    if n_rows >= 4:
        return 4
    return 2 if n_rows >= 2 else 1


@compiled
def add_sums(
    one: Any, n_slots: int, n_rows: int, n_out: int, dy: int, dy_slot: int, dy_row: int, to: int, kept: int,
    to_slot: int, beta: Any, alpha: Any, n_bytes: int,
) -> None:  # fmt: skip
    """`to` <- beta `kept`, which lies alike, + alpha times the sum of dy's rows: the step of a bias."""
    for s in range(n_slots):
        dy_s = array(pointer(one, dy + n_bytes * s * dy_slot), (n_rows, dy_row))
        to_s = array(pointer(one, to + n_bytes * s * to_slot), (n_out,))
        kept_s = array(pointer(one, kept + n_bytes * s * to_slot), (n_out,))
        for o in range(n_out):
            to_s[o] = beta * kept_s[o] if beta != 0 else beta
        for r in range(n_rows):
            for o in range(n_out):
                to_s[o] += alpha * dy_s[r, o]
