"""Layers that work on each number alone, and the sum of two values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.training.fused import tape
from fedsim.training.fused.values import Context, Form, Memory, Value

_aten = torch.ops.aten


def like(ctx: Context, name: str, x: Value, *, needs_grad: bool) -> Value:
    """A value of the shape of `x`, in fixed memory where `x` is."""
    if not x.m.is_fixed:
        return Value(x.form, x.shape, Memory(needs_grad=needs_grad, is_fixed=False))
    return ctx.new(name, x.form, x.shape, needs_grad=needs_grad)


class Relu:
    """max(x, 0), in place where nobody reads x again; the gradient at 0 is 0, as torch's."""

    def __init__(self, ctx: Context, name: str, x: Value) -> None:
        self._x = x.m
        self._is_in_place = not x.m.is_kept
        self.y = x if self._is_in_place and x.m.is_fixed else like(ctx, name, x, needs_grad=x.m.needs_grad)
        self._y = self.y.m
        self._y.is_kept = True
        self._is_recorded = ctx.is_compiled and x.form is not Form.MAPS  # a slot's maps lie among those of others

    def forward(self) -> None:
        x, y = self._x, self._y
        if y.is_fixed:
            torch.clamp_min(x.flat, 0, out=y.flat)
        else:
            y.t = x.t.relu_() if self._is_in_place else x.t.relu()

    def backward(self) -> None:
        x, y = self._x, self._y
        if not x.needs_grad:
            return
        if y.is_fixed:
            _aten.threshold_backward.grad_input(y.flat_grad, y.flat, 0, grad_input=x.flat_grad)
        else:
            x.grad = _aten.threshold_backward(y.grad, y.t, 0)

    def rows(self) -> tuple[list[tape.Row], list[tape.Row]] | None:
        """See `fedsim.training.fused.layers.Recordable`."""
        x, y = self._x, self._y
        if not (self._is_recorded and x.is_flat and y.is_flat):
            return None
        sizes, backward = (x.full.shape[0], x.full.stride(0)), list[tape.Row]()
        assert y.full.stride(0) == x.full.stride(0) and x.full.is_contiguous()
        if x.needs_grad:
            gradients = y.flat_grad.data_ptr(), y.flat.data_ptr(), x.flat_grad.data_ptr()
            backward.append((tape.RELU_BACK, *sizes, *gradients))
        return [(tape.RELU, *sizes, x.flat.data_ptr(), y.flat.data_ptr())], backward


class Sum:
    """a + b, two values of one form."""

    def __init__(self, ctx: Context, name: str, a: Value, b: Value) -> None:
        self._a, self._b = a.m, b.m
        source = a if b.m.is_fixed else b
        self.y = like(ctx, name, source, needs_grad=a.m.needs_grad or b.m.needs_grad)
        self._y = self.y.m

    def forward(self) -> None:
        if self._y.is_fixed:
            torch.add(self._a.flat, self._b.flat, out=self._y.flat)
        else:
            self._y.t = self._a.t + self._b.t

    def backward(self) -> None:
        for x in (self._a, self._b):
            if x.needs_grad and x.is_fixed:
                x.grad.copy_(self._y.grad)
            elif x.needs_grad:
                x.grad = self._y.grad


class Dropout:
    """x times its mask, which is an input of the step; numbers of a channel share one of the mask."""

    def __init__(self, ctx: Context, name: str, x: Value, mask_gB: Tensor) -> None:
        self._axes, self._mask_gB = ctx.axes, mask_gB
        self._x = x
        self.y = like(ctx, name, x, needs_grad=x.m.needs_grad)

    def forward(self) -> None:
        x, y = self._x, self.y
        if not y.m.is_fixed:
            y.m.t = torch.empty_like(x.m.t)
        torch.mul(self._axes(x, x.m.t), self._mask_gB, out=self._axes(y, y.m.t))

    def backward(self) -> None:
        x, y = self._x, self.y
        if not x.m.needs_grad:
            return
        if not x.m.is_fixed:
            x.m.grad = torch.empty_like(y.m.grad)
        torch.mul(self._axes(y, y.m.grad), self._mask_gB, out=self._axes(x, x.m.grad))


class Gelu:
    """x times the normal distribution's function of x; over whole blocks, as every function that is not exact."""

    def __init__(self, ctx: Context, name: str, layer: nn.GELU, x: Value) -> None:
        self._x = x.m
        self._approximate = layer.approximate
        self.y = like(ctx, name, x, needs_grad=x.m.needs_grad)
        self._y = self.y.m

    def forward(self) -> None:
        _aten.gelu.out(self._x.flat, approximate=self._approximate, out=self._y.flat)

    def backward(self) -> None:
        x, y = self._x, self._y
        if x.needs_grad:
            _aten.gelu_backward.grad_input(
                y.flat_grad, x.flat, approximate=self._approximate, grad_input=x.flat_grad
            )  # fmt: skip


class Tanh:
    """The hyperbolic tangent; over whole blocks."""

    def __init__(self, ctx: Context, name: str, x: Value) -> None:
        self._x = x.m
        self.y = like(ctx, name, x, needs_grad=x.m.needs_grad)
        self._y = self.y.m
        self._y.is_kept = True

    def forward(self) -> None:
        torch.tanh(self._x.flat, out=self._y.flat)

    def backward(self) -> None:
        if self._x.needs_grad:
            _aten.tanh_backward.grad_input(self._y.flat_grad, self._y.flat, grad_input=self._x.flat_grad)
