"""The stacked paths against a plain PyTorch loop written here, after one epoch, over random shapes.

In float64 the norm of the difference is at most 1e-8 of the update's norm, in float32 1e-5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedsim import models, seeding
from fedsim.config import RunConfig
from fedsim.layout import Layout
from fedsim.training import captured
from fedsim.training.choice import Choice
from fedsim.training.fused import ahead
from fedsim.training.fused.graph import trace
from fedsim.training.fused.machine import FusedMachine
from fedsim.training.group import GroupTrainer
from fedsim.training.loop import LoopTrainer
from fedsim.training.stacked import StackedMachine
from fedsim.types import Shard, Task

Make = Callable[..., Any]
EXAMPLES = int(os.environ.get("FEDSIM_TEST_EXAMPLES", "10"))  # of each kind; a hundred take half an hour
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a case of trained groups takes many minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
MACHINES = {"fused": FusedMachine, "stacked": StackedMachine, "captured": captured.build}


OPTIMIZERS: list[tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = [
    ({"kind": "sgd"}, torch.optim.SGD),
    ({"kind": "sgd", "weight_decay": 0.01}, torch.optim.SGD),
    ({"kind": "sgd", "momentum": 0.9}, torch.optim.SGD),
    ({"kind": "sgd", "momentum": 0.5, "weight_decay": 0.01}, torch.optim.SGD),
    ({"kind": "adam", "betas": (0.8, 0.99), "weight_decay": 0.01, "eps": 1e-2}, torch.optim.Adam),
    ({"kind": "adamw", "weight_decay": 0.1, "eps": 1e-2}, torch.optim.AdamW),
]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"objective": {"kind": "proximal", "mu": 0.3}},
    {"clip_norm": 0.5},  # much less, and float32 weights cannot tell the update from it to 1e-5
    {"objective": {"kind": "proximal", "mu": 0.3}, "clip_norm": 1.0},
]
NORMALISED = ("mixer", "strided", "deep", "pooled", "tokens")
widths = st.integers(1, 40)
perceptrons = st.tuples(
    st.fixed_dictionaries({"kind": st.just("mlp"), "hidden": st.lists(widths, min_size=1, max_size=3)}),
    st.one_of(st.tuples(widths), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.integers(2, 20),
)
logistic = st.tuples(st.just({"kind": "logistic"}), st.tuples(widths), st.integers(2, 5))
convolutional = st.tuples(
    st.fixed_dictionaries(
        {
            "kind": st.just("cnn"),
            "channels": st.lists(st.integers(1, 6), min_size=1, max_size=2),
            "kernel": st.integers(1, 5),
        }
    ),
    st.tuples(st.integers(1, 3), st.integers(5, 12), st.integers(5, 12)),
    st.integers(2, 7),
)


def loss_by_hand(outputs: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of a batch, by torch's own functions or, for Cox, event by event."""
    if kind == "mse":
        return functional.mse_loss(outputs, y)
    if kind == "cox":
        risk, (times, events) = outputs[:, 0], y.T
        parts = [event * (risk[times >= t].logsumexp(0) - r) for r, t, event in zip(risk, times, events, strict=True)]
        return torch.stack(parts).sum() / len(y)
    if outputs.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
    return functional.cross_entropy(outputs, y)


