"""What a client minimises: the loss of its samples, and what an objective adds to the gradient.

A loss need not be a sum over samples: Cox's compares those of a batch. It only has to be a mean of parts, one a sample,
that padding leaves alone. Shapes: `N` samples, `B` batch, `K` outputs of the model for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedsim.config import (
    AflCsObjective,
    AsoFedObjective,
    LossKind,
    ObjectiveConfig,
    PlainObjective,
    ProximalObjective,
    RunConfig,
    UserObjective,
)
from fedsim.errors import ConfigError
from fedsim.models import n_outputs
from fedsim.training.own import OwnObjective
from fedsim.training.tallies import Means, Survival, Tally
from fedsim.types import Targets
from fedsim.userfiles import UserFunction

if TYPE_CHECKING:
    from fedsim.population.population import Population


class TaskLoss(Protocol):
    """The loss of samples with targets, and what is measured beside it.

    `padding` is the target of a sample that is none, with the type and shape of any target: it fills short batches.
    """

    metric_names: tuple[str, ...]
    padding: Tensor

    def targets(self, y: NDArray[Any]) -> Tensor:
        """A shard's `y` in the form in which the loss takes it: (N, *padding.shape), on the CPU."""

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch, a differentiable scalar: outputs (B, K), targets (B, ...)."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each sample of a batch adds to it: float32 (B,), whose mean over samples is `mean`.

        Samples whose target is `padding` change nothing of the others' parts.
        """

    def tally(self, device: torch.device) -> Tally:
        """An empty tally of outputs and targets on a device."""


class CrossEntropy:
    """Softmax cross-entropy over one output a class; the predicted class is the first largest output."""

    metric_names: tuple[str, ...] = ("accuracy",)
    padding = torch.tensor(0)

    def targets(self, y: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(y, dtype=np.int64))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def tally(self, device: torch.device) -> Tally:
        return Means(lambda outputs, targets: (self.each(outputs, targets), outputs.argmax(1) == targets), device)


class BinaryCrossEntropy:
    """Binary cross-entropy of one logit; class 1 is predicted where its sigmoid is above one half."""

    metric_names: tuple[str, ...] = ("accuracy",)
    padding = torch.tensor(0.0)

    def targets(self, y: NDArray[Any]) -> Tensor:
        return torch.from_numpy(y.astype(np.float32))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets, reduction="none")

    def tally(self, device: torch.device) -> Tally:
        return Means(lambda outputs, targets: (self.each(outputs, targets), self._correct(outputs, targets)), device)

    def _correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (torch.sigmoid(outputs.squeeze(1)) > 0.5) == (targets > 0.5)


class MeanSquaredError:
    """Squared error of values, the mean over a sample's `n_outputs` values; measured with it: the absolute error."""

    metric_names: tuple[str, ...] = ("mse", "mae")

    def __init__(self, n_outputs: int) -> None:
        self.padding = torch.zeros(n_outputs)

    def targets(self, y: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(y, dtype=np.float32).reshape(len(y), -1))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def tally(self, device: torch.device) -> Tally:
        return Means(self._errors, device)

    def _errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        squares = self.each(outputs, targets)
        return squares, squares, (outputs - targets).abs().mean(1)


class Cox:
    """Cox's negative log partial likelihood of one output a sample, the log of its risk; targets are (time, event).

    Sample i of a batch adds event_i (log sum_j exp(risk_j) - risk_i), over all j of the batch with time_j >= time_i;
    the loss is the mean over all samples, censored ones (event 0) included. Samples of one time are at risk for each
    other (Breslow 1974), so that the order of a batch does not matter. A set is scored as one batch, not by batches.
    Reference: Cox, "Regression models and life-tables", J. R. Stat. Soc. B 34 (1972), as in FLamby's Fed-TCGA-BRCA,
    where of samples with one time only those that come earlier in the batch are at risk.
    """

    metric_names: tuple[str, ...] = ("concordance",)
    padding = torch.tensor([-math.inf, 0.0])  # no event, and over before any other's

    def targets(self, y: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(y, dtype=np.float32))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.each(outputs, targets).mean()

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        risk_B, time_B, event_B = outputs.squeeze(1), targets[:, 0], targets[:, 1]
        is_at_risk_BB = time_B >= time_B.unsqueeze(1)
        log_sum_B = torch.where(is_at_risk_BB, risk_B, -math.inf).logsumexp(1)
        return event_B * (log_sum_B - risk_B)

    def tally(self, device: torch.device) -> Tally:
        return Survival()


_TARGETS: dict[LossKind, Targets] = {
    "cross-entropy": "classes",
    "binary-cross-entropy": "classes",
    "mse": "values",
    "cox": "survival",
}
_OF_TARGETS: dict[Targets, LossKind] = {"classes": "auto", "values": "mse", "survival": "cox"}


def loss_kind(config: RunConfig, population: Population) -> LossKind:
    """The loss that `training.loss` asks for; `auto` is what it comes to for the population's targets.

    For classes it stays `auto`, since the model's number of outputs decides then. Raises ConfigError for a loss that
    cannot take the targets.
    """
    asked, has = config.training.loss, population.targets
    if asked == "auto":
        return _OF_TARGETS[has]
    if _TARGETS[asked] != has:
        raise ConfigError(
            f"training.loss: {asked} takes {_TARGETS[asked]} as targets, data.dataset: {config.data.dataset} has "
            f"{has}; use auto"
        )
    if asked == "binary-cross-entropy" and population.n_classes != 2:
        raise ConfigError(f"training.loss: {asked} takes two classes, the data have {population.n_classes}; use auto")
    return asked


