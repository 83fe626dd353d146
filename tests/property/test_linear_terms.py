"""A linear term of each task's own: the loop, fused and stacked paths agree, and without slopes nothing changes."""

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
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "proximal": {
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "objective": {"kind": "proximal", "mu": 0.5},
    },
    "clipped": {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5}, "clip_norm": 0.2},
    "decayed": {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.01}},
    "adam": {"optimizer": {"kind": "adam", "learning_rate": 0.01, "eps": 1e-2}},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_paths_agree(
    name: str, make_population: Make, make_config: Make, make_task: Make, make_shard: Make
) -> None:
    shards = [make_shard(n, SHAPE, 3, seed=n) for n in (9, 5, 14)]
    people = make_population(shards, 3)
    model = {"kind": "mlp", "hidden": [5]}

    def updates(path: str, scale: float) -> Float32:
        config = make_config(model=model, training=OPTIMIZERS[name] | {"path": path, "epochs": 3})
        module = models.build_initial(config.model, SHAPE, 3, seed=1)
        layout = Layout.of(module)
        trainer = training.build(
            config,
            people,
            module,
            payload="delta",
            device=torch.device("cpu"),
            worker=0,
            clock=lambda: 0.0,
            has_linear=True,
        )
        base_P = layout.flatten(module)
        tasks = [make_task(config, i, s.y.size, task=i) for i, s in enumerate(shards)]
        out_GP = np.empty((3, base_P.size), np.float32)
        slopes_GP = np.float32(scale) * np.random.default_rng(2).standard_normal(out_GP.shape).astype(np.float32)
        trainer.train(tasks, lambda version: base_P, out_GP, lambda: None, slopes_GP)
        return out_GP

    reference = updates("loop", 0.3)
    for path in ("fused", "stacked"):
        assert np.allclose(updates(path, 0.3), reference, rtol=1e-4, atol=2e-6)
    assert np.abs(updates("loop", 0.0) - reference).max() > 1e-3