class DropoutByHand:
    """In the place of torch's dropout: each use of a step multiplies by a mask that numpy's generator gives."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self._seed, self._size, self._task = config.seed, config.training.batch_size, task
        self.step, self._n_uses = -1, 0

    def next_step(self) -> None:
        self.step, self._n_uses = self.step + 1, 0

    def patches(self) -> ExitStack:
        stack = ExitStack()
        for name, n_axes in {"dropout": 0, "dropout1d": 1, "dropout2d": 2}.items():
            stack.enter_context(patch.object(functional, name, partial(self._drop, n_axes)))
        return stack

    def _drop(self, n_axes: int, x: torch.Tensor, p: float, training: bool, inplace: bool = False) -> torch.Tensor:
        shape = x.shape[1 : x.dim() - n_axes]
        n = math.prod(shape)
        n_words = 4 * math.ceil(self._size * n / 8)
        key = [seeding.stream_key(self._seed, seeding.Purpose.DROPOUT, self._n_uses), self._task.client]
        counter = [self.step * n_words // 4, 0, 0, self._task.task]
        words = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)).random_raw(n_words)
        keep = words.view(np.uint32)[: x.shape[0] * n].reshape(x.shape[0], *shape) / 2.0**32 >= p
        self._n_uses += 1
        return x * torch.from_numpy(keep).to(x.dtype).div(1 - p).reshape(*keep.shape, *[1] * n_axes)


def reference(
    module: nn.Module,
    base_P: Any,
    optimizer: Any,
    config: RunConfig,
    task: Task,
    shard: Shard,
    dtype: torch.dtype,
    linear_P: Any = None,
) -> tuple[Any, float, float]:
    """What training by hand gives: the difference from the base, and the first and last batch's loss."""
    slopes = _slopes(module, linear_P, dtype)
    training = config.training
    Layout.of(module.float()).load(module, base_P)
    module.to(dtype)
    base = [p.detach().clone() for p in module.parameters()]
    stepper = optimizer(module.parameters())
    n = task.n_samples
    n_passes = training.epochs or 1
    words = seeding.bits(config.seed, seeding.Purpose.BATCH_ORDER, task.client, task.task, n * n_passes)
    losses = []
    dropout = DropoutByHand(config, task)
    for order in np.argsort(words.reshape(n_passes, n), axis=1):
        for rows in torch.from_numpy(order).split(training.batch_size):
            x, y = torch.from_numpy(shard.x)[rows].to(dtype), torch.from_numpy(shard.y)[rows]
            stepper.zero_grad()
            dropout.next_step()
            with dropout.patches():
                outputs = module(x)
            loss = loss_by_hand(outputs, y if y.dtype == torch.int64 else y.to(dtype), training.loss)
            torch.autograd.backward(loss)
            losses.append(loss.item())
            mu = getattr(training.objective, "mu", 0.0)
            for p, b, slope in zip(module.parameters(), base, slopes, strict=True):
                p.grad = p.grad + mu * (p.detach() - b) + slope
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm)
            stepper.step()
    difference = [(p.detach() - b).reshape(-1) for p, b in zip(module.parameters(), base, strict=True)]
    return torch.cat(difference).numpy(), losses[0], losses[-1]


def _slopes(module: nn.Module, linear_P: Any, dtype: torch.dtype) -> list[Any]:
    """The slopes of a linear term, one a parameter; zeros without one."""
    layout = Layout.of(module.float())
    if linear_P is None:
        return [0.0] * len(layout.names)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    return [torch.from_numpy(linear_P[part].reshape(shapes[name])).to(dtype) for name, part in layout.slices.items()]


def compare(
    make: dict[str, Make],
    path: str,
    module: nn.Module,
    config: RunConfig,
    shards: list[Shard],
    n_classes: int,
    optimizer: Any,
    dtype: torch.dtype,
    tolerance: float,
    has_linear: bool = False,
) -> None:
    """Trains a group of all shards from two bases at two rates, and each task by hand."""
    torch.set_num_threads(1)
    base_P = Layout.of(module).flatten(module)
    bases = [base_P, base_P * np.float32(0.9)]
    rate = config.training.optimizer.learning_rate
    tasks = [
        make["task"](config, i, len(s.y), task=20 + i, base_version=i % 2, learning_rate=rate * (1 - 0.2 * (i % 2)))
        for i, s in enumerate(shards)
    ]
    population = make["population"](shards, n_classes)
    population.targets = {"mse": "values", "cox": "survival"}.get(config.training.loss, "classes")
    group_size = len(shards) - 1  # so that there are two groups, the second of one task

    def machine(loss: Any, n_slots: int) -> Any:
        shape, device = population.sample_shape, torch.device("cpu")
        more = {"graph": make["graph"]()} if path == "captured" else {}
        return MACHINES[path](
            module, shape, config.training, loss, n_slots, device=device, dtype=dtype, has_linear=has_linear, **more
        )

    where = {"payload": "delta", "device": torch.device("cpu"), "worker": 0, "clock": lambda: 0.0}
    trainer: Any = (
        LoopTrainer(config, population, module, **where, has_linear=has_linear)
        if path == "loop"
        else GroupTrainer(Choice(path, group_size, ""), machine, config, population, module, **where)
    )
    out_GP: Any = np.full((len(tasks), base_P.size), np.nan, np.dtype(str(dtype).removeprefix("torch.")))
    linear_GP = None
    if has_linear:
        linear_GP = np.random.default_rng(5).standard_normal(out_GP.shape).astype(np.float32) * np.float32(0.1)
    reports = trainer.train(tasks, bases.__getitem__, out_GP, lambda: None, linear_GP)
    for i, (task, out_P, report, shard) in enumerate(zip(tasks, out_GP, reports, shards, strict=True)):
        linear_P = None if linear_GP is None else linear_GP[i]

        def build(parameters: Any, rate: float = task.learning_rate) -> Any:
            return optimizer(parameters, rate)

        by_hand_P, first, last = reference(
            module, bases[task.base_version], build, config, task, shard, dtype, linear_P
        )
        norm = np.linalg.norm(by_hand_P)
        assert np.linalg.norm(out_P - by_hand_P) <= tolerance * norm
        assert report.loss_before == pytest.approx(first, rel=tolerance * 10, abs=tolerance)
        assert report.loss_after == pytest.approx(last, rel=tolerance * 10, abs=tolerance)
        assert report.update_norm == pytest.approx(norm, rel=tolerance * 10)
    module.float()


