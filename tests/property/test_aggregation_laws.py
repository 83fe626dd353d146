"""Laws of the rules: order, scale, and updates that say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedsim.aggregation import Arrival, Rule, build, published
from fedsim.config import AggregationConfig
from fedsim.types import Float32, TaskReport, Update

SETTINGS = settings(max_examples=60, deadline=None)
MEANS: list[dict[str, Any]] = [
    {"rule": "fedavg"},
    {"rule": "fedavg", "weighting": "uniform"},
    {"rule": "fedbuff"},
    {"rule": "fedbuff", "weighting": "samples", "staleness": {"kind": "hinge"}},
    {"rule": "k-async"},
]
RULES = [*MEANS, {"rule": "fedasync"}]
FLOATS = st.floats(-1e6, 1e6, width=32)


def rule_of(plain: dict[str, Any]) -> Rule:
    return build(TypeAdapter(AggregationConfig).validate_python(plain))


def version(plain: dict[str, Any], base: Float32, arrivals: list[tuple[Float32, int, int]]) -> Float32:
    """The version that one buffer of (vector, samples, staleness) makes."""
    rule = rule_of(plain)
    state = rule.init(base)
    for vector, n_samples, staleness in arrivals:
        report = TaskReport(0, 0, n_samples, 1, 0.0, 0.0, 0.0, 0.0)
        state, _ = rule.accumulate(state, Update(report, vector), Arrival(staleness))
    return published(rule.commit(state))


def drawn(seed: int, n_updates: int, n_parameters: int = 200) -> tuple[Float32, list[tuple[Float32, int, int]]]:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_updates + 1, n_parameters), dtype=np.float32)
    sizes, taus = rng.integers(1, 500, n_updates).tolist(), rng.integers(0, 12, n_updates).tolist()
    return vectors[0], list(zip(vectors[1:], sizes, taus, strict=True))


@pytest.mark.parametrize("plain", MEANS, ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), n_updates=st.integers(1, 64), data=st.data())
def test_the_order_of_arrivals_is_hidden_by_the_cast(
    plain: dict[str, Any], seed: int, n_updates: int, data: st.DataObject
) -> None:
    base, arrivals = drawn(seed, n_updates)
    shuffled = data.draw(st.permutations(arrivals))
    # float64 hides the order unless a sum lies within 1e-13 of where two float32 values meet: 200 entries never did
    assert np.array_equal(version(plain, base, arrivals), version(plain, base, shuffled))


@pytest.mark.parametrize("plain", [p for p in MEANS if p["rule"] != "k-async"], ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), factor=st.integers(2, 50))
def test_only_ratios_of_sample_numbers_count(plain: dict[str, Any], seed: int, factor: int) -> None:
    base, arrivals = drawn(seed, 7)
    scaled = [(vector, n * factor, tau) for vector, n, tau in arrivals]
    np.testing.assert_allclose(version(plain, base, scaled), version(plain, base, arrivals), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("plain", RULES, ids=str)
@SETTINGS
@given(base=st.lists(FLOATS, min_size=1, max_size=30), n_samples=st.integers(1, 1000), n_updates=st.integers(1, 5))
def test_updates_that_say_nothing_leave_a_fresh_model_alone(
    plain: dict[str, Any], base: list[float], n_samples: int, n_updates: int
) -> None:
    base_P = np.array(base, np.float32)
    nothing = base_P if plain["rule"] == "fedasync" else np.zeros_like(base_P)
    assert np.array_equal(version(plain, base_P, [(nothing, n_samples, 0)] * n_updates), base_P)


@pytest.mark.parametrize("plain", MEANS, ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), n_updates=st.integers(1, 20))
def test_fresh_equal_updates_make_one_step_of_theirs(plain: dict[str, Any], seed: int, n_updates: int) -> None:
    base, ((vector, _, _),) = drawn(seed, 1)
    arrivals = [(vector, 3 + k, 0) for k in range(n_updates)]
    expected = (base.astype(np.float64) + vector).astype(np.float32)
    np.testing.assert_array_max_ulp(version(plain, base, arrivals), expected, 1)


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    n_updates=st.integers(1, 8),
    alpha=st.floats(0.01, 1.0),
    kind=st.sampled_from(["constant", "polynomial", "hinge"]),
)
def test_fedasync_in_one_commit_is_fedasync_commit_by_commit(
    seed: int, n_updates: int, alpha: float, kind: str
) -> None:
    base, arrivals = drawn(seed, n_updates)
    plain = {"rule": "fedasync", "alpha": alpha, "staleness": {"kind": kind}}
    rule = rule_of(plain)
    state = rule.init(base)
    for vector, n_samples, staleness in arrivals:
        report = TaskReport(0, 0, n_samples, 1, 0.0, 0.0, 0.0, 0.0)
        state, _ = rule.accumulate(state, Update(report, vector), Arrival(staleness))
        state = rule.commit(state)
    np.testing.assert_allclose(version(plain, base, arrivals), published(state), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n_parameters", [7, 33_000, 70_001])
@pytest.mark.parametrize("plain", [*RULES, {"rule": "fedbuff", "server_learning_rate": 0.3}], ids=str)
def test_completing_a_version_gives_the_bits_of_accumulate_commit_and_publish(
    plain: dict[str, Any], n_parameters: int
) -> None:
    rule, other = rule_of(plain | {"max_staleness": 9}), rule_of(plain | {"max_staleness": 9})
    base, _ = drawn(1, 1, n_parameters)
    state, expected = rule.init(base), other.init(base)
    for seed in range(4):
        *first, last = drawn(seed, 1 + seed, n_parameters)[1]
        for vector, n_samples, staleness in first:
            update = Update(TaskReport(0, 0, n_samples, 1, 0.0, 0.0, 0.0, 0.0), vector)
            state, _ = rule.accumulate(state, update, Arrival(staleness))
            expected, _ = other.accumulate(expected, update, Arrival(staleness))
        update = Update(TaskReport(0, 0, last[1], 1, 0.0, 0.0, 0.0, 0.0), last[0])
        state, diagnostics, version_P = rule.complete(state, update, Arrival(last[2]))
        expected, wanted = other.accumulate(expected, update, Arrival(last[2]))
        expected = other.commit(expected)
        assert diagnostics == wanted and (state.n_accumulated, state.weight_sum) == (0, 0.0)
        assert np.array_equal(state.weights_P, expected.weights_P) and np.array_equal(version_P, published(expected))
