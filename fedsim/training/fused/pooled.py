"""A convolution with its ReLU and 2 x 2 max-pool as one layer on the host.

The first one, which reads the samples, is compiled both ways (`fedsim.training.fused.images`). Of a later one the way
forward is the library's, and the way back takes only the gradients that the pool lets through
(`fedsim.training.fused.sparse`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.training.fused import images, pooling, sparse
from fedsim.training.fused.convolution import Rectified, padding_of, pair, rows
from fedsim.training.fused.graph import Node
from fedsim.training.fused.grouped import Grouped, How
from fedsim.training.fused.values import Context, Form, Memory, Value
from fedsim.training.fused.vectors import LANES


class FirstMaps(nn.Module):
    """A convolution of the samples, ReLU and max-pool: what the three become."""

    def __init__(self, convolution: nn.Conv2d, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel, self.padding = pair(convolution.kernel_size), pair(padding_of(convolution))
        self.image_shape = image_shape


class PooledMaps(nn.Module):
    """A later convolution, ReLU and max-pool: what the three become."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel, self.padding = pair(convolution.kernel_size), pair(padding_of(convolution))


def joined(nodes: Sequence[Node], sample_shape: tuple[int, ...]) -> list[Node]:
    """The nodes, each convolution and the rectified pool that alone reads it made one; Identity is left of it."""
    result = list(nodes)
    for i, node in enumerate(nodes, 1):
        pool = _pool_of(nodes, i) if isinstance(node.layer, nn.Conv2d) else None
        if pool is None or not _is_met(node, nodes[pool - 1]):
            continue
        assert isinstance(node.layer, nn.Conv2d)
        image = nodes[node.inputs[0] - 1].shape if node.inputs[0] else sample_shape
        layer: nn.Module
        if _is_raw(nodes, node.inputs[0]):
            layer = FirstMaps(node.layer, image)
        elif node.layer.in_channels % LANES == 0:
            layer = PooledMaps(node.layer)
        else:
            continue
        for j in range(i, pool):  # the convolution, and what was the ReLU
            result[j - 1] = replace(nodes[j - 1], layer=nn.Identity(), shape=image)
        result[pool - 1] = replace(nodes[pool - 1], layer=layer, name=node.name)
    return result


def _is_raw(nodes: Sequence[Node], i: int) -> bool:
    """Whether value `i` is the samples, in whatever shape, and has one reader."""
    while sum(i in node.inputs for node in nodes) == 1:
        if i == 0:
            return True
        if not isinstance(nodes[i - 1].layer, nn.Flatten | nn.Unflatten | nn.Identity):
            return False
        i = nodes[i - 1].inputs[0]
    return False


def _pool_of(nodes: Sequence[Node], i: int) -> int | None:
    """The rectified pool that alone reads value `i`, at once or behind the place that its ReLU left."""
    first = i
    while True:
        readers = [j for j, node in enumerate(nodes, 1) if i in node.inputs]
        is_next = readers == [i + 1] and isinstance(nodes[i].layer, nn.Identity | Rectified)
        if not is_next or i > first + 1:
            return None
        i += 1
        if isinstance(nodes[i - 1].layer, Rectified):
            return i


def _is_met(node: Node, pool: Node) -> bool:
    """Whether the compiled code takes this convolution, and this pool: windows of 2 x 2 side by side over all maps."""
    layer, maps = node.layer, node.shape
    assert isinstance(layer, nn.Conv2d) and isinstance(pool.layer, Rectified)
    sizes = [pair(n) for n in (pool.layer.kernel_size, pool.layer.stride, pool.layer.padding, pool.layer.dilation)]
    covers = sizes == [[2, 2], [2, 2], [0, 0], [1, 1]] and maps[1:] == tuple(2 * n for n in pool.shape[1:])
    is_plain = layer.groups == 1 and pair(layer.stride) == pair(layer.dilation) == [1, 1]
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return covers and is_plain and layer.out_channels % LANES == 0 and taps <= images.MOST_TAPS


