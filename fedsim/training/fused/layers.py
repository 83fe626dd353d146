"""What every fused layer is, and the layers that only move numbers.

A layer is built once for a number of slots and then runs `forward` and `backward` on the same memory each step.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch

from fedsim.training.fused.values import Context, Form, Memory, Value


class Layer(Protocol):
    """One node at work. `backward` fills the gradients of the inputs that need one, then takes the parameters' step."""

    def forward(self) -> None:
        """Computes the output from the inputs."""

    def backward(self) -> None:
        """Passes the output's gradient on."""


@runtime_checkable
class Recordable(Layer, Protocol):
    """A layer whose work can be rows of a `fedsim.training.fused.tape.Tape`."""

    def rows(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]] | None:
        """What `forward` and `backward` do, if it is the same at each step but for the samples."""


_OF_A_STEP = ("_held", "_indices")  # what layers keep from their way forward to their way back


def forget(layer: Layer) -> None:
    """Lets go of what a layer's next step makes anew, else memory of one program would wait while another works."""
    for name, kept in list(vars(layer).items()):
        if name in _OF_A_STEP:
            delattr(layer, name)
        elif isinstance(kept, Memory):
            kept.forget()
        elif isinstance(kept, Value):
            kept.m.forget()


class Fork:
    """One value for several readers: their gradients are summed, in the order of the readers."""

    def __init__(self, ctx: Context, name: str, x: Value, n_readers: int) -> None:
        self._x = x.m
        self.branches = [self._branch(ctx, f"{name}|{i}", x) for i in range(n_readers)]
        self._m = [branch.m for branch in self.branches]

    def _branch(self, ctx: Context, name: str, x: Value) -> Value:
        m = Memory(needs_grad=x.m.needs_grad, is_fixed=x.m.is_fixed)
        if x.m.is_fixed and x.m.needs_grad:
            own = ctx.new(name, x.form, x.shape, needs_grad=True).m
            m.flat_grad, m.full_grad, m.grad = own.flat_grad, own.full_grad, own.grad
        m.is_flat, m.is_kept = x.m.is_flat, True
        if x.m.is_flat:
            m.flat, m.full, m.t = x.m.flat, x.m.full, x.m.t
        return Value(x.form, x.shape, m)

    def forward(self) -> None:
        if self._x.is_flat:
            return
        for m in self._m:
            m.t = self._x.t
            if m.is_fixed:
                m.full = self._x.full

    def backward(self) -> None:
        x, (first, second, *others) = self._x, self._m
        if not x.needs_grad:
            return
        if x.is_fixed:
            torch.add(first.flat_grad, second.flat_grad, out=x.flat_grad)
        else:
            x.grad = first.grad + second.grad
        for other in others:
            x.grad.add_(other.grad)


class Convert:
    """Copies a value to fixed memory of a form."""

    def __init__(self, ctx: Context, name: str, x: Value, form: Form) -> None:
        self._axes = ctx.axes
        self._x = x
        self.y = ctx.new(name, form, x.shape, needs_grad=x.m.needs_grad)
        self._to_y = self._axes(self.y, self.y.m.t)
        self._dy = self._axes(self.y, self.y.m.grad) if x.m.needs_grad else None

    def forward(self) -> None:
        self._to_y.copy_(self._axes(self._x, self._x.m.t))

    def backward(self) -> None:
        if self._dy is None:
            return
        x = self._x.m
        if not x.is_fixed:
            x.grad = torch.empty_like(x.t)
        self._axes(self._x, x.grad).copy_(self._dy)


def converted(ctx: Context, name: str, x: Value, form: Form, layers: list[Layer]) -> Value:
    """`x` in the form asked for; adds the copy that this takes to `layers`, if it takes one."""
    if x.form is form:
        return x
    if Form.MAPS not in (x.form, form) and math.prod(x.shape[:-1]) == 1:
        return Value(form, x.shape, x.m)
    layer = Convert(ctx, name, x, form)
    layers.append(layer)
    return layer.y


def flattened(ctx: Context, name: str, x: Value, layers: list[Layer]) -> Value:
    """`x` in memory that elementwise layers can work through, as the samples' is not."""
    if x.m.is_flat or not x.m.is_fixed:
        return x
    return in_blocks(ctx, name, x, layers)


def in_blocks(ctx: Context, name: str, x: Value, layers: list[Layer]) -> Value:
    """`x` in fixed memory of whole blocks."""
    if x.m.is_flat:
        return x
    layer = Convert(ctx, name, x, x.form)
    layers.append(layer)
    return layer.y
