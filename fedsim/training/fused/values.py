"""The numbers that flow between fused layers, and the memory that they flow through.

A value is kept in one of three forms:

    SAMPLES  one vector a sample, in the order of the sample's own axes: (g, B, F)
    ROWS     the last axis as rows, all others before it: (g, B * T, F); for a plain vector the same as SAMPLES
    MAPS     images, clients side by side as channels: (B, g * C, H, W), channels last

Rows are padded to 64 bytes with zeros, which stay: every layer makes zeros of zeros, or leaves the padding alone.
Shapes: `g` slots at work, `B` batch, `F` features, `C` channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.training.fused.memory import BLOCK, Slab, padded

if TYPE_CHECKING:
    from fedsim.training.fused.ahead import Ahead


class Form(Enum):
    """How a value lies in memory; see the head of this file."""

    SAMPLES = 1
    ROWS = 2
    MAPS = 3


class Memory:
    """The tensors of a value, `t`, and of its gradient, `grad`.

    Where memory is fixed (`is_fixed`), they are views of `full` and `full_grad`, which include the padding, and these
    of `flat` and `flat_grad`, which end on a whole block. Else they are new tensors at each step. `is_flat` is false
    for memory without `flat`: that of the samples. `is_kept` says that somebody reads `t` later: it may not be
    overwritten. `is_given`: the memory is that of the samples itself, another one at each step.
    """

    __slots__ = (
        "flat",
        "flat_grad",
        "full",
        "full_grad",
        "grad",
        "is_fixed",
        "is_flat",
        "is_given",
        "is_kept",
        "needs_grad",
        "t",
    )
    t: Tensor
    full: Tensor
    flat: Tensor
    grad: Tensor
    full_grad: Tensor
    flat_grad: Tensor

    def __init__(self, *, needs_grad: bool, is_fixed: bool) -> None:
        self.needs_grad = needs_grad
        self.is_fixed = self.is_flat = is_fixed
        self.is_kept = self.is_given = False

    def place(self, *, is_grad: bool = False) -> tuple[int, int] | None:
        """Address and first stride of `full`, or of `full_grad`: (0, 0) for the samples; None if they will change."""
        if self.is_given and not is_grad:
            return 0, 0
        tensor = getattr(self, "full_grad" if is_grad else "full", None) if self.is_fixed and self.is_flat else None
        return None if tensor is None else (tensor.data_ptr(), tensor.stride(0))

    def forget(self) -> None:
        """Lets go of tensors that the next step makes anew."""
        for name in ("t", "grad"):
            if not self.is_fixed and hasattr(self, name):
                delattr(self, name)


@dataclass(frozen=True)
class Value:
    """A tensor between layers: `shape` is a sample's, `m` its memory, which values of other shapes may share."""

    form: Form
    shape: tuple[int, ...]
    m: Memory


@dataclass
class Arena:
    """Memory that programs of all group sizes share, allocated at the first and largest use: by name."""

    dtype: torch.dtype
    device: torch.device
    kept: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, n_slots: int, n_floats: int) -> Tensor:
        """A flat tensor for `n_slots` clients of `n_floats` each, raised to a whole block; zeros at first."""
        n = padded(n_slots * n_floats, BLOCK)
        if name not in self.kept or self.kept[name].numel() < n:
            self.kept[name] = torch.zeros(n, dtype=self.dtype, device=self.device)
        return self.kept[name][:n]

    @property
    def n_bytes(self) -> int:
        """Bytes of everything allocated."""
        return sum(tensor.nbytes for tensor in self.kept.values())


@dataclass(frozen=True)
class Target:
    """Where products of gradients go: `slab` <- beta * slab + alpha * gradient.

    With the weights, 1 and -1 the product is the step of plain SGD itself, for a loss that carries the learning rate;
    with momenta and the momentum factor it is torch's; with 0 and 1 the gradient is kept for an optimiser.
    """

    slab: Slab
    beta: float
    alpha: float

    def add_vector(self, view: Tensor, gradient: Tensor) -> None:
        """Puts the gradient of a small parameter to its place."""
        if self.beta == 0.0:
            torch.mul(gradient, self.alpha, out=view)
        else:
            if self.beta != 1.0:
                view.mul_(self.beta)
            view.add_(gradient, alpha=self.alpha)


@dataclass(frozen=True)
class Context:
    """What builders of layers need: `n_slots` clients at work, each with batches of `n_batch`.

    `ahead` has the weights of the first layer, if a block of steps is computed at once there. `masks` are those of the
    uses of dropout in order: see `fedsim.training.noise.Masks`. `is_compiled`: layers may work by code that is compiled
    for the host, else by torch's operations alone, as a GPU and a graph take them.
    """

    n_slots: int
    n_batch: int
    arena: Arena
    weights: Slab
    target: Target
    ahead: Ahead | None = None
    masks: Sequence[Tensor] = ()
    is_compiled: bool = False

    @property
    def one(self) -> Any:
        """The number 1 of the arena's type, which tells compiled code that type."""
        return np.float32(1) if self.arena.dtype is torch.float32 else np.float64(1)

    def new(self, name: str, form: Form, shape: tuple[int, ...], *, needs_grad: bool) -> Value:
        """A value in fixed memory."""
        m = Memory(needs_grad=needs_grad, is_fixed=True)
        m.flat, m.full, m.t = self._memory(name, form, shape)
        if needs_grad:
            m.flat_grad, m.full_grad, m.grad = self._memory(name + "'", form, shape)
        return Value(form, shape, m)

    def _memory(self, name: str, form: Form, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if form is Form.MAPS:
            n_channels, height, width = shape
            n_floats = self.n_batch * math.prod(shape)
            flat = self.arena.take(name, self.n_slots, n_floats)
            size = (self.n_batch, height, width, self.n_slots * n_channels)
            maps = flat[: self.n_slots * n_floats].view(size).permute(0, 3, 1, 2)
            return flat, maps, maps
        n_rows, n_columns = self.rows_of(form, shape)
        stride = padded(n_columns)
        flat = self.arena.take(name, self.n_slots, n_rows * stride)
        full = flat[: self.n_slots * n_rows * stride].view(self.n_slots, n_rows, stride)
        return flat, full, full[:, :, :n_columns]

    def axes(self, value: Value, tensor: Tensor) -> Tensor:
        """A view of a tensor of `value`, without padding, with the axes (g, B, *shape)."""
        shape = value.shape
        axes: Tensor
        if value.form is Form.MAPS:
            axes = tensor.unflatten(1, (self.n_slots, shape[0])).transpose(0, 1)  # type: ignore[no-untyped-call]
        elif value.form is Form.SAMPLES:
            axes = tensor.unflatten(2, shape)  # type: ignore[no-untyped-call]
        else:
            axes = tensor.unflatten(1, (self.n_batch, *shape[:-1]))  # type: ignore[no-untyped-call]
        return axes

    def rows_of(self, form: Form, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows a client and columns of a value that is not MAPS."""
        if form is Form.SAMPLES:
            return self.n_batch, math.prod(shape)
        return self.n_batch * math.prod(shape[:-1]), shape[-1]
