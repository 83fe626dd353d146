"""The formula of a worker's memory: what machines really allocate never exceeds it, and its parts are what they say."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import models, training
from fedsim.layout import Layout
from fedsim.training import noise
from fedsim.training.footprint import LIBRARY_BYTES, group_bytes, n_slabs, worker_bytes

Make = Callable[..., Any]
CASES: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    ({"kind": "logistic"}, (39,), 7),
    ({"kind": "mlp", "hidden": [39, 13]}, (62,), 3),
    ({"kind": "mlp", "hidden": [200]}, (28, 28), 62),
    ({"kind": "mlp", "hidden": [17]}, (2001,), 7),
    ({"kind": "cnn", "channels": [3, 5], "kernel": 3}, (1, 13, 11), 7),
    ({"kind": "cnn", "channels": [16], "kernel": 3}, (1, 12, 8), 7),
    ({"kind": "residual", "channels": [4, 6], "groups": 2, "dropout": 0.3}, (1, 9, 7), 5),
]
STEPS: list[dict[str, Any]] = [
    {"optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    {"optimizer": {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-3}},
    {"optimizer": {"kind": "adam", "learning_rate": 0.01}, "clip_norm": 0.5},
]


def tensor_bytes() -> int:
    """Bytes of all memory that tensors have, each counted once."""
    gc.collect()
    kept = [found.untyped_storage() for found in gc.get_objects() if type(found) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())


@pytest.mark.parametrize("section", STEPS, ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("case", CASES, ids=["logistic", "mlp", "ahead", "blocks", "cnn", "first", "dropout"])
@pytest.mark.parametrize("path", ["fused", "stacked", "loop"])
def test_no_more_is_allocated(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, path: str, case: Any, section: Any
) -> None:
    kind, shape, n_classes = case
    config = make_config(model=kind, training=section | {"path": path, "batch_size": 3, "epochs": 3, "group_size": 5})
    shards = [make_shard(n, shape, n_classes, n) for n in (11, 9, 8, 5, 3)]
    module = models.build_initial(config.model, shape, n_classes, 1)
    base_P = Layout.of(module).flatten(module)
    population = make_population(shards, n_classes)
    before = tensor_bytes()
    trainer = training.build(
        config, population, module, payload="delta", device=torch.device("cpu"), worker=0, clock=lambda: 0.0
    )
    tasks = [make_task(config, i, s.y.size, task=i) for i, s in enumerate(shards)]
    trainer.train(tasks, lambda version: base_P, np.empty((5, base_P.size), np.float32), lambda: None)
    kept = tensor_bytes() - before - sum(s.x.nbytes + s.y.nbytes for s in shards)
    found = group_bytes(config.training, module, shape, path, 1 if path == "loop" else 5)
    assert 0 < kept <= found.total
    assert found.weights >= 4 * base_P.size * n_slabs(config.training)


def test_parts_of_a_worker(make_config: Make) -> None:
    config = make_config(
        model={"kind": "logistic"},
        memory={"worker_data_bytes": 1000},
        schedule={"policy": "sync", "cohort": 4},
        evaluation={"batch_size": 8},
    )
    module = models.build_initial(config.model, (5,), 3, 1)  # 18 parameters
    group = group_bytes(config.training, module, (5,), "fused", 4)
    found = worker_bytes(
        config, module, (5,), group, n_versions=7, n_results=6, data_bytes=5000, group_data_bytes=30
    )  # fmt: skip
    assert (found.versions, found.results, found.group, found.shards) == (4 * 18 * 7, 4 * 18 * 6, group.total, 1030)
    assert found.evaluation == 4 * (2 * 18 + 8 * (3 + 5)) and found.libraries == LIBRARY_BYTES
    assert found.total == found.versions + found.results + found.group + 1030 + found.evaluation + LIBRARY_BYTES
    many = worker_bytes(
        config, module, (5,), group, n_versions=10**9, n_results=6, data_bytes=0, group_data_bytes=0
    )  # fmt: skip
    assert many.versions == 4 * 18 * (4 + 32) and many.shards == 0


def test_masks_are_counted_as_drawn(make_config: Make) -> None:
    """What drawing takes at its peak, as tracemalloc sees it, and what stays, as tensors have it."""
    config = make_config(model={"kind": "mlp", "hidden": [4]}, training={"batch_size": 8, "group_size": 16})
    module = torch.nn.Sequential(
        torch.nn.Linear(40, 4096), torch.nn.Dropout(0.3), torch.nn.Linear(4096, 3), torch.nn.Dropout(0.1)
    )
    found = noise.find(module, (40,))
    counted = group_bytes(config.training, module, (40,), "fused", 16).masks
    keys = noise.Keys(0, np.arange(16), np.arange(16), [8] * 16)
    gc.collect()
    before = tensor_bytes()
    tracemalloc.start()
    masks = noise.Masks(found.dropouts, 16, 8, torch.float32, torch.device("cpu"))
    masks.start(keys)
    masks.advance(16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    floats = sum(now.nbytes for now in masks.now)
    assert 0.6 * counted <= floats + peak <= counted
    assert floats <= tensor_bytes() - before <= counted


def test_without_dropout_there_are_no_masks(make_config: Make) -> None:
    config = make_config(model={"kind": "mlp", "hidden": [4]}, training={"batch_size": 8})
    assert group_bytes(config.training, torch.nn.Linear(3, 2), (3,), "fused", 16).masks == 0


def test_a_group_grows_with_its_clients(make_config: Make) -> None:
    for kind, shape, n_classes in CASES:
        config = make_config(model=kind, training={"batch_size": 10})
        module = models.build_initial(config.model, shape, n_classes, 1)
        one, two = (group_bytes(config.training, module, shape, "fused", n) for n in (8, 16))
        assert two.weights == 2 * one.weights and two.activations == 2 * one.activations
        assert two.batches <= 2 * one.batches
