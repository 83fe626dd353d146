"""Losses of stacked outputs and their gradients, sample by sample.

The gradient of a sample is multiplied by its scale: one over the samples of its batch, times the learning rate where
the backward pass takes the step itself, and zero for padding. Shapes: `g` slots, `K` steps, `B` batch, `O` outputs,
`T` numbers of a target.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.training.fused import entropy, tape
from fedsim.training.fused.memory import padded
from fedsim.training.fused.values import Context, Form, Value
from fedsim.training.objectives import BinaryCrossEntropy, Cox, CrossEntropy, MeanSquaredError, TaskLoss
from fedsim.types import Float64

Numbers = NDArray[Any]  # of the type in which they were kept


class FusedLoss(Protocol):
    """The last of the layers. `piece_gB` is what `losses` later makes each sample's loss of."""

    def step(self, targets_gBT: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        """Fills the gradient of the outputs."""

    @staticmethod
    def losses(pieces_gKB: Numbers, targets_gKB: Numbers) -> Float64:
        """The loss of each sample in float64, from what `step` left of it."""


class FusedCrossEntropy:
    """Softmax cross-entropy; the padding of the outputs is made minus infinity, of which softmax makes zero."""

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.form is Form.ROWS
        self._y, self._dy = y.m.full, y.m.full_grad
        self._log_p = ctx.new("log probabilities", y.form, y.shape, needs_grad=False).m.full
        self._classes = torch.arange(self._y.shape[2], device=self._y.device)
        self._is_target = torch.zeros_like(self._y, dtype=torch.bool)
        self._padding = self._y[:, :, y.shape[-1] :]

    def step(self, targets_gB1: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        self._padding.fill_(-math.inf)
        torch.log_softmax(self._y, 2, out=self._log_p)
        torch.gather(self._log_p, 2, targets_gB1, out=piece_gB1)
        torch.softmax(self._y, 2, out=self._dy)
        torch.eq(targets_gB1, self._classes, out=self._is_target)  # a write by index cannot be captured everywhere
        self._dy.add_(self._is_target, alpha=-1)
        self._dy.mul_(scale_gB1)

    @staticmethod
    def losses(pieces_gKB: Numbers, targets_gKB: Numbers) -> Float64:
        return _negative(pieces_gKB)


class CompiledCrossEntropy(FusedCrossEntropy):
    """The same on the host: see `fedsim.training.fused.entropy`. The padding of the outputs is left alone."""

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.form is Form.ROWS
        self._one, self._n_bytes = ctx.one, ctx.arena.dtype.itemsize
        full, grad = y.m.full, y.m.full_grad
        self._sizes = (ctx.n_slots, ctx.n_batch, y.shape[-1])
        self._kept = full, grad  # their addresses are all that is used
        self._outputs = (full.data_ptr(), grad.data_ptr(), full.stride(0), full.stride(1))

    def step(self, targets_gB1: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        y, scale, piece = self._outputs, *((t.data_ptr(), t.stride(0)) for t in (scale_gB1, piece_gB1))
        targets = (targets_gB1.data_ptr(), targets_gB1.stride(0))
        entropy.step(self._one, *self._sizes, *y, *targets, *scale, *piece, self._n_bytes)

    def rows(self) -> list[tape.Row]:
        """What `step` does, for a tape."""
        return [(tape.ENTROPY, *self._sizes, *self._outputs)]


class FusedBinaryCrossEntropy:
    """Binary cross-entropy of one logit."""

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.shape == (1,)
        self._m = y.m
        self._padding = y.m.full_grad[:, :, 1:]

    def step(self, targets_gB1: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        m = self._m
        piece_gB1.copy_(m.t)
        torch.sigmoid(m.flat, out=m.flat_grad)
        m.grad.sub_(targets_gB1).mul_(scale_gB1)
        self._padding.zero_()

    @staticmethod
    def losses(pieces_gKB: Numbers, targets_gKB: Numbers) -> Float64:
        pieces_gKB, targets_gKB = pieces_gKB.astype(np.float64), targets_gKB.astype(np.float64)
        losses: Float64 = np.logaddexp(0.0, pieces_gKB) - targets_gKB * pieces_gKB
        return losses


class FusedMeanSquaredError:
    """Squared error, the mean over a sample's values; sums go over the padding, which is zero."""

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.form is Form.ROWS
        self._m = y.m
        self._n_values = y.shape[-1]
        self._squares = ctx.new("squares", y.form, y.shape, needs_grad=False).m
        self._padding = y.m.full_grad[:, :, y.shape[-1] :]

    def step(self, targets_gBT: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        m = self._m
        torch.sub(m.t, targets_gBT, out=m.grad)
        self._padding.zero_()
        torch.mul(m.flat_grad, m.flat_grad, out=self._squares.flat)
        torch.sum(self._squares.full, 2, keepdim=True, out=piece_gB1)
        piece_gB1.div_(self._n_values)
        m.grad.mul_(scale_gB1 * (2.0 / self._n_values))

    @staticmethod
    def losses(pieces_gKB: Numbers, targets_gKBT: Numbers) -> Float64:
        return pieces_gKB.astype(np.float64)


class FusedCox:
    """Cox's partial likelihood; `objectives.Cox` has the formula.

    Row i of `log_p` is the log softmax of the risks of those at risk at time i, so that the loss of an event is minus
    its own entry, and the gradient of risk j is the sum over events i of scale_i p_ij, less its own scale.
    """

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.shape == (1,)
        g, n = ctx.n_slots, ctx.n_batch
        self._m = y.m
        self._padding = y.m.full_grad[:, :, 1:]
        row = padded(n)
        shape, n_floats = (g, n, row), n * row
        self._p, self._log_p = (
            ctx.arena.take(name, g, n_floats)[: g * n_floats].view(shape) for name in ("risks", "log risks")
        )
        self._sums_g1J = ctx.arena.take("risk sums", g, row)[: g * row].view(g, 1, row)
        self._n = n

    def step(self, targets_gB2: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        m, p, log_p, n = self._m, self._p, self._log_p, self._n
        time_gB1, event_gB1 = targets_gB2[:, :, :1], targets_gB2[:, :, 1:]
        p.fill_(-math.inf)
        p[:, :, :n] = torch.where(time_gB1.transpose(1, 2) >= time_gB1, m.t.transpose(1, 2), -math.inf)
        torch.log_softmax(p, 2, out=log_p)
        torch.softmax(p, 2, out=p)
        own_gB1 = log_p.diagonal(dim1=1, dim2=2).unsqueeze(2)
        torch.mul(own_gB1, event_gB1, out=piece_gB1)
        scale_gB1 = scale_gB1 * event_gB1
        p.mul_(scale_gB1)
        torch.sum(p, 1, keepdim=True, out=self._sums_g1J)
        torch.sub(self._sums_g1J[:, :, :n].transpose(1, 2), scale_gB1, out=m.grad)
        self._padding.zero_()

    @staticmethod
    def losses(pieces_gKB: Numbers, targets_gKB2: Numbers) -> Float64:
        return _negative(pieces_gKB)


def _negative(pieces_gKB: Numbers) -> Float64:
    losses: Float64 = np.negative(pieces_gKB, dtype=np.float64)
    return losses


FusedLossType = type[FusedCrossEntropy] | type[FusedBinaryCrossEntropy] | type[FusedMeanSquaredError] | type[FusedCox]
_FUSED: dict[type[TaskLoss], FusedLossType] = {
    CrossEntropy: FusedCrossEntropy,
    BinaryCrossEntropy: FusedBinaryCrossEntropy,
    MeanSquaredError: FusedMeanSquaredError,
    Cox: FusedCox,
}


def fused_loss(loss: TaskLoss, *, is_compiled: bool = False) -> FusedLossType | None:
    """The fused form of a loss, if it has one; compiled for the host if there is such a form and it is wanted."""
    kind = _FUSED.get(type(loss))
    return CompiledCrossEntropy if is_compiled and kind is FusedCrossEntropy else kind
