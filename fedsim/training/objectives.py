"""What a client minimises: the loss of its samples, and what an objective adds to the gradient.

Shapes: `B` batch, `K` outputs of the model for a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedsim.config import ObjectiveConfig


class TaskLoss(Protocol):
    """The loss of labelled samples, and the label that a model's outputs mean."""

    def targets(self, y: NDArray[np.int64]) -> Tensor:
        """Labels, int64 (N,), in the form in which the loss takes them: (N,), on the CPU."""

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a differentiable scalar: outputs (B, K), targets (B,)."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample of a batch: float32 (B,)."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether each sample of a batch is classified rightly: bool (B,)."""


class CrossEntropy:
    """Softmax cross-entropy over one output a class; the predicted class is the first largest output."""

    def targets(self, y: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.array(y, dtype=np.int64))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets


class BinaryCrossEntropy:
    """Binary cross-entropy of one logit; class 1 is predicted where its sigmoid is above one half."""

    def targets(self, y: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(y.astype(np.float32))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (torch.sigmoid(outputs.squeeze(1)) > 0.5) == (targets > 0.5)


def task_loss(n_outputs: int) -> TaskLoss:
    """The loss of a classifier with `n_outputs`: binary cross-entropy for a single logit, else cross-entropy."""
    return BinaryCrossEntropy() if n_outputs == 1 else CrossEntropy()


class Objective(Protocol):
    """What is added to the gradient of the task loss in each step."""

    def start(self) -> None:
        """Takes note of the parameters as a task finds them."""

    def add_gradient(self) -> None:
        """Adds the gradient of the objective's own term to the parameters' `grad`."""


class Plain:
    """The task loss alone."""

    def start(self) -> None:
        pass

    def add_gradient(self) -> None:
        pass


class Proximal:
    """Adds mu (w - w_base), the gradient of (mu/2) ||w - w_base||^2, which holds a client near its base.

    Reference: Li et al., "Federated optimization in heterogeneous networks" (FedProx), MLSys 2020, equation 2.
    The gradient is written down, not differentiated. A parameter without a gradient has not moved, and adds none.
    """

    def __init__(self, mu: float, parameters: Sequence[Tensor]) -> None:
        self._mu = mu
        self._parameters = parameters
        self._base = [torch.empty_like(parameter) for parameter in parameters]

    def start(self) -> None:
        for base, parameter in zip(self._base, self._parameters, strict=True):
            base.copy_(parameter.detach())

    def add_gradient(self) -> None:
        for base, parameter in zip(self._base, self._parameters, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_((parameter.detach() - base).mul_(self._mu))


class Linear:
    """Adds a vector of each task's own, the slope of a linear term, such as a control variate."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._slopes: Sequence[Tensor] = ()

    def start(self, slopes: Sequence[Tensor]) -> None:
        """Takes the slopes of a task, one a parameter."""
        self._slopes = slopes

    def add_gradient(self) -> None:
        """Adds the slopes to the parameters' `grad`, where they have one."""
        for slope, parameter in zip(self._slopes, self._parameters, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(slope)


def objective(config: ObjectiveConfig, parameters: Sequence[Tensor]) -> Objective:
    """The objective of a configuration, for parameters that are trained in place."""
    return Proximal(config.mu, parameters) if config.kind == "proximal" else Plain()
