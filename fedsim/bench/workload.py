"""The workload of the benchmarks of local training, and those who do it.

Clients with 40 samples each of Gaussian classes, of which a client holds at most five; batches of 10, one epoch of SGD:
plain in the order of the samples, and again with shuffling and momentum. Shapes: `C` clients, `N` samples of a client,
`F` features, `P` parameters, `G` tasks of a group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedsim import models, seeding, training
from fedsim.config import RunConfig
from fedsim.layout import Layout
from fedsim.population.population import Population
from fedsim.training.plan import plan_steps
from fedsim.types import Float32, Int64, Shard, Task

N_SAMPLES, BATCH, RATE, MOMENTUM = 40, 10, 0.05, 0.9
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "tiny": ({"kind": "mlp", "hidden": [32]}, (64,), 10),
    "mlp": ({"kind": "mlp", "hidden": [200]}, (784,), 62),
    "cnn": ({"kind": "cnn", "channels": [16, 32], "kernel": 5}, (28, 28), 62),
    "narrow": ({"kind": "mlp", "hidden": [64, 64]}, (128,), 10),
    "wide": ({"kind": "mlp", "hidden": [1000, 200]}, (784,), 62),
    "wide-cnn": ({"kind": "cnn", "channels": [32, 64], "kernel": 5}, (28, 28), 62),
    "residual": ({"kind": "residual", "channels": [16, 32], "groups": 4, "dropout": 0.2}, (28, 28), 62),
}
VARIANTS = ("plain", "shuffled, momentum")
ADAM = "shuffled, Adam"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    VARIANTS[0]: {"kind": "sgd", "learning_rate": RATE},
    VARIANTS[1]: {"kind": "sgd", "learning_rate": RATE, "momentum": MOMENTUM},
    ADAM: {"kind": "adam", "learning_rate": RATE / 50},
}


class Clients(Population):
    """The clients of the workload, in memory."""

    def __init__(self, n_clients: int, sample_shape: tuple[int, ...], n_classes: int) -> None:
        self.n_clients, self.sample_shape, self.n_classes = n_clients, sample_shape, n_classes
        rng = seeding.generator(0, seeding.Purpose.DATA_SAMPLES)
        centres = rng.normal(size=(n_classes, math.prod(sample_shape)))
        own = np.stack([rng.choice(n_classes, 5, replace=False) for _ in range(n_clients)])
        self.y_CN = own[np.arange(n_clients)[:, None], rng.integers(0, 5, (n_clients, N_SAMPLES))]
        x_CNF = 0.35 * centres[self.y_CN] + rng.normal(size=(n_clients, N_SAMPLES, math.prod(sample_shape)))
        self.x_CN = x_CNF.astype(np.float32).reshape(n_clients, N_SAMPLES, *sample_shape)

    def n_samples(self, clients: Int64) -> Int64:
        return np.full(clients.shape, N_SAMPLES)

    def shard(self, client: int) -> Shard:
        return Shard(self.x_CN[client], self.y_CN[client])

    def data_sha256(self) -> str:
        return ""

    def test_clients(self) -> Sequence[int]:
        return ()

    def test_shard(self, client: int) -> Shard:
        raise KeyError(client)

    def central_test(self) -> Shard | None:
        return None


class PlainLoop:
    """What anyone would write: a module, an optimiser, mini-batches; weights copied in, and summed up afterwards."""

    def __init__(self, module: nn.Module, clients: Clients, variant: str) -> None:
        self._module = module
        self._parameters = list(module.parameters())
        self._x = [torch.from_numpy(x_N) for x_N in clients.x_CN]
        self._y = [torch.from_numpy(y_N) for y_N in clients.y_CN]
        self._base_P = torch.nn.utils.parameters_to_vector(self._parameters).detach().clone()
        self._sum_P = torch.zeros_like(self._base_P)
        self._variant = variant
        self._orders = seeding.generator(1, seeding.Purpose.DATA_SAMPLES)  # one for all: it is made only once

    def train(self, clients: Sequence[int]) -> None:
        """One task of each client."""
        parameters = [p.data for p in self._parameters]
        sizes = [p.numel() for p in parameters]
        base = [part.view_as(p) for part, p in zip(torch.split(self._base_P, sizes), parameters, strict=True)]
        total = [part.view_as(p) for part, p in zip(torch.split(self._sum_P, sizes), parameters, strict=True)]
        optimizer = self._optimizer()
        for client in clients:
            torch._foreach_copy_(parameters, base)
            optimizer.state.clear()
            self._fit(optimizer, client)
            torch._foreach_add_(total, parameters)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self._variant == ADAM:
            return torch.optim.Adam(self._parameters, lr=OPTIMIZERS[ADAM]["learning_rate"])
        return torch.optim.SGD(self._parameters, lr=RATE, momentum=OPTIMIZERS[self._variant].get("momentum", 0.0))

    def _fit(self, optimizer: torch.optim.Optimizer, client: int) -> None:
        x_N, y_N = self._x[client], self._y[client]
        if self._variant != VARIANTS[0]:
            order = torch.from_numpy(self._orders.permutation(N_SAMPLES))
            x_N, y_N = x_N[order], y_N[order]
        for first in range(0, N_SAMPLES, BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(self._module(x_N[first : first + BATCH]), y_N[first : first + BATCH])
            torch.autograd.backward(loss)
            optimizer.step()


class Path:
    """A training path with everything it needs, so that it can be called again and again."""

    def __init__(self, config: RunConfig, clients: Clients, module: nn.Module) -> None:
        self._base_P = Layout.of(module).flatten(module)
        self._trainer = training.build(
            config, clients, module, payload="delta", device=torch.device("cpu"), worker=0, clock=time.perf_counter
        )
        self.group_size = self._trainer.group_size
        self._tasks = [_task(config, client) for client in range(clients.n_clients)]
        self._out_GP: Float32 = np.empty((self.group_size, self._base_P.size), np.float32)

    def train(self, clients: Sequence[int]) -> None:
        """One task of each client, in groups of the configured size."""
        for first in range(0, len(clients), self.group_size):
            tasks = [self._tasks[client] for client in clients[first : first + self.group_size]]
            self._trainer.train(tasks, lambda version: self._base_P, self._out_GP[: len(tasks)], lambda: None)


def _task(config: RunConfig, client: int) -> Task:
    n_steps = plan_steps(config.training, N_SAMPLES)
    times = dict.fromkeys(("dispatch_s", "download_s", "compute_s", "upload_s", "arrival_s", "due_s"), 0.0)
    return Task(
        task=client, client=client, base_version=0, n_samples=N_SAMPLES, n_steps=n_steps, first_step=0,
        learning_rate=config.training.optimizer.learning_rate, lost=False, wanted=True, **times,
    )  # fmt: skip


def config_of(model: str, variant: str, path: str, group_size: int | None = None) -> RunConfig:
    """A configuration that trains the workload as the variant says, by a path."""
    section = {
        "optimizer": OPTIMIZERS[variant], "batch_size": BATCH, "epochs": 1, "path": path, "group_size": group_size,
        "order": "sequential" if variant == VARIANTS[0] else "task",
    }  # fmt: skip
    return RunConfig.model_validate(
        {
            "name": "bench", "seed": 0, "data": {"dataset": "heart"}, "model": MODELS[model][0],
            "schedule": {"policy": "sync", "cohort": 1}, "aggregation": {"rule": "fedavg"}, "stop": {"versions": 1},
            "training": section,
        }
    )  # fmt: skip


def module_of(model: str) -> nn.Module:
    """The initial module of a model."""
    _, shape, n_classes = MODELS[model]
    return models.build_initial(config_of(model, VARIANTS[0], "loop").model, shape, n_classes, 0)


def clients_of(model: str) -> Clients:
    """The model's clients: more of them where a task is short."""
    _, shape, n_classes = MODELS[model]
    return Clients(256 if model in ("tiny", "narrow") else 64, shape, n_classes)
