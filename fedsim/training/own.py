"""An objective from a file of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedsim.userfiles import UserFunction


class Step(NamedTuple):
    """What an objective of the user's own gets in each step.

    `loss` is the task's, a scalar, of the model's `outputs` (B, K) for samples with `targets`; `parameters` are the
    model's tensors, `base` those that the task began with. Gradients go through the first, second and fourth.
    """

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    parameters: Sequence[Tensor]
    base: Sequence[Tensor]


class OwnObjective:
    """Minimises what the user's function makes of a `Step`: a scalar, differentiated by torch's autograd."""

    def __init__(self, function: UserFunction, parameters: Sequence[Tensor]) -> None:
        self._function = function
        self._parameters = parameters
        self._base = [torch.empty_like(parameter) for parameter in parameters]

    def start(self) -> None:
        for base, parameter in zip(self._base, self._parameters, strict=True):
            base.copy_(parameter.detach())

    def add_gradient(self) -> None:
        """Nothing: it is all in `total`."""

    def total(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised. Raises UserCodeError for what is no differentiable scalar."""
        made = self._function(Step(loss, outputs, targets, self._parameters, self._base))
        if not isinstance(made, Tensor) or made.numel() != 1 or not made.requires_grad:
            got = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise self._function.refuse(
                f"an objective returns a scalar made of step.loss or step.parameters; got {got}"
            )
        return made.reshape(())
