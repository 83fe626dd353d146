"""Max-pooling of maps on the host, compiled by numba: with ReLU before it in the same pass, or without.

torch keeps an eight-byte index a window and goes over the maps four times, forward and back, for a ReLU and a pool;
here it is a byte and twice. Nothing is added up where windows do not overlap, so there is no rounding: the results are
torch's to the last bit. Of equal numbers the first in row-major order gets the gradient; at 0 a ReLU gives none.
Arrays are (B, H, W, C), contiguous: `x` and its gradient `dx`, `y` and `dy` of the windows; `which` says for each
window where in it the largest is, or `NONE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])
NONE = 255
MOST = 255  # numbers of a window that a byte can tell apart from NONE


class Windows(NamedTuple):
    """Sizes of windows, and how they lie: down and across each."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def _compiled(function: F) -> F:
    """The function as machine code, kept on the disk between processes; types as those of the function."""
    return cast(F, numba.njit(cache=True)(function))


@_compiled
def forward(x: Any, y: Any, which: Any, windows: Windows, is_relu: bool) -> None:
    """Fills `y` and `which`; with `is_relu`, of max(x, 0). NaN counts as larger than anything, as in torch."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = windows
    n_batch, height, width, n_channels = x.shape
    zero = x.dtype.type(0)
    for b in range(n_batch):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                y_C, which_C = y[b, i, j], which[b, i, j]
                is_first = not is_relu
                if is_relu:
                    y_C[:] = zero
                    which_C[:] = NONE
                for p in range(kh * kw):
                    h, w = i * sh - ph + p // kw * dh, j * sw - pw + p % kw * dw
                    if h < 0 or h >= height or w < 0 or w >= width:
                        continue
                    x_C = x[b, h, w]
                    if is_first:
                        y_C[:] = x_C
                        which_C[:] = p
                        is_first = False
                        continue
                    for c in range(n_channels):
                        is_larger = x_C[c] > y_C[c] or x_C[c] != x_C[c]
                        y_C[c] = x_C[c] if is_larger else y_C[c]
                        which_C[c] = p if is_larger else which_C[c]


@_compiled
def backward(dy: Any, which: Any, dx: Any, windows: Windows) -> None:
    """Fills `dx`: each window's gradient goes to its largest number."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = windows
    n_batch, height, width, n_channels = dx.shape
    zero = dx.dtype.type(0)
    dx[:] = zero
    for b in range(n_batch):
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                dy_C, which_C = dy[b, i, j], which[b, i, j]
                for p in range(kh * kw):
                    h, w = i * sh - ph + p // kw * dh, j * sw - pw + p % kw * dw
                    if h < 0 or h >= height or w < 0 or w >= width:
                        continue
                    dx_C = dx[b, h, w]
                    for c in range(n_channels):
                        dx_C[c] += dy_C[c] if which_C[c] == p else zero


@_compiled
def forward_2x2(x: Any, y: Any, which: Any) -> None:
    """`forward` with ReLU for windows of 2 x 2 side by side."""
    zero = x.dtype.type(0)
    for b in range(x.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                y_C, which_C = y[b, i, j], which[b, i, j]
                x0, x1 = x[b, 2 * i, 2 * j], x[b, 2 * i, 2 * j + 1]
                x2, x3 = x[b, 2 * i + 1, 2 * j], x[b, 2 * i + 1, 2 * j + 1]
                for c in range(x.shape[3]):
                    best, at = (x0[c], 0) if x0[c] > zero or x0[c] != x0[c] else (zero, NONE)
                    best, at = (x1[c], 1) if x1[c] > best or x1[c] != x1[c] else (best, at)
                    best, at = (x2[c], 2) if x2[c] > best or x2[c] != x2[c] else (best, at)
                    best, at = (x3[c], 3) if x3[c] > best or x3[c] != x3[c] else (best, at)
                    y_C[c], which_C[c] = best, at


@_compiled
def backward_2x2(dy: Any, which: Any, dx: Any) -> None:
    """`backward` for windows of 2 x 2 side by side that cover everything."""
    zero = dy.dtype.type(0)
    for b in range(dx.shape[0]):
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                dy_C, which_C = dy[b, i, j], which[b, i, j]
                for p in range(4):
                    dx_C = dx[b, 2 * i + p // 2, 2 * j + p % 2]
                    for c in range(dx.shape[3]):
                        dx_C[c] = dy_C[c] if which_C[c] == p else zero
