"""FedAvg of clients that take one full-batch step each is gradient descent on the pooled loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsim import aggregation, models, training
from fedsim.layout import Layout
from fedsim.types import Update

Make = Callable[..., Any]


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_one_full_batch_step(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, weighting: str
) -> None:
    rate, n_rounds, sizes = 0.3, 10, [5, 17, 9, 30] if weighting == "samples" else [12, 12, 12]
    shards = [make_shard(n, (6,), 3, seed=n + i) for i, n in enumerate(sizes)]
    config = make_config(
        model={"kind": "mlp", "hidden": [5]},
        training={"optimizer": {"kind": "sgd", "learning_rate": rate}, "batch_size": 64, "steps": 1},
        aggregation={"rule": "fedavg", "weighting": weighting},
    )
    module = models.build_initial(config.model, (6,), 3, seed=0)
    layout, rule = Layout.of(module), aggregation.build(config.aggregation)
    trainer = training.build(
        config,
        make_population(shards, 3),
        module,
        payload="delta",
        device=torch.device("cpu"),
        worker=0,
        clock=lambda: 0.0,
    )
    state = rule.init(layout.flatten(module))
    for number in range(n_rounds):
        tasks = [make_task(config, c, n, task=10 * number + c) for c, n in enumerate(sizes)]
        out_GP = np.empty((len(tasks), layout.n_parameters), np.float32)
        base_P = aggregation.published(state)
        reports = trainer.train(tasks, {3: base_P}.__getitem__, out_GP, lambda: None)
        for report, vector_P in zip(reports, out_GP, strict=True):
            state, _ = rule.accumulate(state, Update(report, vector_P), aggregation.Arrival(0))
        state = rule.commit(state)

    x = torch.from_numpy(np.concatenate([shard.x for shard in shards])).double()
    y = torch.from_numpy(np.concatenate([shard.y for shard in shards]))
    module = module.double()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    start_P = np.concatenate([p.detach().numpy().ravel().copy() for p in module.parameters()])
    for _ in range(n_rounds):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(x), y))
        optimizer.step()
    end_P = np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])
    np.testing.assert_allclose(aggregation.published(state), end_P, atol=2e-6)
    assert np.abs(end_P - start_P).max() > 0.05
