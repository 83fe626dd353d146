"""Normalising layers. Shapes: `g` slots, `B` batch, `R` rows a client, `C` channels, `F` features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.training.fused.values import Context, Form, Memory, Value

_aten = torch.ops.aten


class LayerNorm:
    """Rows normalised to mean 0 and variance 1, then scaled and shifted by each client's own vectors."""

    def __init__(self, ctx: Context, name: str, layer: nn.LayerNorm, x: Value, prefix: str) -> None:
        self._x = x.m
        self.y = ctx.new(name, Form.ROWS, x.shape, needs_grad=True)
        self._y = self.y.m
        self._target, self._eps, self._shape = ctx.target, layer.eps, [x.shape[-1]]
        self._w, self._to_w = _vectors(ctx, f"{prefix}weight") if layer.weight is not None else (None, None)
        self._b, self._to_b = _vectors(ctx, f"{prefix}bias") if layer.bias is not None else (None, None)
        self._held: tuple[Tensor, Tensor, Tensor, Tensor]

    def forward(self) -> None:
        x = self._x.t.contiguous()
        normal, mean, scale = _aten.native_layer_norm(x, self._shape, None, None, self._eps)
        self._held = x, normal, mean, scale
        y = normal if self._w is None else normal * self._w.unsqueeze(1)
        self._y.t.copy_(y if self._b is None else y + self._b.unsqueeze(1))

    def backward(self) -> None:
        x, normal, mean, scale = self._held
        dy = self._y.grad.contiguous()
        if self._x.needs_grad:
            d_normal = dy if self._w is None else dy * self._w.unsqueeze(1)
            dx, _, _ = _aten.native_layer_norm_backward(
                d_normal, x, self._shape, mean, scale, None, None, [True, False, False]
            )
            self._x.grad.copy_(dx)
        if self._to_w is not None:
            self._target.add_vector(self._to_w, (dy * normal).sum(1))
        if self._to_b is not None:
            self._target.add_vector(self._to_b, dy.sum(1))


class GroupNorm:
    """Groups of channels normalised image by image; clients lie side by side as more groups of one normalisation."""

    def __init__(self, ctx: Context, layer: nn.GroupNorm, x: Value, prefix: str) -> None:
        self._x = x.m
        self.y = Value(Form.MAPS, x.shape, Memory(needs_grad=True, is_fixed=False))
        self._y = self.y.m
        self._target, self._eps = ctx.target, layer.eps
        g, (n_channels, *size) = ctx.n_slots, x.shape
        self._sizes = (ctx.n_batch, g * n_channels, math.prod(size), g * layer.num_groups)
        self._is_affine = layer.weight is not None
        if self._is_affine:
            self._w, self._to_w = _vectors(ctx, f"{prefix}weight")
            self._b, self._to_b = _vectors(ctx, f"{prefix}bias")
        self._held: tuple[Tensor, Tensor | None, Tensor, Tensor]

    def forward(self) -> None:
        x = self._x.t.contiguous()  # in the other order of memory, one sum goes over the channels of all clients
        w, b = (_joined(self._w), _joined(self._b)) if self._is_affine else (None, None)
        y, mean, scale = _aten.native_group_norm(x, w, b, *self._sizes, self._eps)
        self._held = x, w, mean, scale
        self._y.t = y.contiguous(memory_format=torch.channels_last)

    def backward(self) -> None:
        x, w, mean, scale = self._held
        wanted = [self._x.needs_grad, self._is_affine, self._is_affine]
        dx, dw, db = _aten.native_group_norm_backward(
            self._y.grad.contiguous(), x, mean, scale, w, *self._sizes, wanted
        )
        if self._x.needs_grad and self._x.is_fixed:
            self._x.grad.copy_(dx)
        elif self._x.needs_grad:
            self._x.grad = dx.contiguous(memory_format=torch.channels_last)
        if self._is_affine:
            self._target.add_vector(self._to_w, dw.view(self._to_w.shape))
            self._target.add_vector(self._to_b, db.view(self._to_b.shape))


def _joined(vectors_gC: Tensor) -> Tensor:
    """The clients' vectors as one, in memory of its own: of single numbers, `reshape` alone makes a view with gaps.

    The kernel reads past gaps without a look at them.
    """
    return vectors_gC.reshape(-1).contiguous()


def _vectors(ctx: Context, parameter: str) -> tuple[Tensor, Tensor]:
    """A vector of each client (g, F), and where its gradient goes."""
    return ctx.weights.flat(parameter, ctx.n_slots), ctx.target.slab.flat(parameter, ctx.n_slots)