def task_loss(n_outputs: int, kind: LossKind = "auto") -> TaskLoss:
    """The loss of a model with `n_outputs`; for classes, binary cross-entropy of a single logit, else cross-entropy."""
    if kind == "mse":
        return MeanSquaredError(n_outputs)
    if kind == "cox":
        return Cox()
    return BinaryCrossEntropy() if n_outputs == 1 else CrossEntropy()


def loss_of(config: RunConfig, population: Population) -> TaskLoss:
    """The task loss of a run. Raises ConfigError for one that cannot take the population's targets or the model."""
    kind = loss_kind(config, population)
    n = n_outputs(config.model, population.n_classes, kind)
    if kind == "cox" and n != 1:
        raise ConfigError(f"training.loss: cox takes a model of one output, the log of the risk; this one has {n}")
    return task_loss(n, kind)


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


LEAST_MOVE = 1e-6  # of a layer's norm: below it there is no direction in which the model moved


class AflCs:
    """Adds lambda ||d_l|| + c_s penalty_l for each weight tensor l (two dimensions or more), with d_l = w_l - w_base,l.

    `weights`: penalty_l = 1 - cos(w_l, w_base,l). `released`: 1 + cos, the sign in the released code, which pushes
    similarity down. `directions`, with g_l the way that the model went since the client had it last:
    1 - <d, g> / (||g|| max(||d||, ||g||)), nothing in a client's first task and where ||g_l|| < 1e-6 ||w_l||.
    The norm is not squared; its gradient at d = 0, where every task starts, is taken as 0, and so is that of a cosine
    with zeros. The max bounds the gradient by 1/||g||: that of a plain cosine grows without end towards d = 0.
    Reference: Yan, Jiang, Chen, Gao, Liu, "AFL-CS", ICPADS 2023, the local objective; `directions` is reconstructed
    from its wording. The gradients are written down, not differentiated.
    """

    def __init__(self, config: AflCsObjective, parameters: Sequence[Tensor]) -> None:
        self._config = config
        self._is_weight = [parameter.dim() > 1 for parameter in parameters]
        self._parameters = [parameter for parameter in parameters if parameter.dim() > 1]
        self._base = [torch.empty_like(parameter) for parameter in self._parameters]
        self._ways: Sequence[Tensor | None] = [None] * len(self._parameters)

    def take(self, ways: Sequence[Tensor]) -> None:
        """Takes the way that the model went since the client had it last: a tensor a parameter."""
        self._ways = [way for way, is_weight in zip(ways, self._is_weight, strict=True) if is_weight]

    def start(self) -> None:
        for base, parameter in zip(self._base, self._parameters, strict=True):
            base.copy_(parameter.detach())

    def add_gradient(self) -> None:
        for base, way, parameter in zip(self._base, self._ways, self._parameters, strict=True):
            if parameter.grad is not None:
                weight = parameter.detach()
                parameter.grad.add_(_unit(weight - base), alpha=self._config.norm_weight)
                slope = self._slope(weight, base, way)
                if slope is not None:
                    parameter.grad.add_(slope, alpha=self._config.similarity_weight)

    def _slope(self, weight: Tensor, base: Tensor, way: Tensor | None) -> Tensor | None:
        """The gradient of penalty_l; None where it is 0."""
        if self._config.penalty == "none":
            return None
        if self._config.penalty == "directions":
            assert way is not None
            return _slope_of_way(weight, weight - base, way)
        sign = -1.0 if self._config.penalty == "weights" else 1.0
        length, base_length = weight.norm(), base.norm()
        if not length > 0.0 or not base_length > 0.0:
            return None
        cosine = (weight * base).sum() / (length * base_length)
        slope: Tensor = (base / (length * base_length) - weight * (cosine / length.square())) * sign
        return slope


def _unit(difference: Tensor) -> Tensor:
    length = difference.norm()
    return difference / length if length > 0.0 else difference


def _slope_of_way(weight: Tensor, difference: Tensor, way: Tensor) -> Tensor | None:
    """The gradient of 1 - <d, g> / (||g|| max(||d||, ||g||)); None where g is too short to have a direction."""
    length, way_length = difference.norm(), way.norm()
    if not way_length > 0.0 or way_length < LEAST_MOVE * weight.norm():
        return None
    if length <= way_length:
        slope: Tensor = way / -way_length.square()
        return slope
    product = (difference * way).sum()
    slope = difference * (product / (way_length * length**3)) - way / (way_length * length)
    return slope


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


def objective(config: ObjectiveConfig, parameters: Sequence[Tensor], own: UserFunction | None = None) -> Objective:
    """The objective of a configuration, for parameters that are trained in place; `own` is the user's function."""
    match config:
        case ProximalObjective() | AsoFedObjective():  # the rest of ASO-Fed is its clients' own
            return Proximal(config.mu, parameters)
        case AflCsObjective():
            return AflCs(config, parameters)
        case UserObjective():
            assert own is not None
            return OwnObjective(own, parameters)
        case PlainObjective():
            return Plain()
