"""Losses of stacked outputs and their gradients, sample by sample.

The gradient of a sample is multiplied by its scale: one over the samples of its batch, times the learning rate where
the backward pass takes the step itself, and zero for padding. Shapes: `g` slots, `K` steps, `B` batch, `O` outputs.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.training.fused.values import Context, Form, Value
from fedsim.training.objectives import BinaryCrossEntropy, CrossEntropy, TaskLoss
from fedsim.types import Float64


class FusedLoss(Protocol):
    """The last of the layers. `piece_gB` is what `losses` later makes each sample's loss of."""

    def step(self, targets_gB1: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        """Fills the gradient of the outputs."""

    @staticmethod
    def losses(pieces_gKB: Float64, targets_gKB: Float64) -> Float64:
        """The loss of each sample, from what `step` left of it."""


class FusedCrossEntropy:
    """Softmax cross-entropy; the padding of the outputs is made minus infinity, of which softmax makes zero."""

    def __init__(self, ctx: Context, y: Value) -> None:
        assert y.m.is_flat and y.form is Form.ROWS
        self._y, self._dy = y.m.full, y.m.full_grad
        self._log_p = ctx.new("log probabilities", y.form, y.shape, needs_grad=False).m.full
        self._minus_one = self._y.new_full((1, 1, 1), -1.0).expand(*self._y.shape[:2], 1)
        self._padding = self._y[:, :, y.shape[-1] :]

    def step(self, targets_gB1: Tensor, scale_gB1: Tensor, piece_gB1: Tensor) -> None:
        self._padding.fill_(-math.inf)
        torch.log_softmax(self._y, 2, out=self._log_p)
        torch.gather(self._log_p, 2, targets_gB1, out=piece_gB1)
        torch.softmax(self._y, 2, out=self._dy)
        self._dy.scatter_add_(2, targets_gB1, self._minus_one)
        self._dy.mul_(scale_gB1)

    @staticmethod
    def losses(pieces_gKB: Float64, targets_gKB: Float64) -> Float64:
        return -pieces_gKB


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
    def losses(pieces_gKB: Float64, targets_gKB: Float64) -> Float64:
        losses: Float64 = np.logaddexp(0.0, pieces_gKB) - targets_gKB * pieces_gKB
        return losses


def fused_loss(loss: TaskLoss) -> type[FusedCrossEntropy] | type[FusedBinaryCrossEntropy] | None:
    """The fused form of a loss, if it has one."""
    if isinstance(loss, CrossEntropy):
        return FusedCrossEntropy
    if isinstance(loss, BinaryCrossEntropy):
        return FusedBinaryCrossEntropy
    return None
