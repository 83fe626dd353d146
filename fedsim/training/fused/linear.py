"""Linear layers of many clients as stacked products. Shapes: `g` slots, `R` rows a client, `I` inputs, `O` outputs."""

from __future__ import annotations

import math

import torch
from torch import nn

from fedsim.training.fused import products, tape
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


def is_compiled(ctx: Context, x: Value) -> bool:
    """Whether a layer's products are those of `fedsim.training.fused.products`: on the host, for few rows."""
    return ctx.is_compiled and ctx.n_batch * math.prod(x.shape[:-1]) <= products.MOST_ROWS


class CompiledLinear:
    """`Linear` on the host, for few rows a client."""

    def __init__(self, ctx: Context, name: str, layer: nn.Linear, x: Value, prefix: str) -> None:
        g, weight = ctx.n_slots, f"{prefix}weight"
        self._x, self._one, self._n_bytes = x.m, ctx.one, ctx.arena.dtype.itemsize
        self.y = ctx.new(name, Form.ROWS, (*x.shape[:-1], layer.out_features), needs_grad=True)
        self._operands = w, y, dy = ctx.weights.full(weight, g), self.y.m.full, self.y.m.full_grad
        to_w = ctx.target.slab.full(weight, g)
        n_rows, self._row = y.shape[1], w.shape[2]
        self._sizes = (g, n_rows, self._row, layer.out_features)
        self._w, self._to_w = (w.data_ptr(), w.stride(0)), to_w.data_ptr()
        self._y, self._dy = ((m.data_ptr(), m.stride(0), m.stride(1)) for m in (y, dy))
        self._factors = type(ctx.one)(ctx.target.beta), type(ctx.one)(ctx.target.alpha)
        self._to_b: tuple[int, int] | None = None
        self._zeros = y.new_zeros(w.shape[1])
        self._b = (self._zeros.data_ptr(), 0)
        if layer.bias is not None:
            b, to_b = ctx.weights.full(f"{prefix}bias", g), ctx.target.slab.full(f"{prefix}bias", g)
            self._b, self._to_b = (b.data_ptr(), b.stride(0)), (to_b.data_ptr(), to_b.stride(0))

    def forward(self) -> None:
        x = self._x.full
        place = (x.data_ptr(), x.stride(0), self._row)
        products.forward(self._one, *self._sizes, *place, *self._w, *self._b, *self._y, self._n_bytes)

    def backward(self) -> None:
        x, dx, one, factors = self._x.full, (0, 0, 0), self._one, self._factors
        if self._x.needs_grad:
            grad = self._x.full_grad
            dx = (grad.data_ptr(), grad.stride(0), self._row)
        place = (x.data_ptr(), x.stride(0), self._row)
        products.backward(
            one, *self._sizes, self._x.needs_grad, *self._dy, *self._w, *place, *dx, self._to_w, self._to_w, *factors,
            self._n_bytes,
        )  # fmt: skip
        if self._to_b is not None:
            g, n_rows, _, n_outputs = self._sizes
            to_b = (self._to_b[0], *self._to_b)
            products.add_sums(one, g, n_rows, n_outputs, *self._dy, *to_b, *factors, self._n_bytes)

    def rows(self) -> tuple[list[tape.Row], list[tape.Row]] | None:
        """See `fedsim.training.fused.layers.Recordable`."""
        x, dx = self._x.place(), self._x.place(is_grad=True) if self._x.needs_grad else (0, 0)
        if x is None or dx is None:
            return None
        w, row = self._w, self._row
        forward: list[tape.Row] = [(tape.FORWARD, *self._sizes, *x, row, *w, *self._b, *self._y)]
        has_dx, sizes = int(self._x.needs_grad), self._sizes
        backward: list[tape.Row] = [(tape.BACKWARD, *sizes, has_dx, *self._dy, *w, *x, row, *dx, row, self._to_w)]
        if self._to_b is not None:
            backward.append((tape.BIAS, sizes[0], sizes[1], sizes[3], *self._dy, *self._to_b))
        return forward, backward
