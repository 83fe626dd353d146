"""`fedsim bench training`: local training alone, every path beside a plain PyTorch loop, in one process and in turn.

The workload: clients with 40 samples each of Gaussian classes, of which a client holds at most five; batches of 10, one
epoch of SGD. Shapes: `C` clients, `N` samples of a client, `F` features, `P` parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedsim import models, seeding, training
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.machine import this_machine
from fedsim.config import RunConfig
from fedsim.layout import Layout
from fedsim.population.population import Population
from fedsim.training.fused.graph import trace
from fedsim.training.plan import plan_steps
from fedsim.types import Float32, Int64, Shard, Task

N_SAMPLES, BATCH, RATE, MOMENTUM = 40, 10, 0.05, 0.9
PRODUCT_SIZE = 1024
LEAST_S = 0.1  # of training in each measurement
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "tiny": ({"kind": "mlp", "hidden": [32]}, (64,), 10),
    "mlp": ({"kind": "mlp", "hidden": [200]}, (784,), 62),
    "cnn": ({"kind": "cnn", "channels": [16, 32], "kernel": 5}, (28, 28), 62),
}
VARIANTS = ("plain", "shuffled, momentum")
RATIO_TARGETS = {
    ("tiny", "plain"): 25.0,
    ("mlp", "plain"): 2.2,
    ("cnn", "plain"): 2.0,
    ("tiny", VARIANTS[1]): 20.0,
    ("mlp", VARIANTS[1]): 1.7,
    ("cnn", VARIANTS[1]): 1.8,
}
LIMIT_TARGETS = {("mlp", "plain"): 0.42, ("cnn", "plain"): 0.75}


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

    def __init__(self, module: nn.Module, clients: Clients, momentum: float, *, shuffles: bool) -> None:
        self._module = module
        self._parameters = list(module.parameters())
        self._x = [torch.from_numpy(x_N) for x_N in clients.x_CN]
        self._y = [torch.from_numpy(y_N) for y_N in clients.y_CN]
        self._base_P = torch.nn.utils.parameters_to_vector(self._parameters).detach().clone()
        self._sum_P = torch.zeros_like(self._base_P)
        self._momentum, self._shuffles = momentum, shuffles

    def train(self, clients: Sequence[int]) -> None:
        """One task of each client."""
        parameters = [p.data for p in self._parameters]
        sizes = [p.numel() for p in parameters]
        base = [part.view_as(p) for part, p in zip(torch.split(self._base_P, sizes), parameters, strict=True)]
        total = [part.view_as(p) for part, p in zip(torch.split(self._sum_P, sizes), parameters, strict=True)]
        optimizer = torch.optim.SGD(self._parameters, lr=RATE, momentum=self._momentum)
        for client in clients:
            torch._foreach_copy_(parameters, base)
            optimizer.state.clear()
            self._fit(optimizer, client)
            torch._foreach_add_(total, parameters)

    def _fit(self, optimizer: torch.optim.Optimizer, client: int) -> None:
        x_N, y_N = self._x[client], self._y[client]
        if self._shuffles:
            keys = seeding.permutations(0, seeding.Purpose.BATCH_ORDER, client, 0, N_SAMPLES)
            order = torch.from_numpy(keys)
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
        learning_rate=RATE, lost=False, wanted=True, **times,
    )  # fmt: skip


def _config(model: str, variant: str, path: str, group_size: int | None) -> RunConfig:
    is_plain = variant == VARIANTS[0]
    optimizer = {"kind": "sgd", "learning_rate": RATE, "momentum": 0.0 if is_plain else MOMENTUM}
    section = {
        "optimizer": optimizer, "batch_size": BATCH, "epochs": 1, "path": path, "group_size": group_size,
        "order": "sequential" if is_plain else "task",
    }  # fmt: skip
    return RunConfig.model_validate(
        {
            "name": "bench", "seed": 0, "data": {"dataset": "heart"}, "model": MODELS[model][0],
            "schedule": {"policy": "sync", "cohort": 1}, "aggregation": {"rule": "fedavg"}, "stop": {"versions": 1},
            "training": section,
        }
    )  # fmt: skip


def operations(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a task: forward pass, weight gradients, and input gradients but the first."""
    products = []
    for node in trace(module, sample_shape):
        if isinstance(node.layer, nn.Linear):
            products.append(math.prod(node.shape) * node.layer.in_features)
        elif isinstance(node.layer, nn.Conv2d):
            products.append(math.prod(node.shape) * node.layer.weight[0].numel())
    return 2 * N_SAMPLES * (3 * sum(products) - products[0])


