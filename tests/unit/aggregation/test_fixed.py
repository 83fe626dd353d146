"""Sums in fixed point: any grouping has the same bits, and they are what float64 gives but for rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.aggregation.fixed import FRACTION_BITS, MOST_WEIGHT, FixedSum, real, scale_of
from fedsim.types import Int64


def total_of(parts: list[list[tuple[int, float]]], rows: np.ndarray, scale: float) -> Int64:  # type: ignore[type-arg]
    """The sum of sums over parts, each of (row, weight)."""
    total = np.zeros(rows.shape[1], np.int64)
    for part in parts:
        own = FixedSum(rows.shape[1], scale)
        for row, weight in part:
            own.add(rows[row], weight)
        total += own.take()
        assert not own.take().any(), "what was taken is gone"
    return total


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_parameters=st.sampled_from([1, 7, 33_000]), data=st.data())
def test_any_grouping_and_order_has_the_same_bits(seed: int, n_parameters: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((12, n_parameters), dtype=np.float32)
    weights = rng.uniform(0, 300, 12).tolist()
    order = data.draw(st.permutations(range(12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 12), max_size=4)))
    terms = [(row, weights[row]) for row in order]
    parts = [terms[start:stop] for start, stop in zip([0, *cuts], [*cuts, 12], strict=True)]
    scale = scale_of(float(np.linalg.norm(rows, axis=1).max()))
    whole = total_of([[(row, weights[row]) for row in range(12)]], rows, scale)
    assert np.array_equal(total_of(parts, rows, scale), whole)
    exact = (np.array(weights)[:, None] * rows.astype(np.float64)).sum(axis=0)
    assert np.abs(real(whole, scale) - exact).max() <= 12 * 0.5 / scale + 1e-12 * np.abs(exact).max()


@given(bound=st.floats(1e-12, 1e12))
def test_the_scale_leaves_the_largest_weights_room(bound: float) -> None:
    scale = scale_of(bound)
    assert bound * scale <= 2.0**FRACTION_BITS <= 2 * bound * scale
    assert bound * scale * MOST_WEIGHT <= 2.0**62


def test_sums_at_the_bounds_are_exact() -> None:
    scale = scale_of(3.0)
    largest = FixedSum(2, scale)
    for weight in (MOST_WEIGHT / 2, MOST_WEIGHT / 2):
        largest.add(np.array([3.0, -3.0], np.float32), weight)
    assert real(largest.take(), scale).tolist() == [3.0 * MOST_WEIGHT, -3.0 * MOST_WEIGHT]


def test_a_bound_is_a_number_above_zero() -> None:
    assert scale_of(1.0) == pytest.approx(2.0**35)
