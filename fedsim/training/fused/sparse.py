"""The way back through a convolution whose outputs went through ReLU and a 2 x 2 max-pool, on the host, compiled.

Of the four outputs in a window one has a gradient at most, and where ReLU gave zero none has: three quarters and more
of what a library multiplies there are zeros. Here the gradients that there are get listed, channel by channel, with
the place of each; one of them meets a patch of the input, of 16 channels at a time. The weights' gradients of an
output, or its weights, stay in registers while the list is worked through. Slots are taken one after the other, and
lists are in the order of the windows, so a client's bits depend on nothing but its own numbers.

Maps are (B, H, W, slots C), as in `fedsim.training.fused.images`, which also says what `which` and `kernel` are. An
image with its border is (C / 16, height, width, 16) here. Operands are addresses; strides are in numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from fedsim.addresses import array, pointer
from fedsim.training.fused.pooling import NONE
from fedsim.training.fused.vectors import LANES, Emitter, cgutils, compiled, inner


def _patches(e: Emitter, operands: Any, each: Any) -> None:
    """For each number of a list, calls `each` with the number and pointers to the patch that it meets, tap by tap."""
    kh, kw, n, places, values, maps, row = operands
    b = e.builder
    whole = ir.IntType(64).as_pointer()
    with cgutils.for_range(b, n) as loop:
        place = b.load(b.gep(b.inttoptr(places, whole), [loop.index]))
        corner = e.at(maps, place)
        rows = [e.at(corner, b.mul(row, e.index(i))) for i in range(kh)]
        each(e.number(e.at(values, loop.index)), [e.at(rows[t // kw], t % kw * LANES) for t in range(kh * kw)])


def _emit_weights(e: Emitter, *operands: Any) -> None:
    """Adds to the gradients of an output's weights, for 16 channels of the input."""
    *of_list, dw = operands
    n_taps = of_list[0] * of_list[1]
    sums = e.variables(n_taps)
    for t, total in enumerate(sums):
        e.builder.store(e.load(e.at(dw, t * LANES)), total)

    def each(value: Any, patch: Any) -> None:
        for total, where in zip(sums, patch, strict=True):
            e.builder.store(e.fma(value, e.load(where), e.builder.load(total)), total)

    _patches(e, of_list, each)
    for t, total in enumerate(sums):
        e.store(e.builder.load(total), e.at(dw, t * LANES))


def _emit_inputs(e: Emitter, *operands: Any) -> None:
    """Adds to the gradients of 16 channels of the input what one output gives."""
    *of_list, w = operands
    weights = [e.load(e.at(w, t * LANES)) for t in range(of_list[0] * of_list[1])]

    def each(value: Any, patch: Any) -> None:
        for weight, where in zip(weights, patch, strict=True):
            e.store(e.fma(value, weight, e.load(where)), where)

    _patches(e, of_list, each)


_weights, _inputs = inner(_emit_weights), inner(_emit_inputs)


@compiled
def backward(
    one: Any, kernel: tuple[Any, Any], n_slots: int, n_batch: int, x: int, maps: tuple[int, ...],
    before: tuple[int, ...], dy: int, which: int, windows: tuple[int, ...], n_out: int, has_dx: bool, dx: int,
    w: int, w_slot: int, to_w: int, to_b: int, b_slot: int, beta: Any, alpha: Any, n_bytes: int,
    image: Any, turned: Any, sums: Any, values: Any, places: Any,
) -> None:  # fmt: skip
    """dx if wanted, then `to_w` <- beta `to_w` + alpha times the gradient, and the bias's likewise unless `to_b` is 0.

    Rooms: `image` (2, C / 16, height, width, 16), whose first half has a border of zeros; `turned` (O, C / 16, taps,
    16) and `sums`, which has O more; `values` and `places` (O, windows of a sample).
    """
    kh, kw = kernel
    n_taps, row, n_images = len(kh) * len(kw), image.shape[3] * LANES, image.shape[1]
    for s in range(n_slots):
        if has_dx:
            _turn(one, w + n_bytes * s * w_slot, turned)
        sums[:] = beta * 0
        for b in range(n_batch):
            _take(one, x, n_slots, s, b, maps, before, image[0], n_bytes)
            counts = _list(one, dy, which, n_slots, s, b, windows, n_out, row, values, places, sums, n_bytes)
            image[1] = beta * 0
            for o in range(n_out):
                own, at = values[o].ctypes.data, places[o].ctypes.data
                for c in range(n_images):
                    first = (o * n_images + c) * n_taps * LANES
                    _weights(one, (kh, kw, counts[o], at, own, image[0, c].ctypes.data, row, sums[first:].ctypes.data))
                    if has_dx:
                        _inputs(
                            one, (kh, kw, counts[o], at, own, image[1, c].ctypes.data, row, turned[o, c].ctypes.data)
                        )
            if has_dx:
                _give(one, dx, n_slots, s, b, maps, before, image[1], n_bytes)
        _step(one, sums, turned.shape, to_w + n_bytes * s * w_slot, beta, alpha)
        if to_b:
            bias = array(pointer(one, to_b + n_bytes * s * b_slot), (n_out,))
            for o in range(n_out):
                kept = beta * bias[o] if beta != 0 else beta
                bias[o] = kept + alpha * sums[sums.size - n_out + o]


