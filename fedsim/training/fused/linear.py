"""Linear layers of many clients as stacked products. Shapes: `g` slots, `R` rows a client, `I` inputs, `O` outputs."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.training.fused.values import Context, Form, Value


class Linear:
    """y = x W^T + b; for plain SGD the weights' gradient and their step are one product, in place.

    The gradient of x is computed before the step, from the weights that gave y. The products go over the padding.
    """

    def __init__(self, ctx: Context, name: str, layer: nn.Linear, x: Value, prefix: str) -> None:
        g, weight = ctx.n_slots, f"{prefix}weight"
        self._x = x.m
        self.y = ctx.new(name, Form.ROWS, (*x.shape[:-1], layer.out_features), needs_grad=True)
        self._y, self._dy = self.y.m.full, self.y.m.full_grad
        self._target = ctx.target
        self._w = ctx.weights.full(weight, g)
        self._wt_gIO = self._w.transpose(1, 2)
        self._to_w = ctx.target.slab.full(weight, g)
        self._dyt_gOR = self._dy.transpose(1, 2)
        self._has_bias = layer.bias is not None
        if self._has_bias:
            self._b_row = ctx.weights.full(f"{prefix}bias", g)
            self._to_b = ctx.target.slab.full(f"{prefix}bias", g)
            n_outputs = self._b_row.shape[2]
            self._db = ctx.arena.take(f"{name} bias", g, n_outputs)[: g * n_outputs].view(g, 1, n_outputs)

    def forward(self) -> None:
        if self._has_bias:
            torch.baddbmm(self._b_row, self._x.full, self._wt_gIO, out=self._y)
        else:
            torch.bmm(self._x.full, self._wt_gIO, out=self._y)

    def backward(self) -> None:
        x, target = self._x, self._target
        if x.needs_grad:
            torch.bmm(self._dy, self._w, out=x.full_grad)
        self._to_w.baddbmm_(self._dyt_gOR, x.full, beta=target.beta, alpha=target.alpha)
        if self._has_bias:
            torch.sum(self._dy, 1, keepdim=True, out=self._db)
            target.add_vector(self._to_b, self._db)