class First:
    """`FirstMaps` on the host."""

    def __init__(self, ctx: Context, name: str, layer: FirstMaps, x: Value, prefix: str, out: tuple[int, ...]) -> None:
        self._x, self._one, self._n_bytes = x.m, ctx.one, ctx.arena.dtype.itemsize
        g, n_batch, dtype = ctx.n_slots, ctx.n_batch, ctx.arena.dtype
        self._size, (top, left) = layer.image_shape, layer.padding
        self._before, n_out, n_taps = (top, left), out[0], layer.weight[0].numel()
        self._image = (self._size[0], self._size[1] + 2 * top, self._size[2] + 2 * left)
        n_image = n_batch * int(np.prod(self._image))
        self._images = ctx.arena.take(f"{name} images", g, n_image)
        self._turned = ctx.arena.take(f"{name} turned", 1, n_taps * n_out)
        self._sums = ctx.arena.take(f"{name} sums", 1, (n_taps + self._size[0]) * n_out)
        own = ctx.new(name, Form.MAPS, out, needs_grad=False)
        self.y = Value(Form.MAPS, out, Memory(needs_grad=True, is_fixed=False))
        self._y, self._t = self.y.m, own.m.t
        self._which = torch.zeros((g, n_batch, *out), dtype=torch.uint8)
        self._counts, self._out = (g, n_batch), (n_out, (out[1], out[2]))
        self._kernel = ((0,) * layer.kernel[0], (0,) * layer.kernel[1])
        w, to_w = (slab.full(f"{prefix}weight", g) for slab in (ctx.weights, ctx.target.slab))
        self._w, self._to_w = (w.data_ptr(), w.stride(0)), (to_w.data_ptr(), to_w.stride(0))
        self._zeros = torch.zeros(n_out, dtype=dtype)
        self._b, self._to_b = (self._zeros.data_ptr(), 0), (0, 0)
        if layer.bias is not None:
            b, to_b = (slab.full(f"{prefix}bias", g) for slab in (ctx.weights, ctx.target.slab))
            self._b, self._to_b = (b.data_ptr(), b.stride(0)), (to_b.data_ptr(), to_b.stride(0))
        self._factors = type(ctx.one)(ctx.target.beta), type(ctx.one)(ctx.target.alpha)

    def forward(self) -> None:
        x, one, (n_out, windows) = self._x.full, self._one, self._out
        images.pad(
            one, *self._counts, self._size, x.data_ptr(), x.stride(0), x.stride(1),
            self._images.data_ptr(), self._image[1:], self._before, self._n_bytes,
        )  # fmt: skip
        images.forward(
            one, self._kernel, *self._counts, self._images.data_ptr(), self._image, *self._w, *self._b,
            self._turned.data_ptr(), n_out, self._t.data_ptr(), self._which.data_ptr(), windows, self._n_bytes,
        )  # fmt: skip
        self._y.t = self._t

    def backward(self) -> None:
        n_out, windows = self._out
        dy = self._y.grad.contiguous(memory_format=torch.channels_last)
        images.backward(
            self._one, self._kernel, *self._counts, self._images.data_ptr(), self._image,
            dy.data_ptr(), self._which.data_ptr(), windows, self._sums.data_ptr(), n_out,
            *self._to_w, *self._to_b, *self._factors, self._n_bytes,
        )  # fmt: skip


