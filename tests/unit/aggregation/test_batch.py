"""Updates that are handed to a rule together give the bits that they give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim.aggregation import Arrival, Rule, build
from fedsim.aggregation.batch import Batch, one_by_one
from fedsim.config import AggregationConfig
from fedsim.types import Float32, TaskReport, Update

N_PARAMETERS = 2**18 + 1000  # more than a block of the compiled pass
POLYNOMIAL = {"kind": "polynomial", "a": 0.5}
RULES: list[dict[str, Any]] = [
    {"rule": "fedavg"},
    {"rule": "fedavg", "weighting": "uniform", "server_learning_rate": 0.7},
    {"rule": "fedbuff", "weighting": "samples", "staleness": POLYNOMIAL},
    {"rule": "fedasync", "alpha": 0.3, "staleness": POLYNOMIAL},
    {"rule": "fedyogi"},
    {"rule": "pisces"},
    {"rule": "fedavg", "max_staleness": 2},
    {"rule": "fedasync", "max_staleness": 2},
]
MAKING: dict[str, list[bool]] = {
    "each": [True] * 12,
    "every third": [False, False, True] * 4,
    "beginning and ending inside": [True, False, False, False, True, True, False, False, True, False, False, False],
}


class Bytes:
    """Updates of one batch, as the engine keeps them: rows of one array."""

    def __init__(self, draws: np.random.Generator, makes_version: list[bool], version: int) -> None:
        n = len(makes_version)
        self.rows_RP: Float32 = draws.normal(size=(n, N_PARAMETERS)).astype(np.float32)
        self.n_samples = draws.integers(1, 9, n)
        self.staleness = draws.integers(0, 5, n)
        self.makes_version = np.array(makes_version)
        self.version = version

    def batch(self) -> Batch:
        addresses = self.rows_RP.ctypes.data + self.rows_RP.strides[0] * np.arange(len(self.rows_RP))
        return Batch(self.n_samples, self.staleness, self.makes_version, addresses, self.one)

    def one(self, i: int) -> tuple[Update, Arrival]:
        report = TaskReport(i, 1, int(self.n_samples[i]), 3, 1.0, 0.5, 0.1, 0.0)
        met = self.version + int(self.makes_version[:i].sum())
        return Update(report, self.rows_RP[i]), Arrival(int(self.staleness[i]), version=met, arrival_s=1.0 + i)


def rule_of(plain: dict[str, Any]) -> Rule:
    rule = build(TypeAdapter(AggregationConfig).validate_python(plain))
    rule.hasten()
    return rule


@pytest.mark.parametrize("makes_version", MAKING.values(), ids=MAKING)
@pytest.mark.parametrize("plain", RULES, ids=str)
def test_together_and_one_by_one(plain: dict[str, Any], makes_version: list[bool]) -> None:
    draws = np.random.default_rng(3)
    together, alone = rule_of(plain), rule_of(plain)
    first_P = draws.normal(size=N_PARAMETERS).astype(np.float32)
    state, other = together.init(first_P), alone.init(first_P)
    for version in (0, 9):  # the second batch begins where the first has left the sum
        updates = Bytes(draws, makes_version, version)
        state, consumed = together.consume(state, updates.batch())
        other, expected = one_by_one(alone, other, updates.batch())
        assert list(consumed.weights) == list(expected.weights)
        assert [tuple(some) for some in consumed.scalars] == [tuple(some) for some in expected.scalars]
        assert len(consumed.versions) == sum(makes_version)
        assert all(map(np.array_equal, consumed.versions, expected.versions))
        assert np.array_equal(state.weights_P, other.weights_P)
        assert (state.n_accumulated, state.weight_sum) == (other.n_accumulated, other.weight_sum)
    if state.n_accumulated:
        assert np.array_equal(together.publish(together.commit(state)), alone.publish(alone.commit(other)))


def test_the_compiled_pass_is_what_is_tested() -> None:
    """Had the rules gone the long way above, nothing would have been compared."""
    updates = Bytes(np.random.default_rng(4), [True, False, True], 0)
    batch = updates.batch()

    def refuse(i: int) -> tuple[Update, Arrival]:
        raise AssertionError("one by one")

    for plain in RULES[:4]:
        rule = rule_of(plain)
        closed = Batch(batch.n_samples, batch.staleness, batch.makes_version, batch.addresses, refuse)
        rule.consume(rule.init(np.zeros(N_PARAMETERS, np.float32)), closed)
