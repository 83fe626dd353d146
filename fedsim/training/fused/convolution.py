"""Convolutions and pools of many clients side by side, with a group of channels a client, channels last.

A convolution of one client is another kernel's work, so a program of maps has two slots at least; see
`fedsim.training.fused.grouped`. Shapes: `B` batch, `g` slots, `C` channels, `O` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.training.fused import pooling
from fedsim.training.fused.graph import Node
from fedsim.training.fused.grouped import Grouped, How
from fedsim.training.fused.values import Context, Form, Memory, Value

_aten = torch.ops.aten


class Conv2d:
    """A grouped convolution; the output's memory is the library's own."""

    def __init__(self, ctx: Context, layer: nn.Conv2d, x: Value, prefix: str, out_shape: tuple[int, ...]) -> None:
        g = ctx.n_slots
        self._x = x.m
        self.y = Value(Form.MAPS, out_shape, Memory(needs_grad=True, is_fixed=False))
        self._y = self.y.m
        self._target = ctx.target
        self._size = (g * layer.out_channels, *layer.weight.shape[1:])
        self._w = ctx.weights.flat(f"{prefix}weight", g)
        self._to_w = ctx.target.slab.flat(f"{prefix}weight", g)
        self._has_bias = layer.bias is not None
        if self._has_bias:
            self._b = ctx.weights.flat(f"{prefix}bias", g)
            self._to_b = ctx.target.slab.flat(f"{prefix}bias", g)
        how = How(layer.stride, padding_of(layer), layer.dilation, layer.groups)
        wanted = (x.m.needs_grad, True, self._has_bias)
        self._grouped = Grouped(
            how, g, (ctx.n_batch, *x.shape), tuple(layer.weight.shape), has_bias=self._has_bias, wanted=wanted,
            dtype=ctx.arena.dtype, device=ctx.arena.device,
        )  # fmt: skip
        self._held: Tensor

    def forward(self) -> None:
        self._held = self._w.reshape(self._size)
        b = self._b.reshape(-1) if self._has_bias else None
        self._y.t = self._grouped.forward(self._x.t, self._held, b)

    def backward(self) -> None:
        x, y, target = self._x, self._y, self._target
        dx, dw, db = self._grouped.backward(y.grad, x.t, self._held)
        if dx is not None and x.is_fixed:
            x.grad.copy_(dx)
        elif dx is not None:
            x.grad = dx
        assert dw is not None
        target.add_vector(self._to_w, dw.reshape(self._w.shape))
        if db is not None:
            target.add_vector(self._to_b, db.view(self._b.shape))


def padding_of(layer: nn.Conv2d) -> tuple[int, ...]:
    """A convolution's padding in numbers; one in words is not met here."""
    assert not isinstance(layer.padding, str)
    return layer.padding


class MaxPool2d:
    """The largest of each window; of equal ones the first in row-major order gets the gradient, as in torch."""

    def __init__(self, ctx: Context, layer: nn.MaxPool2d, x: Value, out_shape: tuple[int, ...]) -> None:
        self._x = x.m
        self.y = Value(Form.MAPS, out_shape, Memory(needs_grad=x.m.needs_grad, is_fixed=False))
        self._y = self.y.m
        kernel, stride = pair(layer.kernel_size), pair(layer.stride)
        self._where = (kernel, stride, pair(layer.padding), pair(layer.dilation), layer.ceil_mode)
        self._indices: Tensor

    def forward(self) -> None:
        self._y.t, self._indices = _aten.max_pool2d_with_indices(self._x.t, *self._where)

    def backward(self) -> None:
        x = self._x
        if not x.needs_grad:
            return
        dx = _aten.max_pool2d_with_indices_backward(self._y.grad, x.t, *self._where, self._indices)
        if x.is_fixed:
            x.grad.copy_(dx)
        else:
            x.grad = dx


class Rectified(nn.MaxPool2d):
    """Max-pooling of max(x, 0): what a ReLU and the pool that alone reads it become."""


