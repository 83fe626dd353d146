"""The robust rules: their answers on written-out examples, and what no attacker can do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedsim.aggregation import Arrival, Rule, build, published
from fedsim.aggregation.robust import krum_scores, squared_distances
from fedsim.config import AggregationConfig
from fedsim.types import TaskReport, Update

SETTINGS = settings(max_examples=40, deadline=None)
WHOLE: list[dict[str, Any]] = [
    {"rule": "median"},
    {"rule": "trimmed-mean", "trim": 0.3},
    {"rule": "krum", "attackers": 2},
    {"rule": "multi-krum", "attackers": 2},
]
RULES = [*WHOLE, {"rule": "norm-bound", "bound": 2.0}]


def rule_of(**plain: Any) -> Rule:
    return build(TypeAdapter(AggregationConfig).validate_python(plain))


def version(rule: Rule, base: list[float], *updates: list[float], taus: tuple[int, ...] = ()) -> list[float]:
    """The version that updates make; `taus` are their staleness, 0 where none is given."""
    state = rule.init(np.array(base, np.float32))
    for k, vector in enumerate(updates):
        report = TaskReport(0, 0, 1, 1, 0.0, 0.0, 0.0, 0.0)
        tau = taus[k] if taus else 0
        state, _ = rule.accumulate(state, Update(report, np.array(vector, np.float32)), Arrival(tau))
    found: list[float] = published(rule.commit(state)).tolist()
    return found


def test_median() -> None:
    # first coordinate 1 2 100: 2; second -9 4 5: 4; eta .5
    rule = rule_of(rule="median", server_learning_rate=0.5)
    assert version(rule, [10, 10], [1, 5], [2, -9], [100, 4]) == [11.0, 12.0]
    # an even number: 1 2 3 100: 2.5; -9 0 4 5: 2
    assert version(rule, [10, 10], [1, 5], [2, -9], [100, 4], [3, 0]) == [11.25, 11.0]


def test_median_of_discounted_updates() -> None:
    # s(1) = (1 + 1)^-1 = 1/2: 8 counts as 4, so the median of 3 4 5 is 4
    rule = rule_of(rule="median", staleness={"kind": "polynomial", "a": 1.0})
    assert version(rule, [0], [3], [8], [5], taus=(0, 1, 0)) == [4.0]


def test_trimmed_mean() -> None:
    # ceil(.2 x 5) = 1 at each end: 1 2 6 of -70 1 2 6 900, mean 3; the other coordinate 0 0 3 of -5 0 0 3 4, mean 1
    rule = rule_of(rule="trimmed-mean", trim=0.2)
    assert version(rule, [1, 1], [1, 0], [2, 3], [6, 4], [-70, -5], [900, 0]) == [4.0, 2.0]
    # ceil(.4 x 4) = 2 would leave nothing: 1 is cut, and the mean of 2 and 4 is left
    assert version(rule_of(rule="trimmed-mean", trim=0.4), [0], [1], [4], [2], [900]) == [3.0]


def test_norm_bound() -> None:
    # (3, 4) of norm 5 is shortened to (.6, .8); (0, .5) stays: mean (.3, .65)
    rule = rule_of(rule="norm-bound", bound=1.0)
    np.testing.assert_allclose(version(rule, [1, 1], [3, 4], [0, 0.5]), [1.3, 1.65], rtol=1e-7)


def test_krum() -> None:
    # n = 5, f = 1: 5 - 1 - 2 = 2 nearest. 0: 1 + 9; 1: 1 + 4; 3: 1 + 4; 50: 46^2 + 47^2; 4: 1 + 9. 1 came before 3
    updates = [[0.0], [1.0], [3.0], [50.0], [4.0]]
    scores = krum_scores(squared_distances([np.array(u, np.float32) for u in updates], [1.0] * 5), 1)
    assert scores.tolist() == [10.0, 5.0, 5.0, 4325.0, 10.0]
    assert version(rule_of(rule="krum"), [10], *updates) == [11.0]
    assert version(rule_of(rule="krum", server_learning_rate=2.0), [10], *reversed(updates)) == [16.0]


def test_multi_krum() -> None:
    # the two best: 1 and 3; the n - f = 4 best: 0 1 3 4
    updates = [[0.0], [1.0], [3.0], [50.0], [5.0]]
    assert version(rule_of(rule="multi-krum", keep=2), [10], *updates) == [12.0]
    assert version(rule_of(rule="multi-krum"), [10], *updates) == [12.25]


def test_too_few_updates_for_krum_leave_the_model_alone() -> None:
    assert version(rule_of(rule="krum", attackers=1), [10], [1], [2], [3], [4]) == [10.0]


@pytest.mark.parametrize("plain", RULES, ids=str)
def test_an_update_too_stale_is_left_out(plain: dict[str, Any]) -> None:
    rule = rule_of(**plain, max_staleness=3)
    updates = [[float(k)] for k in range(7)]
    assert version(rule, [0], *updates, [500.0], taus=(0,) * 7 + (4,)) == version(rule, [0], *updates)


@pytest.mark.parametrize("plain", RULES, ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), n_updates=st.integers(1, 12))
def test_zero_updates_leave_the_model_alone(plain: dict[str, Any], seed: int, n_updates: int) -> None:
    base = np.random.default_rng(seed).standard_normal(9).astype(np.float32).tolist()
    assert version(rule_of(**plain), base, *[[0.0] * 9] * n_updates) == base


@pytest.mark.parametrize("plain", WHOLE, ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_minority_never_moves_the_model_out_of_the_honest_range(
    plain: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """Seven honest updates within [-1, 1] and two from far away: what comes of them stays within [-1, 1]."""
    rng = np.random.default_rng(seed)
    honest = rng.uniform(-1.0, 1.0, (7, 20)).tolist()
    bad = [(rng.standard_normal(20) * 10.0 ** data.draw(st.integers(3, 30))).tolist() for _ in range(2)]
    mixed = data.draw(st.permutations([*honest, *bad]))
    assert max(abs(x) for x in version(rule_of(**plain), [0.0] * 20, *mixed)) <= 1.0


@pytest.mark.parametrize("plain", WHOLE, ids=str)
@SETTINGS
@given(seed=st.integers(0, 10**6), data=st.data())
def test_the_order_of_arrivals_does_not_matter(plain: dict[str, Any], seed: int, data: st.DataObject) -> None:
    updates = np.random.default_rng(seed).standard_normal((9, 8193)).astype(np.float32)
    order = data.draw(st.permutations(range(9)))
    one, other = rule_of(**plain), rule_of(**plain)
    first = version(one, [0.0] * 8193, *updates.tolist())
    np.testing.assert_array_max_ulp(
        np.array(first, np.float32), np.array(version(other, [0.0] * 8193, *updates[order].tolist()), np.float32), 1
    )


@pytest.mark.parametrize(
    ("rule", "schedule", "words"),
    [
        ({"rule": "median"}, {"policy": "async", "concurrency": 3}, "compares the updates of a version"),
        ({"rule": "median"}, {"policy": "sync", "cohort": 2}, "needs 3 updates a version"),
        ({"rule": "trimmed-mean"}, {"policy": "buffered", "concurrency": 3, "buffer": 2}, "needs 3 updates"),
        ({"rule": "krum"}, {"policy": "k-async", "concurrency": 4, "k": 4}, "needs 5 updates a version"),
        ({"rule": "krum", "attackers": 3}, {"policy": "sync", "cohort": 8}, "needs 9 updates a version"),
        ({"rule": "multi-krum", "keep": 6}, {"policy": "sync", "cohort": 5}, "aggregation.keep is 6, above the 5"),
    ],
)
def test_what_cannot_tell_anything_is_refused(
    rule: dict[str, Any], schedule: dict[str, Any], words: str, make_config: Callable[..., Any]
) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(aggregation=rule, schedule=schedule)
