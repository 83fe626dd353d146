"""First steps of every rule, worked out on paper with numbers that are exact in binary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim.aggregation import Arrival, Rule, build, published
from fedsim.config import AggregationConfig
from fedsim.types import TaskReport, Update

Vector = tuple[list[float], int, int]  # vector, samples, staleness


def rule_of(**plain: Any) -> Rule:
    return build(TypeAdapter(AggregationConfig).validate_python(plain))


def run(rule: Rule, base: list[float], *buffers: list[Vector]) -> list[list[float]]:
    """The versions that buffers of arrivals make, one after the other."""
    state, versions = rule.init(np.array(base, np.float32)), []
    for buffer in buffers:
        for vector, n_samples, staleness in buffer:
            report = TaskReport(0, 0, n_samples, 1, 0.0, 0.0, 0.0, 0.0)
            state, _ = rule.accumulate(state, Update(report, np.array(vector, np.float32)), Arrival(staleness))
        state = rule.commit(state)
        versions.append(published(state).tolist())
    return versions


def test_fedavg_weighs_by_samples() -> None:
    # (10 * [4, 0] + 30 * [0, 8]) / 40 = [1, 6]; then (16 * [-2, 1]) / 16
    found = run(rule_of(rule="fedavg"), [1.0, 1.0], [([4, 0], 10, 0), ([0, 8], 30, 0)], [([-2, 1], 16, 0)])
    assert found == [[2.0, 7.0], [0.0, 8.0]]


def test_fedavg_uniform_with_a_server_step() -> None:
    rule = rule_of(rule="fedavg", weighting="uniform", server_learning_rate=0.5)
    # 0.5 * ([4, 0] + [0, 8]) / 2 = [1, 2]
    assert run(rule, [1.0, 1.0], [([4, 0], 10, 0), ([0, 8], 30, 5)]) == [[2.0, 3.0]]


def test_fedasync_mixes_models() -> None:
    rule = rule_of(rule="fedasync", alpha=0.5, staleness={"kind": "polynomial", "a": 0.5})
    # a = .5: [0, 8] -> [2, 4]; staleness 3, a = .25: .75 * [2, 4] + .25 * [10, 0] = [4, 3]
    assert run(rule, [0.0, 8.0], [([4, 0], 1, 0)], [([10, 0], 1, 3)]) == [[2.0, 4.0], [4.0, 3.0]]


def test_fedasync_hinge() -> None:
    rule = rule_of(rule="fedasync", alpha=1.0, staleness={"kind": "hinge", "a": 1.0, "b": 2.0})
    # staleness 2 replaces the model; staleness 5: 1/(1 * 3 + 1) = .25: .75 * 4 + .25 * 8 = 5
    assert run(rule, [1.0], [([4], 1, 2)], [([8], 1, 5)]) == [[4.0], [5.0]]


def test_fedbuff_divides_by_the_number_of_updates() -> None:
    rule = rule_of(rule="fedbuff", server_learning_rate=2.0)
    # 2 * (1 * [4, 2] + .5 * [8, -4]) / 2 = [8, 0]; weights 1 and 1/sqrt(1 + 3)
    assert run(rule, [1.0, 1.0], [([4, 2], 9, 0), ([8, -4], 1, 3)]) == [[9.0, 1.0]]


def test_fedbuff_by_samples() -> None:
    rule = rule_of(rule="fedbuff", weighting="samples")
    # (30 * [4] + .5 * 10 * [8]) / 40 = 4
    assert run(rule, [1.0], [([4], 30, 0), ([8], 10, 3)]) == [[5.0]]


def test_fedbuff_counts_only_what_is_fresh_enough() -> None:
    rule = rule_of(rule="fedbuff", max_staleness=3)
    assert run(rule, [1.0], [([4], 1, 0), ([100], 1, 4), ([8], 1, 3)], [([7], 1, 9)]) == [[5.0], [5.0]]


def test_k_async_ignores_staleness_and_samples() -> None:
    rule = rule_of(rule="k-async", server_learning_rate=0.5)
    # .5 * ([2, 4] + [4, -8] + [0, 16] + [2, 4]) / 4 = [1, 2]
    arrivals: list[Vector] = [([2, 4], 1, 0), ([4, -8], 50, 7), ([0, 16], 3, 1), ([2, 4], 9, 0)]
    assert run(rule, [0.0, 0.0], arrivals) == [[1.0, 2.0]]


def test_fedbuff_of_one_is_fedasync_of_alpha_one_when_fresh() -> None:
    rng = np.random.default_rng(3)
    base, *models = rng.integers(-64, 64, (6, 50)).astype(np.float32) / 16  # their differences are exact
    buffered = rule_of(rule="fedbuff", server_learning_rate=1.0)
    mixed = rule_of(rule="fedasync", alpha=1.0)
    bases = [base, *models[:-1]]
    differences = [[((model - at).tolist(), 5, 0)] for at, model in zip(bases, models, strict=True)]
    wholes: list[list[Vector]] = [[(model.tolist(), 5, 0)] for model in models]
    assert run(buffered, base.tolist(), *differences) == run(mixed, base.tolist(), *wholes)


def test_fedbuff_of_one_differs_from_fedasync_when_stale() -> None:
    buffered = rule_of(rule="fedbuff")
    mixed = rule_of(rule="fedasync", alpha=1.0)
    # base 0, model 4, server now at 2: 2 + .5 * 4 = 4 against .5 * 2 + .5 * 4 = 3
    assert run(buffered, [2.0], [([4], 1, 3)]) == [[4.0]]
    assert run(mixed, [2.0], [([4], 1, 3)]) == [[3.0]]


def test_fedbuff_with_equal_delays_and_samples_is_fedavg() -> None:
    rng = np.random.default_rng(4)
    arrivals: list[Vector] = [(row.tolist(), 20, 0) for row in rng.standard_normal((8, 30), dtype=np.float32)]
    base = rng.standard_normal(30, dtype=np.float32).tolist()
    np.testing.assert_array_equal(
        run(rule_of(rule="fedbuff"), base, arrivals), run(rule_of(rule="fedavg"), base, arrivals)
    )


@pytest.mark.parametrize("tau", [0, 3])
def test_quadratic_clients_settle_at_the_weighted_optimum(tau: int) -> None:
    # clients minimise (c/2)|w - o|^2 by one step of rate r: D = -r c (w - o); FedAvg rests where sum n c (w - o) = 0
    curvature, optimum, n, rate = np.array([1.0, 4.0]), np.array([3.0, -1.0]), np.array([10, 30]), 0.05
    rule = rule_of(rule="fedavg")
    state = rule.init(np.zeros(1, np.float32))
    history = [published(state)]
    for _ in range(400):
        w = float(history[max(0, len(history) - 1 - tau)][0])
        for c, o, samples in zip(curvature, optimum, n, strict=True):
            report = TaskReport(0, 0, int(samples), 1, 0.0, 0.0, 0.0, 0.0)
            state, _ = rule.accumulate(state, Update(report, np.array([-rate * c * (w - o)], np.float32)), Arrival(tau))
        state = rule.commit(state)
        history.append(published(state))
    expected = float((n * curvature * optimum).sum() / (n * curvature).sum())
    assert history[-1][0] == pytest.approx(expected, abs=1e-5)
