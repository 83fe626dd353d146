"""Losses and metrics of a set of samples against formulas written out pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import RunConfig
from fedsim.errors import ConfigError
from fedsim.training.objectives import Cox, CrossEntropy, MeanSquaredError, loss_kind, loss_of
from fedsim.training.tallies import concordance, partial_likelihood

CPU = torch.device("cpu")


def survival(n: int, ties: bool) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(n)
    risk, time, event = rng.normal(size=n), rng.exponential(size=n), (rng.random(n) < 0.6).astype(float)
    return (np.round(risk), np.ceil(3 * time), event) if ties else (risk, time, event)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 5, 40, 1300])
def test_survival_pair_by_pair(n: int, ties: bool) -> None:
    risk, time, event = survival(n, ties)
    parts = [math.log(np.exp(risk[time >= time[i]]).sum()) - risk[i] if event[i] else 0.0 for i in range(n)]
    assert partial_likelihood(risk, time, event) == pytest.approx(sum(parts) / n, rel=1e-12)
    outputs, targets = torch.from_numpy(risk).unsqueeze(1), torch.from_numpy(np.stack([time, event], 1))
    assert Cox().mean(outputs, targets).item() == pytest.approx(sum(parts) / n, rel=1e-12)
    is_pair = (event[:, None] > 0) & (time[:, None] < time)
    rights = is_pair * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk))
    expected = rights.sum() / is_pair.sum() if is_pair.any() else math.nan
    assert concordance(risk, time, event) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_concordance_of_the_uncomparable() -> None:
    risk = np.array([1.0, 2.0, 3.0])
    assert math.isnan(concordance(risk, np.ones(3), np.ones(3)))
    assert math.isnan(concordance(risk, np.arange(3.0), np.zeros(3)))
    assert math.isnan(concordance(np.array([1.0, math.nan, 0.0]), np.arange(3.0), np.ones(3)))
    assert math.isnan(concordance(np.zeros(600), np.ones(600), np.ones(600)))
    assert concordance(risk[::-1], np.arange(3.0), np.ones(3)) == 1.0


@pytest.mark.parametrize("loss", [Cox(), MeanSquaredError(1)])
def test_padding_leaves_the_others_alone(loss: Any) -> None:
    risk, time, event = survival(6, ties=True)
    outputs = torch.from_numpy(risk).unsqueeze(1)
    targets = torch.from_numpy(np.stack([time, event], 1) if isinstance(loss, Cox) else time[:, None])
    targets[2, 0] = 0.0
    padded = torch.cat([targets, loss.padding.to(targets).expand(3, -1)])
    more = torch.cat([outputs, torch.full((3, 1), 50.0, dtype=torch.float64)])
    assert torch.equal(loss.each(more, padded)[:6], loss.each(outputs, targets))
    assert loss.each(more, padded).isfinite().all()


def test_a_survival_set_is_scored_as_one_batch() -> None:
    risk, time, event = survival(40, ties=True)
    outputs, targets = torch.from_numpy(risk).unsqueeze(1), torch.from_numpy(np.stack([time, event], 1))
    parts = [Cox().tally(CPU) for _ in range(2)]
    for i, part in enumerate(parts):
        for rows in (slice(20 * i, 20 * i + 13), slice(20 * i + 13, 20 * i + 20)):
            part.add(outputs[rows], targets[rows])
    pooled = Cox().tally(CPU)
    pooled.merge(parts)
    assert pooled.n_samples == 40 and parts[0].n_samples == 20
    assert pooled.values() == (partial_likelihood(risk, time, event), concordance(risk, time, event))
    assert parts[0].values() == (
        partial_likelihood(risk[:20], time[:20], event[:20]),
        concordance(risk[:20], time[:20], event[:20]),
    )
    assert all(math.isnan(value) for value in Cox().tally(CPU).values())


def test_errors_of_values() -> None:
    loss = MeanSquaredError(2)
    tally = loss.tally(CPU)
    tally.add(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]]))
    tally.add(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    assert tally.values() == pytest.approx((7.5 / 3, 7.5 / 3, 3.5 / 3))
    assert loss.targets(np.arange(3)).shape == (3, 1)


def test_the_loss_follows_the_targets(make_config: Any, make_population: Any, make_shard: Any) -> None:
    population = make_population([make_shard(4, (3,), 3)], 3)
    config: RunConfig = make_config()
    assert loss_kind(config, population) == "auto" and isinstance(loss_of(config, population), CrossEntropy)
    with pytest.raises(ConfigError, match=r"training\.loss: cox takes survival as targets, .* has classes; use auto"):
        loss_of(make_config(training={"loss": "cox"}), population)
    with pytest.raises(ConfigError, match=r"binary-cross-entropy takes two classes, the data have 3; use auto"):
        loss_of(make_config(training={"loss": "binary-cross-entropy"}), population)
    population.targets, population.n_classes = "survival", 1
    assert isinstance(loss_of(config, population), Cox)
    with pytest.raises(ConfigError, match="mse takes values as targets"):
        loss_of(make_config(training={"loss": "mse"}), population)
    population.targets = "values"
    assert loss_of(config, population).padding.shape == (1,)