def product_rate() -> float:
    """Floating-point operations a second of a float32 product of two square matrices, on one thread."""
    a = torch.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    start_s = time.perf_counter()
    for _ in range(3):
        a.mm(a)
    return 3 * 2 * PRODUCT_SIZE**3 / (time.perf_counter() - start_s)


def measure(model: str, paths: Sequence[str], repeat: int, group_size: int | None = None) -> Report:
    """Updates a second of each path and of the plain loop, their ratios, and the share of the product rate."""
    _, shape, n_classes = MODELS[model]
    torch.set_num_threads(1)
    clients = Clients(256 if model == "tiny" else 64, shape, n_classes)
    figures: list[Figure] = []
    runs: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"model": model, "paths": list(paths), "repeat": repeat, "batch": BATCH}
    for variant in VARIANTS:
        module = models.build_initial(_config(model, variant, "loop", None).model, shape, n_classes, 0)
        is_plain = variant == VARIANTS[0]
        contenders: dict[str, Callable[[Sequence[int]], None]] = {
            "PyTorch": PlainLoop(module, clients, 0.0 if is_plain else MOMENTUM, shuffles=not is_plain).train
        }
        for path in paths:
            own = Path(_config(model, variant, path, group_size if path != "loop" else None), clients, module)
            contenders[path] = own.train
            settings[f"group size, {variant}, {path}"] = own.group_size
        rounds = _rounds(contenders, clients.n_clients, repeat)
        runs += [{"variant": variant, **found} for found in rounds]
        figures += _figures(model, variant, paths, rounds, operations(module, shape))
    return Report("training", this_machine(), f"local training of {model} on one core", settings, figures, runs)


def _rounds(
    contenders: dict[str, Callable[[Sequence[int]], None]], n_clients: int, repeat: int
) -> list[dict[str, float]]:
    """Updates a second of each contender, and the product rate, `repeat` times in turn."""
    amounts = {name: _amount(train, n_clients) for name, train in contenders.items()}
    rounds = []
    for _ in range(repeat):
        found = {"product": product_rate()}
        for name, train in contenders.items():
            start_s = time.perf_counter()
            for _ in range(amounts[name]):
                train(range(n_clients))
            found[name] = amounts[name] * n_clients / (time.perf_counter() - start_s)
        rounds.append(found)
    return rounds


def _amount(train: Callable[[Sequence[int]], None], n_clients: int) -> int:
    """How often all clients are trained for a measurement; the first time warms everything up."""
    train(range(n_clients))
    start_s = time.perf_counter()
    train(range(n_clients))
    return max(1, math.ceil(LEAST_S / (time.perf_counter() - start_s)))


def _figures(
    model: str, variant: str, paths: Sequence[str], rounds: Sequence[dict[str, float]], n_operations: int
) -> list[Figure]:
    columns = {name: [found[name] for found in rounds] for name in rounds[0]}
    rates = columns.pop("product")
    figures = [Figure.of(f"{variant}: product rate", [rate / 1e9 for rate in rates], "GFLOP/s")]
    figures += [Figure.of(f"{variant}: {name}", values, "updates/s") for name, values in columns.items()]
    for path, (what, other, targets) in product(paths, _COMPARISONS):
        against = columns["PyTorch"] if other else [rate / n_operations for rate in rates]
        least = targets.get((model, variant)) if path == "fused" else None
        target = None if least is None else Target(least=least)
        figures.append(Figure.of(f"{variant}: {path} / {what}", paired_ratios(columns[path], against), "", target))
    return figures


_COMPARISONS = (("PyTorch", True, RATIO_TARGETS), ("limit", False, LIMIT_TARGETS))
