"""Tasks of unlike length in one group: no step is computed that a task does not have."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import models, training
from fedsim.layout import Layout
from fedsim.types import Shard

Make = Callable[..., Any]


@pytest.mark.parametrize("path", ["fused", "stacked"])
@pytest.mark.parametrize(
    "optimizer",
    [{"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}, {"kind": "adam", "learning_rate": 0.01}],
    ids=["momentum", "adam"],
)
def test_steps_computed_are_the_steps_there_are(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, path: str, optimizer: dict[str, Any]
) -> None:
    sizes = (3, 40, 9, 17, 40, 1)
    config = make_config(
        model={"kind": "mlp", "hidden": [5]},
        training={"path": path, "group_size": 6, "epochs": 2, "optimizer": optimizer},
    )
    population = make_population([make_shard(n, (7,), 3, seed=n) for n in sizes], 3)
    module = models.build_initial(config.model, (7,), 3, seed=1)
    trainer = training.build(
        config, population, module, payload="delta", device=torch.device("cpu"), worker=0, clock=lambda: 0.0
    )
    machine, at_work, take = trainer._machine, list[int](), trainer._machine.step  # type: ignore[attr-defined]

    def step(k: int, n_slots: int, n_most: int) -> int:
        at_work.append(n_slots)
        return int(take(k, n_slots, n_most))

    machine.step = step
    base_P = Layout.of(module).flatten(module)
    tasks = [make_task(config, client, n, task=client) for client, n in enumerate(sizes)]
    together_GP = np.empty((6, base_P.size), np.float32)
    reports = trainer.train(tasks, lambda version: base_P, together_GP, lambda: None)
    assert sum(at_work) == sum(task.n_steps for task in tasks) == 2 * sum(-(-n // 4) for n in sizes)
    assert len(at_work) == max(task.n_steps for task in tasks) and at_work == sorted(at_work, reverse=True)
    assert machine.batches.n_batch == config.training.batch_size
    for task, report, together_P in zip(tasks, reports, together_GP, strict=True):
        alone_GP = np.empty((1, base_P.size), np.float32)
        (alone,) = trainer.train([task], lambda version: base_P, alone_GP, lambda: None)
        assert alone == report and np.array_equal(alone_GP[0], together_P)


@pytest.mark.parametrize("path", ["fused", "stacked"])
def test_shards_that_nobody_keeps_go_with_their_group(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, path: str
) -> None:
    config = make_config(
        model={"kind": "mlp", "hidden": [5]},
        training={"path": path, "group_size": 2, "epochs": 1},
        memory={"worker_data_bytes": 0},
    )
    population = make_population([make_shard(8, (7,), 3, seed=n) for n in range(4)], 3)
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    kept = population.shard

    def shard(client: int) -> Shard:
        x, y = kept(client)
        x = x.copy()
        made.append(weakref.ref(x))
        alive.append(sum(of() is not None for of in made))
        return Shard(x, y)

    population.shard = shard
    module = models.build_initial(config.model, (7,), 3, seed=1)
    trainer = training.build(
        config, population, module, payload="delta", device=torch.device("cpu"), worker=0, clock=lambda: 0.0
    )
    base_P = Layout.of(module).flatten(module)
    tasks = [make_task(config, client, 8, task=client) for client in range(4)]
    trainer.train(tasks, lambda version: base_P, np.empty((4, base_P.size), np.float32), lambda: None)
    assert alive == [1, 2, 1, 2] and all(of() is None for of in made)
