"""The loop against a plain PyTorch loop written here: the same bits, optimiser by optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import models, seeding, training
from fedsim.layout import Layout

Make = Callable[..., Any]
EPOCHS, BATCH, MU = 3, 4, 0.05

OPTIMIZERS: list[tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = [
    ({"kind": "sgd", "learning_rate": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    (
        {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    ),
    (
        {"kind": "adam", "learning_rate": 0.01, "betas": (0.8, 0.99), "weight_decay": 1e-3},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), weight_decay=1e-3),
    ),
    (
        {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
]
MODELS: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    ({"kind": "logistic"}, (13,), 2),
    ({"kind": "mlp", "hidden": [9]}, (13,), 5),
    ({"kind": "cnn", "channels": [3, 4], "kernel": 3}, (1, 8, 8), 4),
    ({"kind": "cnn", "channels": [3, 4], "kernel": 3, "norm": "batch", "buffers": "average"}, (1, 8, 8), 4),
]


def _plain(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    order: Any,
    mu: float,
    clip: float | None,
) -> None:
    """What anyone would write: shuffled mini-batches, backward, step; with a written-out proximal gradient."""
    base = [p.detach().clone() for p in module.parameters()]
    for epoch in torch.from_numpy(order):
        for rows in epoch.split(BATCH):
            optimizer.zero_grad()
            outputs = module(x[rows])
            if outputs.shape[1] == 1:
                loss = functional.binary_cross_entropy_with_logits(outputs[:, 0], y[rows].float())
            else:
                loss = functional.cross_entropy(outputs, y[rows])
            torch.autograd.backward(loss)
            for p, b in zip(module.parameters(), base, strict=True):
                assert p.grad is not None
                p.grad = p.grad + mu * (p.detach() - b) if mu else p.grad
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()


@pytest.mark.parametrize("extras", [{}, {"objective": {"kind": "proximal", "mu": MU}, "clip_norm": 0.5}])
@pytest.mark.parametrize("model", MODELS, ids=["logistic", "mlp", "cnn", "batch norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "momentum", "adam", "adamw"])
def test_same_bits(
    make_population: Make,
    make_config: Make,
    make_task: Make,
    make_shard: Make,
    optimizer: Any,
    model: Any,
    extras: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    (settings, make_optimizer), (kind, shape, n_classes) = optimizer, model
    config = make_config(model=kind, training={"optimizer": settings, "batch_size": BATCH, "epochs": EPOCHS} | extras)
    shard = make_shard(11, shape, n_classes, 4)
    module = models.build_initial(config.model, shape, n_classes, seed=1)
    base_P = Layout.of(module).flatten(module)
    out_GP = np.empty((2, base_P.size), np.float32)
    trainer = training.build(
        config,
        make_population([shard], n_classes),
        module,
        payload="model",
        device=torch.device("cpu"),
        worker=0,
        clock=lambda: 0.0,
    )
    task = make_task(config, 0, 11)
    trainer.train([task._replace(task=1), task], lambda version: base_P, out_GP, lambda: None)

    words = seeding.bits(config.seed, seeding.Purpose.BATCH_ORDER, 0, task.task, 11 * EPOCHS)
    order = np.argsort(words.reshape(EPOCHS, 11), axis=1)
    mu, clip = (MU, 0.5) if extras else (0.0, None)
    x, y = torch.from_numpy(shard.x), torch.from_numpy(shard.y)
    _plain(module, make_optimizer(module.parameters()), x, y, order, mu, clip)
    assert np.array_equal(out_GP[1], Layout.of(module).flatten(module))
    assert not np.array_equal(out_GP[0], out_GP[1])
