"""torch's optimisers as a configuration asks for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from fedsim.config import OptimizerConfig, SgdOptimizer


def build(config: OptimizerConfig, parameters: Sequence[torch.Tensor]) -> Optimizer:
    """A torch optimiser over `parameters`.

    On a CPU it goes through the parameters one by one: for the sizes met here `foreach` saves nothing (13 us a step
    against 15 for SGD and four tensors). On a GPU `foreach` spares a kernel launch a tensor.
    """
    foreach = parameters[0].device.type != "cpu"
    if isinstance(config, SgdOptimizer):
        return SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=foreach,
        )
    kind = AdamW if config.kind == "adamw" else Adam
    return kind(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=foreach,
    )


def restart(optimizer: Optimizer, learning_rate: float) -> None:
    """Forgets all momenta and moments and sets the learning rate, as if the optimiser were new."""
    optimizer.state = defaultdict(dict)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
