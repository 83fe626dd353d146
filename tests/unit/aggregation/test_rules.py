"""The rules' bookkeeping: weights, what counts, what is left alone, and who owns what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim.aggregation import Arrival, Rule, ServerState, accumulate, build, published
from fedsim.config import AggregationConfig
from fedsim.types import Float32, TaskReport, Update

RULES: list[dict[str, Any]] = [
    {"rule": "fedavg"},
    {"rule": "fedavg", "weighting": "uniform", "server_learning_rate": 0.5},
    {"rule": "fedasync"},
    {"rule": "fedbuff"},
    {"rule": "fedbuff", "weighting": "samples"},
    {"rule": "k-async"},
]


def rule_of(plain: dict[str, Any]) -> Rule:
    return build(TypeAdapter(AggregationConfig).validate_python(plain))


def update_of(*values: float, n_samples: int = 1) -> Update:
    return Update(TaskReport(0, 0, n_samples, 1, 1.0, 1.0, 0.0, 0.0), np.array(values, np.float32))


def start(rule: Rule, *values: float) -> ServerState:
    return rule.init(np.array(values, np.float32))


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_committing_nothing_changes_nothing(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    state = rule.commit(start(rule, 1.0, -2.0))
    assert state.weights_P.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_an_update_too_stale_has_weight_zero_and_does_not_count(plain: dict[str, Any]) -> None:
    rule = rule_of(plain | {"max_staleness": 2})
    state, left_out = rule.accumulate(start(rule, 1.0, -2.0), update_of(9.0, 9.0), Arrival(3))
    assert left_out.weight == 0.0 and state.n_accumulated == 0
    assert rule.commit(state).weights_P.tolist() == [1.0, -2.0]
    state, first = rule.accumulate(state, update_of(4.0, 8.0), Arrival(2))
    state, _ = rule.accumulate(state, update_of(9.0, 9.0), Arrival(3))
    assert first.weight > 0 and state.n_accumulated == 1
    other, _ = rule.accumulate(start(rule, 1.0, -2.0), update_of(4.0, 8.0), Arrival(2))
    assert np.array_equal(rule.commit(state).weights_P, rule.commit(other).weights_P)


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_the_version_changes_in_commit_alone(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    state, _ = rule.accumulate(start(rule, 1.0, -2.0), update_of(4.0, 8.0), Arrival(0))
    assert state.weights_P.tolist() == [1.0, -2.0]
    state = rule.commit(state)
    assert state.weights_P.tolist() != [1.0, -2.0] and state.n_accumulated == 0
    after = state.weights_P.copy()
    assert np.array_equal(rule.commit(state).weights_P, after)


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_updates_are_read_and_not_kept(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    update = update_of(4.0, 8.0)
    update.vector_P.flags.writeable = False
    state, _ = rule.accumulate(start(rule, 1.0, -2.0), update, Arrival(1))
    update.vector_P.flags.writeable = True
    update.vector_P[:] = np.nan
    assert np.isfinite(rule.commit(state).weights_P).all()


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_state_is_changed_in_place_and_returned(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    state = start(rule, 1.0, -2.0)
    assert rule.accumulate(state, update_of(4.0, 8.0), Arrival(0))[0] is state
    assert rule.commit(state) is state


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_a_commit_starts_from_an_empty_accumulator(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    state, _ = rule.accumulate(start(rule, 0.0), update_of(8.0), Arrival(0))
    state = rule.commit(state)
    again = start(rule, 0.0)
    again.weights_P[:] = state.weights_P
    for each in (state, again):
        rule.commit(rule.accumulate(each, update_of(-3.0), Arrival(0))[0])
    assert np.array_equal(state.weights_P, again.weights_P)


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_diagnostics_match_their_names(plain: dict[str, Any]) -> None:
    rule = rule_of(plain)
    _, diagnostics = rule.accumulate(start(rule, 1.0), update_of(2.0), Arrival(0))
    assert len(diagnostics.scalars) == len(rule.scalar_names)
    assert rule.name == plain["rule"] and rule.payload == ("model" if plain["rule"] == "fedasync" else "delta")


@pytest.mark.parametrize(
    ("plain", "staleness", "weight"),
    [
        ({"rule": "fedavg"}, 3, 40.0),
        ({"rule": "fedavg", "weighting": "uniform"}, 3, 1.0),
        ({"rule": "fedasync"}, 3, 0.3),
        ({"rule": "fedasync", "alpha": 1.0, "staleness": {"kind": "hinge"}}, 5, 1 / 11),
        ({"rule": "fedbuff"}, 3, 0.5),
        ({"rule": "fedbuff", "weighting": "samples"}, 3, 20.0),
        ({"rule": "k-async"}, 3, 1.0),
    ],
    ids=str,
)
def test_weights(plain: dict[str, Any], staleness: int, weight: float) -> None:
    rule = rule_of(plain)
    _, diagnostics = rule.accumulate(start(rule, 0.0), update_of(1.0, n_samples=40), Arrival(staleness))
    assert diagnostics.weight == pytest.approx(weight, rel=1e-15)


def test_updates_without_samples_make_no_version() -> None:
    rule = rule_of({"rule": "fedavg"})
    state, diagnostics = rule.accumulate(start(rule, 2.0), update_of(1.0, n_samples=0), Arrival(0))
    assert diagnostics.weight == 0.0 and rule.commit(state).weights_P.tolist() == [2.0]


def test_published_is_a_new_float32_vector() -> None:
    rule = rule_of({"rule": "fedavg"})
    state = start(rule, 1.0, 2.0)
    vector = published(state)
    vector[:] = 0.0
    assert vector.dtype == np.float32 and state.weights_P.tolist() == [1.0, 2.0]


def test_init_leaves_the_given_vector_alone() -> None:
    given: Float32 = np.array([1.0, 2.0], np.float32)
    rule = rule_of({"rule": "fedavg"})
    rule.commit(rule.accumulate(rule.init(given), update_of(1.0, 1.0), Arrival(0))[0])
    assert given.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("plain", RULES, ids=str)
@pytest.mark.parametrize("n", [1, 6, 7, 8, 20])
def test_blocks_make_no_difference(plain: dict[str, Any], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    base, *vectors = rng.standard_normal((4, n), dtype=np.float32)

    def final() -> Any:
        rule = rule_of(plain)
        state = rule.init(base)
        for tau, vector in enumerate(vectors):
            state, _ = rule.accumulate(state, update_of(*vector.tolist(), n_samples=tau + 2), Arrival(tau))
        return rule.commit(state).weights_P

    whole = final()
    monkeypatch.setattr(accumulate, "_BLOCK", 7)
    assert np.array_equal(final(), whole)
