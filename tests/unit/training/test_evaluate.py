"""Which test sets get a row, and what stands in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.layout import Layout
from fedsim.training.evaluate import Evaluator
from fedsim.types import Shard

Make = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def rows(make_population: Make, make_config: Make, make_shard: Make) -> Make:
    """`rows(clients=..., tests=..., central=...)`: the (client, n_samples) of each row of an evaluation."""

    def evaluate(clients: bool, tests: bool, central: bool) -> list[tuple[int, int]]:
        shards = {2: make_shard(5, (3,), 4, 1), 0: make_shard(9, (3,), 4, 2)} if tests else {}
        population = make_population(
            [make_shard(4, (3,), 4)] * 3, 4, shards, make_shard(7, (3,), 4) if central else None
        )
        config = make_config(evaluation={"clients": clients})
        module = nn.Linear(3, 4)
        found = Evaluator(config, population, module, CPU).evaluate(Layout.of(module).flatten(module))
        return [(row.client, row.n_samples) for row in found]

    return evaluate


@pytest.mark.parametrize(
    ("clients", "tests", "central", "expected"),
    [
        (True, True, False, [(0, 9), (2, 5)]),
        (True, True, True, [(0, 9), (2, 5), (-1, 7)]),
        (True, False, True, [(-1, 7)]),
        (False, True, True, [(-1, 7)]),
        (False, True, False, [(-1, 14)]),
        (True, False, False, []),
        (False, False, False, []),
    ],
)
def test_rows(rows: Make, clients: bool, tests: bool, central: bool, expected: list[tuple[int, int]]) -> None:
    assert rows(clients, tests, central) == expected


def test_values_of_classes(make_population: Make, make_config: Make, make_shard: Make) -> None:
    test = make_shard(23, (3,), 4, 5)
    module = nn.Linear(3, 4)
    evaluator = Evaluator(
        make_config(evaluation={"batch_size": 5}), make_population([test], 4, {0: test}), nn.Linear(3, 4), CPU
    )
    assert evaluator.metric_names == ("accuracy",)
    (row,) = evaluator.evaluate(Layout.of(module).flatten(module))
    outputs, y = module(torch.from_numpy(test.x)), torch.from_numpy(test.y)
    assert row.loss == pytest.approx(functional.cross_entropy(outputs.double(), y).item(), rel=1e-6)
    assert row.metrics == {"accuracy": (outputs.argmax(1) == y).double().mean().item()}


def test_values_of_one_logit(make_population: Make, make_config: Make) -> None:
    test = Shard(np.array([[1.0], [-1.0], [0.0], [3.0]], np.float32), np.array([1, 1, 0, 0]))
    module = nn.Linear(1, 1)
    evaluator = Evaluator(make_config(), make_population([test], 2, {0: test}), module, CPU)
    (row,) = evaluator.evaluate(np.array([1.0, 0.0], np.float32))  # the sigmoid of x; that of 0 is not above one half
    expected = [math.log1p(math.exp(-1)), math.log1p(math.exp(1)), math.log(2), math.log1p(math.exp(3))]
    assert row.loss == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert row.metrics == {"accuracy": 0.5}


def test_pooled_row_is_the_mean_over_all_samples(make_population: Make, make_config: Make, make_shard: Make) -> None:
    tests = {0: make_shard(6, (3,), 4, 1), 1: make_shard(18, (3,), 4, 2)}
    population = make_population(list(tests.values()), 4, tests)
    module = nn.Linear(3, 4)
    vector = Layout.of(module).flatten(module)
    each = Evaluator(make_config(), population, module, CPU).evaluate(vector)
    (pooled,) = Evaluator(make_config(evaluation={"clients": False}), population, module, CPU).evaluate(vector)
    assert pooled.loss == pytest.approx((6 * each[0].loss + 18 * each[1].loss) / 24, rel=1e-12)
    accuracies = [row.metrics["accuracy"] for row in each]
    assert pooled.metrics["accuracy"] == pytest.approx((6 * accuracies[0] + 18 * accuracies[1]) / 24, rel=1e-12)


def test_nan_stays_nan(make_population: Make, make_config: Make, make_shard: Make) -> None:
    test = make_shard(4, (3,), 4)
    evaluator = Evaluator(make_config(), make_population([test], 4, {0: test}), nn.Linear(3, 4), CPU)
    (row,) = evaluator.evaluate(np.full(16, np.nan, np.float32))
    assert math.isnan(row.loss)


def test_dropout_is_off_and_progress_is_called(make_population: Make, make_config: Make, make_shard: Make) -> None:
    test = make_shard(20, (3,), 4)
    module = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 4))
    config = make_config(evaluation={"batch_size": 6})
    evaluator = Evaluator(config, make_population([test], 4, {0: test}), module, CPU)
    vector, calls = Layout.of(module).flatten(module), list[int]()
    first = evaluator.evaluate(vector, lambda: calls.append(1))
    assert evaluator.evaluate(vector) == first and len(calls) == 4