@pytest.fixture
def make(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, make_graph: Make
) -> dict[str, Make]:
    rooms = {"population": make_population, "config": make_config, "task": make_task, "shard": make_shard}
    return rooms | {"graph": make_graph}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", MACHINES)
@pytest.mark.parametrize(
    "cases", [logistic, perceptrons, convolutional], ids=["logistic", "perceptrons", "convolutional"]
)
@SETTINGS
@given(
    data=st.data(),
    optimizer=st.sampled_from(OPTIMIZERS),
    extras=st.sampled_from(EXTRAS),
    batch_size=st.integers(1, 9),
    has_linear=st.booleans(),
    seed=st.integers(0, 99),
)
def test_reference_models(
    make: dict[str, Make],
    cases: Any,
    path: str,
    dtype: torch.dtype,
    data: st.DataObject,
    optimizer: Any,
    extras: dict[str, Any],
    batch_size: int,
    has_linear: bool,
    seed: int,
) -> None:
    kind, shape, n_classes = data.draw(cases, label="model")
    section, build = optimizer
    section = section | {"learning_rate": 0.02 if "adam" in section["kind"] else 0.1}
    config = make["config"](model=kind, training={"optimizer": section, "batch_size": batch_size} | extras)
    shards = [make["shard"](n, shape, n_classes, seed=seed + n) for n in (7, 12, 3, 1)]
    module = models.build_initial(config.model, shape, n_classes, seed)
    settings = {k: v for k, v in section.items() if k not in ("kind", "learning_rate")}
    compare(
        make, path, module, config, shards, n_classes, lambda p, rate: build(p, lr=rate, **settings), dtype,
        TOLERANCE[dtype], has_linear,
    )  # fmt: skip


wide = st.one_of(
    st.tuples(st.just({"kind": "logistic"}), st.tuples(widths), st.integers(10, 30)),
    st.tuples(
        st.fixed_dictionaries({"kind": st.just("mlp"), "hidden": st.tuples(st.integers(8, 70), widths).map(list)}),
        st.one_of(st.tuples(widths), st.tuples(st.integers(1, 6), st.integers(1, 6))),
        st.integers(2, 20),
    ),
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(SETTINGS, max_examples=40)
@given(
    case=wide,
    optimizer=st.sampled_from(OPTIMIZERS[:4]),
    batch_size=st.integers(1, 5),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_blocks_of_the_first_layer(
    make: dict[str, Make], dtype: torch.dtype, case: Any, optimizer: Any, batch_size: int, epochs: int, seed: int
) -> None:
    """SGD on a first linear layer whose steps are taken together, which small layers are only in this test."""
    (kind, shape, n_classes), (section, build) = case, optimizer
    section = section | {"learning_rate": 0.1}
    settings = {k: v for k, v in section.items() if k not in ("kind", "learning_rate")}
    config = make["config"](model=kind, training={"optimizer": section, "batch_size": batch_size, "epochs": epochs})
    shards = [make["shard"](n, shape, n_classes, seed=seed + n) for n in (7, 12, 3, 1)]
    module = models.build_initial(config.model, shape, n_classes, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "LEAST_BYTES", 0)
        n_outputs = kind["hidden"][0] if "hidden" in kind else n_classes
        node = ahead.first_layer(trace(module, shape))
        assert (ahead.block_steps(config.training, node, has_linear=False) > 0) == (n_outputs // 2 >= 2 * batch_size)
        compare(
            make, "fused", module, config, shards, n_classes, lambda p, rate: build(p, lr=rate, **settings), dtype,
            TOLERANCE[dtype],
        )  # fmt: skip


@pytest.mark.parametrize("path", ["loop", *MACHINES])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({"kind": "residual", "channels": [4, 6], "groups": 2, "dropout": 0.2}, (1, 8, 7)),
        ({"kind": "text", "vocabulary": 17, "embedding": 5, "hidden": [7], "dropout": 0.2}, (6,)),
    ],
    ids=["residual", "text"],
)
def test_the_other_reference_networks(
    make: dict[str, Make], path: str, model: dict[str, Any], shape: tuple[int, ...]
) -> None:
    config = make["config"](model=model, training={"epochs": 2})
    rng = np.random.default_rng(3)
    shards = [make["shard"](n, shape, 5, seed=n) for n in (9, 6, 5)]
    if model["kind"] == "text":
        shards = [Shard(rng.integers(0, 17, s.x.shape).astype(np.float32), s.y) for s in shards]
    module = models.build_initial(config.model, shape, 5, seed=1)

    def build(parameters: Any, rate: float) -> Any:
        return torch.optim.SGD(parameters, lr=rate)

    dtype, tolerance = (torch.float32, 1e-4) if path == "loop" else (torch.float64, 1e-8)
    compare(make, path, module, config, shards, 5, build, dtype, tolerance)


@pytest.mark.parametrize("path", MACHINES)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d((5, 4))], ids=["windows", "adaptive"])
@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_ties_in_pooling_go_to_the_first(make: dict[str, Make], path: str, level: float, pool: nn.Module) -> None:
    """Images of flat patches, as scanned digits have: whole windows are equal after the convolution."""
    config = make["config"](model={"kind": "cnn", "channels": [4, 6], "kernel": 3}, training={"epochs": 2})
    rng = np.random.default_rng(3)
    shards = [make["shard"](n, (1, 12, 12), 5, seed=n) for n in (9, 6, 5)]
    for shard in shards:
        shard.x[:, :, :6, :] = level
        shard.x[:, :, 6:, 4:] = rng.integers(0, 2, shard.x[:, :, 6:, 4:].shape)
    module = models.build_initial(config.model, (1, 12, 12), 5, seed=1)
    if isinstance(pool, nn.AdaptiveMaxPool2d):  # of windows that overlap
        module = nn.Sequential(*list(module)[:2], pool, nn.Flatten(), nn.Linear(80, 5))

    def build(parameters: Any, rate: float) -> Any:
        return torch.optim.SGD(parameters, lr=rate)

    compare(make, path, module, config, shards, 5, build, torch.float64, 1e-8)


