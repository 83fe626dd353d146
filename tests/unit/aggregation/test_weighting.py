"""The three staleness functions by numbers worked out on paper."""

from __future__ import annotations

import pytest

from fedsim.aggregation.weighting import is_too_stale, sample_weight, staleness_function
from fedsim.config import ConstantStaleness, HingeStaleness, PolynomialStaleness, StalenessConfig
from fedsim.types import TaskReport

REPORT = TaskReport(0, 0, 40, 4, 1.0, 0.5, 0.1, 0.01)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ConstantStaleness(kind="constant"), {0: 1.0, 7: 1.0}),
        (PolynomialStaleness(kind="polynomial"), {0: 1.0, 3: 0.5, 8: 1 / 3, 99: 0.1}),
        (PolynomialStaleness(kind="polynomial", a=1.0), {0: 1.0, 1: 0.5, 3: 0.25}),
        (PolynomialStaleness(kind="polynomial", a=0.0), {0: 1.0, 50: 1.0}),
        (HingeStaleness(kind="hinge"), {0: 1.0, 4: 1.0, 5: 1 / 11, 6: 1 / 21, 14: 1 / 101}),
        (HingeStaleness(kind="hinge", a=0.5, b=1.5), {1: 1.0, 2: 0.8, 3: 1 / 1.75}),
    ],
)
def test_staleness(config: StalenessConfig, values: dict[int, float]) -> None:
    s = staleness_function(config)
    assert {tau: s(tau) for tau in values} == pytest.approx(values, rel=1e-15)


def test_sample_weight() -> None:
    assert sample_weight("samples", REPORT) == 40.0
    assert sample_weight("uniform", REPORT) == 1.0


def test_too_stale() -> None:
    assert [is_too_stale(tau, 2) for tau in (0, 2, 3)] == [False, False, True]
    assert not is_too_stale(10**9, None)
    assert is_too_stale(1, 0)