def joined(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, each ReLU that one max-pool alone reads taken into the pool; nothing is left in its place."""
    result = list(nodes)
    for i, node in enumerate(nodes, 1):
        readers = [j for j, other in enumerate(nodes) if i in other.inputs]
        if type(node.layer) is nn.ReLU and len(readers) == 1 and type(pool := nodes[readers[0]].layer) is nn.MaxPool2d:
            if math.prod(pair(pool.kernel_size)) > pooling.MOST:
                continue
            layer = Rectified(pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode)
            result[i - 1] = replace(node, layer=nn.Identity())
            result[readers[0]] = replace(nodes[readers[0]], layer=layer)
    return result


class RectifiedMaxPool2d:
    """`Rectified` on the host; see `fedsim.training.fused.pooling`."""

    def __init__(self, ctx: Context, name: str, layer: Rectified, x: Value, out_shape: tuple[int, ...]) -> None:
        self._x = x.m
        self._windows = pooling.Windows(
            *(_two(n) for n in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
        )
        own = ctx.new(name, Form.MAPS, out_shape, needs_grad=False)
        self.y = Value(Form.MAPS, out_shape, Memory(needs_grad=x.m.needs_grad, is_fixed=False))
        self._y, self._t, self._y_BHWC = self.y.m, own.m.t, rows(own.m.t)
        self._which_BHWC = np.zeros(self._y_BHWC.shape, np.uint8)
        self._dx = x.m.grad if x.m.is_fixed and x.m.needs_grad else None
        if self._dx is None and x.m.needs_grad:
            self._dx = ctx.new(f"{name} in", Form.MAPS, x.shape, needs_grad=False).m.t
        self._is_2x2 = self._windows == ((2, 2), (2, 2), (0, 0), (1, 1)) and x.shape[1:] == tuple(
            2 * n for n in out_shape[1:]
        )

    def forward(self) -> None:
        x_BHWC, self._y.t = rows(self._x.t), self._t
        if self._is_2x2:
            pooling.forward_2x2(x_BHWC, self._y_BHWC, self._which_BHWC)
        else:
            pooling.forward(x_BHWC, self._y_BHWC, self._which_BHWC, self._windows, True)

    def backward(self) -> None:
        if self._dx is None:
            return
        dy_BHWC, dx_BHWC = rows(self._y.grad), rows(self._dx)
        if self._is_2x2:
            pooling.backward_2x2(dy_BHWC, self._which_BHWC, dx_BHWC)
        else:
            pooling.backward(dy_BHWC, self._which_BHWC, dx_BHWC, self._windows)
        self._x.grad = self._dx


def rows(maps: Tensor) -> NDArray[Any]:
    """Maps as an array (B, H, W, C): the same memory where channels are last."""
    rows: NDArray[Any] = maps.permute(0, 2, 3, 1).contiguous().numpy()
    return rows


def _two(size: int | tuple[int, ...]) -> tuple[int, int]:
    height, width = pair(size)
    return height, width


def pair(size: int | tuple[int, ...]) -> list[int]:
    """Height and width of a setting that may be one number for both."""
    return [size, size] if isinstance(size, int) else list(size)


class AdaptiveMaxPool2d:
    """The largest of windows that give the size asked for, plane by plane; the first of equal ones, as `MaxPool2d`."""

    def __init__(self, x: Value, out_shape: tuple[int, ...]) -> None:
        self._x = x.m
        self.y = Value(Form.MAPS, out_shape, Memory(needs_grad=x.m.needs_grad, is_fixed=False))
        self._y = self.y.m
        self._size = list(out_shape[1:])
        self._held: tuple[Tensor, Tensor]

    def forward(self) -> None:
        x = self._x.t.contiguous()
        y, indices = _aten.adaptive_max_pool2d(x, self._size)
        self._held = x, indices
        self._y.t = y.contiguous(memory_format=torch.channels_last)

    def backward(self) -> None:
        x = self._x
        if not x.needs_grad:
            return
        dx = _aten.adaptive_max_pool2d_backward(self._y.grad.contiguous(), *self._held)
        if x.is_fixed:
            x.grad.copy_(dx)
        else:
            x.grad = dx.contiguous(memory_format=torch.channels_last)


class AveragePool2d:
    """The mean of each window; for an adaptive layer, of windows that give the size asked for.

    Plane by plane: with channels last, the adaptive kernel rounds the last channels in another way than the others,
    and which client has the last ones depends on the group. On a GPU the adaptive kernel's backward pass adds up in any
    order, and torch refuses it; there the means are products with matrices of rows and of columns (`by_products`).
    """

    def __init__(
        self, ctx: Context, layer: nn.AvgPool2d | nn.AdaptiveAvgPool2d, x: Value, out_shape: tuple[int, ...]
    ) -> None:
        self._x = x.m
        self.y = Value(Form.MAPS, out_shape, Memory(needs_grad=x.m.needs_grad, is_fixed=False))
        self._y = self.y.m
        self._size = list(out_shape[1:])
        self._where: tuple[Any, ...] = ()
        self._is_adaptive = isinstance(layer, nn.AdaptiveAvgPool2d)
        self.by_products = self._is_adaptive and ctx.arena.device.type != "cpu"
        if self._is_adaptive:
            sizes, dtype, device = zip(x.shape[1:], self._size, strict=True), ctx.arena.dtype, ctx.arena.device
            self._rows, self._columns = (window_means(*lengths).to(device, dtype) for lengths in sizes)
        if isinstance(layer, nn.AvgPool2d):
            kernel, stride, padding = pair(layer.kernel_size), pair(layer.stride), pair(layer.padding)
            self._where = (kernel, stride, padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override)

    def forward(self) -> None:
        x = self._x.t.contiguous()
        y = self._rows @ x @ self._columns.T if self.by_products else self._pooled(x)
        self._y.t = y.contiguous(memory_format=torch.channels_last)

    def _pooled(self, x: Tensor) -> Tensor:
        pooled = _aten._adaptive_avg_pool2d(x, self._size) if self._is_adaptive else _aten.avg_pool2d(x, *self._where)
        return cast(Tensor, pooled)

    def backward(self) -> None:
        x = self._x
        if not x.needs_grad:
            return
        planes, dy = x.t.contiguous(), self._y.grad.contiguous()
        if self.by_products:
            dx = self._rows.T @ dy @ self._columns
        elif self._is_adaptive:
            dx = _aten._adaptive_avg_pool2d_backward(dy, planes)
        else:
            dx = _aten.avg_pool2d_backward(dy, planes, *self._where)
        if x.is_fixed:
            x.grad.copy_(dx)
        else:
            x.grad = dx.contiguous(memory_format=torch.channels_last)


def window_means(n_in: int, n_out: int) -> Tensor:
    """The matrix (n_out, n_in) of means over the windows of adaptive pooling along one axis, float64.

    >>> window_means(5, 2)
    tensor([[0.3333, 0.3333, 0.3333, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    """
    means = torch.zeros((n_out, n_in), dtype=torch.float64)
    for i in range(n_out):
        start, stop = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
        means[i, start:stop] = 1.0 / (stop - start)
    return means