@pytest.mark.parametrize(
    ("path", "dtype"), [("loop", torch.float32), *((path, dtype) for path in MACHINES for dtype in TOLERANCE)]
)
@pytest.mark.parametrize("name", ["residual", "mixer", "strided", "deep", "pooled", "dropping", "text", "tokens"])
@settings(SETTINGS, max_examples=-(-EXAMPLES // 3))
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    extras=st.sampled_from(EXTRAS),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_layer(
    make: dict[str, Make],
    make_module: Make,
    make_samples: Make,
    name: str,
    path: str,
    dtype: torch.dtype,
    optimizer: Any,
    extras: dict[str, Any],
    batch_size: int,
    seed: int,
) -> None:
    section, build = optimizer
    section = section | {"learning_rate": 0.02 if "adam" in section["kind"] else 0.1}
    config = make["config"](model={"kind": "mlp"}, training={"optimizer": section, "batch_size": batch_size} | extras)
    module, _ = make_module(name, seed)
    shards = [make_samples(name, n, seed + n) for n in (7, 12, 3, 1)]
    settings = {k: v for k, v in section.items() if k not in ("kind", "learning_rate")}
    # In float32, what a normalisation cancels leaves rounding errors, which Adam makes as large as any gradient.
    tolerance = TOLERANCE[dtype] if dtype is torch.float64 or name not in NORMALISED else 1e-3
    compare(make, path, module, config, shards, 5, lambda p, rate: build(p, lr=rate, **settings), dtype, tolerance)


def survival(n: int, rng: np.random.Generator) -> Any:
    """Times, some of them equal and some zero, and events."""
    return np.stack([np.floor(rng.exponential(5.0, n)), rng.random(n) < 0.6], axis=1).astype(np.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", MACHINES)
@pytest.mark.parametrize("loss", ["mse", "cox"])
@SETTINGS
@given(
    width=widths,
    n_values=st.integers(1, 20),
    hidden=st.lists(widths, max_size=1),
    optimizer=st.sampled_from(OPTIMIZERS),
    extras=st.sampled_from(EXTRAS),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_losses_that_are_not_of_classes(
    make: dict[str, Make],
    loss: str,
    path: str,
    dtype: torch.dtype,
    width: int,
    n_values: int,
    hidden: list[int],
    optimizer: Any,
    extras: dict[str, Any],
    batch_size: int,
    seed: int,
) -> None:
    section, build = optimizer
    section = section | {"learning_rate": 0.02 if "adam" in section["kind"] else 0.1}
    kind = {"kind": "mlp", "hidden": hidden} if hidden else {"kind": "logistic"}
    options = {"optimizer": section, "batch_size": batch_size, "loss": loss}
    config = make["config"](model=kind, training=options | extras)
    rng = np.random.default_rng(seed)
    n_values = 1 if loss == "cox" else n_values
    shards = []
    for n in (7, 12, 3, 25):
        y = survival(n, rng) if loss == "cox" else rng.standard_normal((n, n_values), dtype=np.float32)
        shards.append(Shard(rng.standard_normal((n, width), dtype=np.float32), y))
    module = models.build_initial(config.model, (width,), n_values, seed, loss)
    settings = {k: v for k, v in section.items() if k not in ("kind", "learning_rate")}
    compare(
        make, path, module, config, shards, n_values, lambda p, rate: build(p, lr=rate, **settings), dtype,
        TOLERANCE[dtype],
    )  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Images through a few layers of any kind and setting, then vectors through a few."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(4, 11), st.integers(4, 11)))
    layers: list[nn.Module] = []
    x = torch.zeros(1, *shape)  # torch refuses to normalise single values where a batch has one sample
    for kind in draw(st.lists(st.sampled_from(IMAGE_LAYERS), min_size=1, max_size=5)):
        layer = draw(kind(x.shape[1]))
        try:
            x = layer(x)
        except (RuntimeError, ValueError):  # nothing is left of the image, or one value that cannot be normalised
            continue
        layers.append(layer)
    layers.append(nn.Flatten())
    width = math.prod(x.shape[1:])
    for kind in draw(st.lists(st.sampled_from(VECTOR_LAYERS), max_size=3)):
        layers.append(draw(kind(width)))
        width = getattr(layers[-1], "out_features", width)
    return nn.Sequential(*layers, nn.Linear(width, 5)), shape


def _divisors(n: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


def _convolutions(n_in: int, n_groups: int) -> st.SearchStrategy[nn.Module]:
    return st.builds(
        nn.Conv2d,
        st.just(n_in),
        st.integers(1, 3).map(lambda n: n * n_groups),
        pairs,
        stride=pairs,
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        groups=st.just(n_groups),
        bias=st.booleans(),
    )


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
rates = st.sampled_from([0.1, 0.5])
activations = st.sampled_from([nn.ReLU, nn.GELU, nn.Tanh]).map(lambda kind: kind())
IMAGE_LAYERS: list[Callable[[int], st.SearchStrategy[nn.Module]]] = [
    lambda c: _divisors(c).flatmap(partial(_convolutions, c)),
    lambda c: st.builds(nn.MaxPool2d, st.integers(2, 3), stride=st.integers(1, 3), padding=st.integers(0, 1)),
    lambda c: st.builds(nn.AvgPool2d, st.integers(2, 3), stride=st.integers(1, 3), padding=st.integers(0, 1)),
    lambda c: st.builds(nn.AdaptiveAvgPool2d, pairs),
    lambda c: st.builds(nn.AdaptiveMaxPool2d, pairs),
    lambda c: st.builds(nn.GroupNorm, _divisors(c), st.just(c), affine=st.booleans()),
    lambda c: st.builds(nn.Dropout2d, rates),
    lambda c: activations,
]
VECTOR_LAYERS: list[Callable[[int], st.SearchStrategy[nn.Module]]] = [
    lambda n: st.builds(nn.Linear, st.just(n), widths, bias=st.booleans()),
    lambda n: st.builds(nn.LayerNorm, st.just(n), elementwise_affine=st.booleans()),
    lambda n: st.builds(nn.Dropout, rates),
    lambda n: activations,
]


@pytest.mark.parametrize("path", MACHINES)
@SETTINGS
@given(
    network=networks(),
    optimizer=st.sampled_from(OPTIMIZERS),
    extras=st.sampled_from(EXTRAS),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_networks_of_any_layers(
    make: dict[str, Make],
    path: str,
    network: tuple[nn.Module, tuple[int, ...]],
    optimizer: Any,
    extras: dict[str, Any],
    batch_size: int,
    seed: int,
) -> None:
    section, build = optimizer
    section = section | {"learning_rate": 0.02 if "adam" in section["kind"] else 0.1}
    config = make["config"](model={"kind": "mlp"}, training={"optimizer": section, "batch_size": batch_size} | extras)
    module, shape = network
    shards = [make["shard"](n, shape, 5, seed=seed + n) for n in (7, 12, 3, 1)]
    settings = {k: v for k, v in section.items() if k not in ("kind", "learning_rate")}
    compare(make, path, module, config, shards, 5, lambda p, rate: build(p, lr=rate, **settings), torch.float64, 1e-8)