class Pooled:
    """`PooledMaps` on the host."""

    def __init__(self, ctx: Context, name: str, layer: PooledMaps, x: Value, prefix: str, out: tuple[int, ...]) -> None:
        self._x, self._one, self._n_bytes = x.m, ctx.one, ctx.arena.dtype.itemsize
        g, (n_out, *windows), (depth, height, width) = ctx.n_slots, out, x.shape
        (top, left), self._size, self._n_windows = layer.padding, (depth, height, width), (windows[0], windows[1])
        self._before, self._counts, self._n_out = (top, left), (g, ctx.n_batch), n_out
        own = ctx.new(name, Form.MAPS, out, needs_grad=False)
        self.y = Value(Form.MAPS, out, Memory(needs_grad=True, is_fixed=False))
        self._y, self._t, self._y_BHWC = self.y.m, own.m.t, rows(own.m.t)
        self._which_BHWC = np.zeros(self._y_BHWC.shape, np.uint8)
        self._dx = x.m.grad if x.m.is_fixed and x.m.needs_grad else None
        if self._dx is None and x.m.needs_grad:
            self._dx = ctx.new(f"{name} in", Form.MAPS, x.shape, needs_grad=False).m.t
        self._kernel = ((0,) * layer.kernel[0], (0,) * layer.kernel[1])
        w, to_w = (slab.full(f"{prefix}weight", g) for slab in (ctx.weights, ctx.target.slab))
        self._weight = ctx.weights.flat(f"{prefix}weight", g).reshape(g * n_out, *layer.weight.shape[1:])
        self._w, self._to_w = (w.data_ptr(), w.stride(0)), to_w.data_ptr()
        self._bias: torch.Tensor | None = None
        self._to_b = (0, 0)
        if layer.bias is not None:
            self._bias = ctx.weights.flat(f"{prefix}bias", g)
            to_b = ctx.target.slab.full(f"{prefix}bias", g)
            self._to_b = (to_b.data_ptr(), to_b.stride(0))
        self._grouped = Grouped(
            How((1, 1), self._before, (1, 1), 1), g, (ctx.n_batch, *x.shape), tuple(layer.weight.shape),
            has_bias=layer.bias is not None, wanted=(False, False, False), dtype=ctx.arena.dtype,
            device=ctx.arena.device,
        )  # fmt: skip
        self._factors = type(ctx.one)(ctx.target.beta), type(ctx.one)(ctx.target.alpha)
        self._rooms = self._room(ctx, name, layer)

    def _room(self, ctx: Context, name: str, layer: PooledMaps) -> tuple[Any, ...]:
        """What `sparse.backward` works in, which programs of all sizes share: it holds one slot."""
        (depth, height, width), (top, left), n_out = self._size, self._before, self._n_out
        n_images, n_taps, n_windows = depth // LANES, layer.weight[0, 0].numel(), math.prod(self._n_windows)
        sizes = {
            "image": (2, n_images, height + 2 * top, width + 2 * left, LANES),
            "turned": (n_out, n_images, n_taps, LANES),
            "sums": (n_out * depth * n_taps + n_out,),
            "values": (n_out, n_windows),
        }
        made = [
            ctx.arena.take(f"{name} {what}", 1, math.prod(size))[: math.prod(size)].view(size).numpy()
            for what, size in sizes.items()
        ]
        return *made, np.zeros((n_out, n_windows), np.int64)

    def forward(self) -> None:
        x = self._held = self._x.t.contiguous(memory_format=torch.channels_last)
        bias = None if self._bias is None else self._bias.reshape(-1)
        y = self._grouped.forward(x, self._weight, bias)
        pooling.forward_2x2(rows(y), self._y_BHWC, self._which_BHWC)
        self._y.t = self._t

    def backward(self) -> None:
        dy = self._y.grad.contiguous(memory_format=torch.channels_last)
        dx, one = self._dx, self._one
        to = 0 if dx is None else dx.data_ptr()
        at, windows = (dy.data_ptr(), self._which_BHWC.ctypes.data), self._n_windows
        image, turned, sums, values, places = self._rooms
        sparse.backward(
            one, self._kernel, *self._counts, self._held.data_ptr(), self._size, self._before, *at, windows,
            self._n_out, dx is not None, to, *self._w, self._to_w, *self._to_b, *self._factors, self._n_bytes,
            image, turned, sums, values, places,
        )  # fmt: skip
        if dx is not None:
            self._x.grad = dx
