"""The first convolution of images with the ReLU and 2 x 2 max-pool behind it, on the host, compiled.

Libraries have no good form for a convolution of one channel, or of three: a third of what the core could do was seen.
Here sixteen outputs are a vector, the sums of some windows stay in registers, and what the pool throws away is never
written down. The samples need no gradient, so all that is left of the way back is the step of the weights, whose
gradient stays in registers, too. Slots are taken one after the other, so a client's bits depend on nothing but its own
numbers. Of equal numbers in a window the first in row-major order gets the gradient; at 0 a ReLU gives none.

Images are copied first, with their padding around them: (slots, B, C, height, width), contiguous. Outputs are
(B, H, W, slots O), and with each goes a byte, `which`: where in its window it was, or `NONE`. Kernel sizes are given as
tuples of so many numbers, because code is written for each. Operands are addresses; strides are in numbers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fedsim.addresses import array, pointer
from fedsim.training.fused.pooling import NONE
from fedsim.training.fused.vectors import LANES, Emitter, cgutils, compiled, inner

MOST_TAPS = 25  # of a kernel: so many sums of gradients are kept in registers
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_INT32 = ir.IntType(32)


def _windows(n_windows: int) -> Any:
    """Sixteen outputs of some windows side by side: convolution, ReLU and pool."""

    def emit(e: Emitter, *operands: Any) -> None:
        kh, kw, n_channels, x, plane, width, w, w_tap, bias, y, which, y_column = operands
        b, columns = e.builder, range(2 * n_windows)
        sums = e.variables(4 * n_windows)
        start = e.load(e.at(bias))
        for place in sums:
            b.store(start, place)
        with cgutils.for_range(b, n_channels) as loop:
            x_c = e.at(x, b.mul(loop.index, plane))
            w_c = e.at(w, b.mul(b.mul(loop.index, w_tap), e.index(kh * kw)))
            for i in range(kh):
                rows = [e.at(x_c, b.mul(width, e.index(i + down))) for down in (0, 1)]
                for j in range(kw):
                    weights = e.load(e.at(w_c, b.mul(w_tap, e.index(i * kw + j))))
                    for n, place in enumerate(sums):
                        number = e.number(e.at(rows[n // len(columns)], n % len(columns) + j))
                        b.store(e.fma(number, weights, b.load(place)), place)
        for n in range(n_windows):
            found = [b.load(sums[2 * n + i + j * len(columns)]) for j in (0, 1) for i in (0, 1)]
            best, at = e.zero(), ir.Constant(_BYTES, [NONE] * LANES)
            for p, value in enumerate(found):
                is_larger = e.larger(value, best)
                best = b.select(is_larger, value, best)
                at = b.select(is_larger, ir.Constant(_BYTES, [p] * LANES), at)
            offset = b.mul(y_column, e.index(n))
            e.store(best, e.at(y, offset))
            where = b.gep(b.inttoptr(which, ir.IntType(8).as_pointer()), [offset])
            b.store(at, b.bitcast(where, _BYTES.as_pointer()), align=1)

    return inner(emit)


def _emit_gradients(e: Emitter, *operands: Any) -> None:
    """Adds to sixteen outputs' gradients of weights and bias what a row of windows gives, for one channel."""
    kh, kw, x, width, n_windows, dy, which, y_column, dw, dw_tap, db = operands
    b, n_taps = e.builder, kh * kw
    sums = e.variables(n_taps + 1)
    places = [e.at(dw, b.mul(dw_tap, e.index(t))) for t in range(n_taps)] + [e.at(db)]
    for place, where in zip(sums, places, strict=True):
        b.store(e.load(where), place)
    bytes_at = b.inttoptr(which, ir.IntType(8).as_pointer())
    with cgutils.for_range(b, n_windows) as loop:
        offset = b.mul(loop.index, y_column)
        gradient = e.load(e.at(dy, offset))
        at = b.load(b.bitcast(b.gep(bytes_at, [offset]), _BYTES.as_pointer()), align=1)
        corner = e.at(x, b.mul(loop.index, e.index(2)))
        rows = [e.at(corner, b.mul(width, e.index(i))) for i in range(kh + 1)]
        for p in range(4):
            is_here = b.icmp_unsigned("==", at, ir.Constant(_BYTES, [p] * LANES))
            own = b.select(is_here, gradient, e.zero())
            for t in range(n_taps):
                number = e.number(e.at(rows[t // kw + p // 2], t % kw + p % 2))
                b.store(e.fma(number, own, b.load(sums[t])), sums[t])
            b.store(b.fadd(b.load(sums[n_taps]), own), sums[n_taps])
    for place, where in zip(sums, places, strict=True):
        e.store(b.load(place), where)


_windows_4, _windows_2, _windows_1 = _windows(4), _windows(2), _windows(1)
_gradients_of = inner(_emit_gradients)


@compiled
def pad(
    one: Any, n_slots: int, n_batch: int, size: tuple[int, ...], x: int, x_slot: int, x_sample: int,
    images: int, padded: tuple[int, ...], before: tuple[int, ...], n_bytes: int,
) -> None:  # fmt: skip
    """Copies samples (slots, B, C H W) into images, whose borders are zeros already."""
    (depth, height, width), (rows, columns), (top, left) = size, padded, before
    to = array(pointer(one, images), (n_slots, n_batch, depth, rows, columns))
    for s in range(n_slots):
        own = array(pointer(one, x + n_bytes * s * x_slot), (n_batch * x_sample,))
        for b in range(n_batch):
            for c in range(depth):
                for i in range(height):
                    first = b * x_sample + (c * height + i) * width
                    row = to[s, b, c, top + i]
                    for j in range(width):
                        row[left + j] = own[first + j]


@compiled
def forward(
    one: Any, kernel: tuple[Any, Any], n_slots: int, n_batch: int, images: int, image: tuple[int, ...],
    w: int, w_slot: int, bias: int, bias_slot: int, turned: int, n_out: int,
    y: int, which: int, windows: tuple[int, ...], n_bytes: int,
) -> None:  # fmt: skip
    """Outputs and where in its window each was. `turned` is room for a slot's weights, (C kh kw, O)."""
    (kh, kw), (depth, rows, columns), (height, width) = kernel, image, windows
    n_taps, plane, y_column = depth * len(kh) * len(kw), rows * columns, n_slots * n_out
    for s in range(n_slots):
        _turn(one, w + n_bytes * s * w_slot, turned, n_out, n_taps)
        bias_s = bias + n_bytes * s * bias_slot
        for b in range(n_batch):
            x_b = images + n_bytes * (s * n_batch + b) * depth * plane
            for i in range(height):
                for o in range(0, n_out, LANES):
                    j = 0
                    while j < width:
                        x_ij = x_b + n_bytes * (2 * i * columns + 2 * j)
                        at = ((b * height + i) * width + j) * y_column + s * n_out + o
                        w_o, b_o, y_ij, at = turned + n_bytes * o, bias_s + n_bytes * o, y + n_bytes * at, which + at
                        of_x, of_w = (kh, kw, depth, x_ij, plane, columns), (w_o, n_out, b_o)
                        j += _some(one, of_x, of_w, y_ij, at, y_column, width - j)


@compiled
def _some(one: Any, of_x: Any, of_w: Any, y: int, which: int, y_column: int, n_left: int) -> int:
    """As many of the windows that are left as registers hold; how many they were."""
    (kh, kw, depth, x, plane, columns), (w, w_tap, bias) = of_x, of_w
    if n_left >= 4:
        _windows_4(one, (kh, kw, depth, x, plane, columns, w, w_tap, bias, y, which, y_column))
        return 4
    if n_left >= 2:
        _windows_2(one, (kh, kw, depth, x, plane, columns, w, w_tap, bias, y, which, y_column))
        return 2
    _windows_1(one, (kh, kw, depth, x, plane, columns, w, w_tap, bias, y, which, y_column))
    return 1


@compiled
def _turn(one: Any, w: int, turned: int, n_out: int, n_taps: int) -> None:
    """(O, taps) to (taps, O)."""
    from_OT = array(pointer(one, w), (n_out, n_taps))
    to_TO = array(pointer(one, turned), (n_taps, n_out))
    for t in range(n_taps):
        for o in range(n_out):
            to_TO[t, o] = from_OT[o, t]


@compiled
def backward(
    one: Any, kernel: tuple[Any, Any], n_slots: int, n_batch: int, images: int, image: tuple[int, ...],
    dy: int, which: int, windows: tuple[int, ...], sums: int, n_out: int,
    to_w: int, w_slot: int, to_b: int, b_slot: int, beta: Any, alpha: Any, n_bytes: int,
) -> None:  # fmt: skip
    """`to_w` <- beta `to_w` + alpha times the gradient, and the bias's likewise if `to_b` is not 0.

    `sums` is room for a slot's gradients: (C kh kw + C, O), the bias's behind the weights', once a channel.
    """
    (kh, kw), (depth, rows, columns), (height, width) = kernel, image, windows
    n_taps, plane, y_column = len(kh) * len(kw), rows * columns, n_slots * n_out
    found = array(pointer(one, sums), (depth * n_taps + depth, n_out))
    for s in range(n_slots):
        found[:] = beta * 0
        for o in range(0, n_out, LANES):
            for c in range(depth):
                dw = sums + n_bytes * (c * n_taps * n_out + o)
                db = sums + n_bytes * ((depth * n_taps + c) * n_out + o)
                for b in range(n_batch):
                    x_b = images + n_bytes * ((s * n_batch + b) * depth + c) * plane
                    for i in range(height):
                        at = (b * height + i) * width * y_column + s * n_out + o
                        x_i = x_b + n_bytes * 2 * i * columns
                        of_row = (x_i, columns, width, dy + n_bytes * at, which + at, y_column)
                        _row(one, kh, kw, of_row, dw, db, n_out)
        _step(one, found, depth * n_taps, n_out, to_w + n_bytes * s * w_slot, beta, alpha)
        if to_b:
            _step(one, found[depth * n_taps :], 1, n_out, to_b + n_bytes * s * b_slot, beta, alpha)


@compiled
def _row(one: Any, kh: Any, kw: Any, of_row: Any, dw: int, db: int, n_out: int) -> None:
    """What a row of windows adds to sixteen outputs' gradients."""
    x, columns, width, dy, which, y_column = of_row
    _gradients_of(one, (kh, kw, x, columns, width, dy, which, y_column, dw, n_out, db))


@compiled
def _step(one: Any, found_TO: Any, n_taps: int, n_out: int, to: int, beta: Any, alpha: Any) -> None:
    to_OT = array(pointer(one, to), (n_out, n_taps))
    for o in range(n_out):
        for t in range(n_taps):
            before = beta * to_OT[o, t] if beta != 0 else beta
            to_OT[o, t] = before + alpha * found_TO[t, o]