@compiled
def _turn(one: Any, w: int, turned: Any) -> None:
    """(O, C, taps) to (O, C / 16, taps, 16)."""
    n_out, n_images, n_taps, _ = turned.shape
    own = array(pointer(one, w), (n_out, n_images, LANES, n_taps))
    for o in range(n_out):
        for c in range(n_images):
            for t in range(n_taps):
                for i in range(LANES):
                    turned[o, c, t, i] = own[o, c, i, t]


@compiled
def _step(one: Any, sums: Any, shape: tuple[int, ...], to: int, beta: Any, alpha: Any) -> None:
    n_out, n_images, n_taps, _ = shape
    own = array(pointer(one, to), (n_out, n_images, LANES, n_taps))
    found = sums[: own.size].reshape(shape)
    for o in range(n_out):
        for c in range(n_images):
            for i in range(LANES):
                for t in range(n_taps):
                    kept = beta * own[o, c, i, t] if beta != 0 else beta
                    own[o, c, i, t] = kept + alpha * found[o, c, t, i]


@compiled
def _take(
    one: Any, x: int, n_slots: int, s: int, b: int, maps: tuple[int, ...], before: tuple[int, ...], image: Any,
    n_bytes: int,
) -> None:  # fmt: skip
    """A sample's maps of a slot, with a border around them."""
    (depth, height, width), (top, left) = maps, before
    for i in range(height):
        for j in range(width):
            at = ((b * height + i) * width + j) * n_slots * depth + s * depth
            own = array(pointer(one, x + n_bytes * at), (depth // LANES, LANES))
            for c in range(depth // LANES):
                for k in range(LANES):
                    image[c, top + i, left + j, k] = own[c, k]


@compiled
def _give(
    one: Any, dx: int, n_slots: int, s: int, b: int, maps: tuple[int, ...], before: tuple[int, ...], image: Any,
    n_bytes: int,
) -> None:  # fmt: skip
    """The inside of an image, as a sample's maps of a slot."""
    (depth, height, width), (top, left) = maps, before
    for i in range(height):
        for j in range(width):
            at = ((b * height + i) * width + j) * n_slots * depth + s * depth
            own = array(pointer(one, dx + n_bytes * at), (depth // LANES, LANES))
            for c in range(depth // LANES):
                for k in range(LANES):
                    own[c, k] = image[c, top + i, left + j, k]


@compiled
def _list(
    one: Any, dy: int, which: int, n_slots: int, s: int, b: int, windows: tuple[int, ...], n_out: int, row: int,
    values: Any, places: Any, sums: Any, n_bytes: int,
) -> Any:  # fmt: skip
    """The gradients that there are, by output, and where in an image their patches begin; adds them to the bias's."""
    rows, columns = windows
    counts = np.zeros(n_out, np.int64)
    first = sums.size - n_out
    for i in range(rows):
        for j in range(columns):
            at = ((b * rows + i) * columns + j) * n_slots * n_out + s * n_out
            own = array(pointer(one, dy + n_bytes * at), (n_out,))
            of = array(pointer(np.uint8(1), which + at), (n_out,))
            for o in range(n_out):
                p, n = np.int64(of[o]), counts[o]
                is_there = p != NONE
                values[o, n] = own[o]
                places[o, n] = (2 * i + p // 2) * row + (2 * j + p % 2) * LANES
                counts[o] = n + is_there
                sums[first + o] += own[o] if is_there else one - one
    return counts
