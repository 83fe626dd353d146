"""AFL-CS' local objective on every path: they agree, and a task's bits depend neither on its slot nor on its group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import models, training
from fedsim.layout import Layout
from fedsim.types import Float32

Make = Callable[..., Any]
SHAPE = (7,)
SIZES = (9, 5, 14)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5}},
    "clipped": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "clip_norm": 0.3},
    "adam": {"optimizer": {"kind": "adam", "learning_rate": 0.01, "eps": 1e-2}},
}


@pytest.fixture
def updates(make_population: Make, make_config: Make, make_task: Make, make_shard: Make) -> Make:
    """`updates(path, penalty, optimizer, order)`: updates of three clients (3, P), trained in this order in a group."""
    shards = [make_shard(n, SHAPE, 3, seed=n) for n in SIZES]
    people = make_population(shards, 3)

    def ran(path: str, penalty: str, optimizer: str, order: tuple[int, ...] = (0, 1, 2)) -> Float32:
        objective = {"kind": "afl-cs", "penalty": penalty, "norm_weight": 0.05, "similarity_weight": 0.1}
        parts = OPTIMIZERS[optimizer] | {"path": path, "epochs": 3, "objective": objective}
        config = make_config(model={"kind": "mlp", "hidden": [5]}, training=parts)
        module = models.build_initial(config.model, SHAPE, 3, seed=1)
        base_P = Layout.of(module).flatten(module)
        has_way = penalty == "directions"
        trainer = training.build(
            config,
            people,
            module,
            payload="delta",
            device=torch.device("cpu"),
            worker=0,
            clock=lambda: 0.0,
            has_linear=has_way,
        )
        assert trainer.path == path
        ways_GP = np.random.default_rng(2).standard_normal((3, base_P.size)).astype(np.float32)
        ways_GP *= np.array([[0.0], [0.01], [1.0]], np.float32)  # a first task, a short way, a long one
        tasks = [make_task(config, i, SIZES[i], task=i) for i in order]
        out_GP = np.empty((len(order), base_P.size), np.float32)
        trainer.train(tasks, lambda version: base_P, out_GP, lambda: None, ways_GP[list(order)] if has_way else None)
        return out_GP[np.argsort(order)]

    return ran


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("penalty", ["directions", "weights", "released", "none"])
def test_the_paths_agree(penalty: str, optimizer: str, updates: Make) -> None:
    reference = updates("loop", penalty, optimizer)
    plain = updates("loop", "none", optimizer)
    assert penalty == "none" or not np.allclose(reference, plain, atol=1e-4)
    for path in ("fused", "stacked"):
        np.testing.assert_allclose(updates(path, penalty, optimizer), reference, rtol=2e-4, atol=5e-6)


@pytest.mark.parametrize("path", ["fused", "stacked"])
@pytest.mark.parametrize("penalty", ["directions", "weights", "released"])
def test_bits_depend_neither_on_slot_nor_on_neighbours(penalty: str, path: str, updates: Make) -> None:
    together = updates(path, penalty, "sgd")
    assert np.array_equal(updates(path, penalty, "sgd", (2, 0, 1)), together)
    for i in range(3):
        assert np.array_equal(updates(path, penalty, "sgd", (i,))[0], together[i])
