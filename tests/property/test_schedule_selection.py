"""Choices in law. Every sample here is drawn at a fixed seed, so a test that passes once passes always.

Chi-square tests reject below p = .001; where single probabilities are compared, within four standard errors.
"""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from fedsim.schedule.selection import AlwaysThere, Domain, Selection
from fedsim.types import Float64, Int64

LEAST_P = 1e-3


class Staying:
    """Clients stay for `remaining[client]` seconds; 0: absent. `n_bulk` counts questions about many at once."""

    always_available = False

    def __init__(self, remaining: Float64) -> None:
        self._remaining = remaining
        self.n_bulk = 0

    def is_available(self, client: int, time_s: float) -> bool:
        return bool(self._remaining[client] > 0.0)

    def available(self, clients: Int64, time_s: float) -> NDArray[np.bool_]:
        self.n_bulk += 1
        return np.asarray(self._remaining[clients] > 0.0)

    def remaining_s(self, clients: Int64, time_s: float) -> Float64:
        return np.asarray(self._remaining[clients])

    def next_available_s(self, clients: Int64, time_s: float) -> Float64:
        raise AssertionError("nobody is waited for here")


def with_busy(n: int, busy: Int64) -> Domain:
    domain = Domain(n)
    for position in busy.tolist():
        domain.take(position)
    return domain


def counts(selection: Selection, domain: Domain, n_tasks: int) -> Int64:
    """How often each position is chosen, by tasks 0 to n_tasks - 1."""
    chosen = [selection.choose(domain, task, 0.0) for task in range(n_tasks)]
    assert None not in chosen
    return np.bincount(np.array(chosen, dtype=np.int64), minlength=domain.size)


def assert_in_law(observed: Int64, weights: Float64) -> None:
    """Chi-square against the weights; what has weight 0 must not occur."""
    assert observed[weights == 0].sum() == 0
    possible = weights > 0
    expected = weights[possible] / weights.sum() * observed.sum()
    assert expected.min() > 10.0
    assert chisquare(observed[possible], expected).pvalue > LEAST_P


# ------------------------------------------------------------------------------------------- the k-th idle


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)), st.integers(0, n - 1))))
def test_kth_idle_is_the_naive_one(drawn: tuple[int, list[int], int]) -> None:
    n, order, n_busy = drawn
    domain = Domain(n)
    for position in order[:n_busy]:
        domain.take(position)
    idle = [position for position in range(n) if position not in order[:n_busy]]
    assert [domain.kth_idle(k) for k in range(domain.n_idle)] == idle == domain.idle().tolist()
    for position in order[: n_busy // 2]:
        domain.release(position)
        idle.append(position)
    assert [domain.kth_idle(k) for k in range(domain.n_idle)] == sorted(idle)


# -------------------------------------------------------------------------------------------------- uniform


@pytest.mark.parametrize("n", [25, 5000])
def test_uniform_where_all_are_there(n: int) -> None:
    busy = np.arange(0, n, 3)
    selection = Selection("uniform", 5, AlwaysThere(), None)
    weights = np.ones(n)
    weights[busy] = 0.0
    observed = counts(selection, with_busy(n, busy), 20_000)
    if n > 25:  # by hundreds
        assert observed[weights == 0].sum() == 0
        observed, weights = observed.reshape(50, 100).sum(axis=1), weights.reshape(50, 100).sum(axis=1)
    assert_in_law(observed, weights)


def test_uniform_by_enumeration() -> None:
    remaining = np.where(np.arange(30) % 2 == 0, 1.0, 0.0)
    weights = remaining.copy()
    busy = np.array([4, 5, 6])
    weights[busy] = 0.0
    devices = Staying(remaining)
    observed = counts(Selection("uniform", 6, devices, None), with_busy(30, busy), 5000)
    assert devices.n_bulk == 5000
    assert_in_law(observed, weights)


def test_uniform_by_rejection() -> None:
    n = 2000
    remaining = np.where(np.arange(n) % 4 == 0, 1.0, 0.0)
    busy = np.arange(0, 400, 8)
    weights = remaining.copy()
    weights[busy] = 0.0
    devices = Staying(remaining)
    observed = counts(Selection("uniform", 7, devices, None), with_busy(n, busy), 4000)
    assert devices.n_bulk == 0  # .775^64: never in 4,000
    assert_in_law(observed.reshape(20, 100).sum(axis=1), weights.reshape(20, 100).sum(axis=1))


def test_uniform_after_failed_draws() -> None:
    # 33 of 1,100 are there, the first 33: each draw fails with .97, all 64 in one choice of seven. What is chosen then
    # must not depend on the draws that failed. With a word that failed, client 0 could not be chosen: u < 1/33 is its
    # share of those there, and u < 33/1100 is where a draw does not fail. It has about 21 of the 710.
    n, n_there = 1100, 33
    devices = Staying(np.where(np.arange(n) < n_there, 1.0, 0.0))
    selection, domain = Selection("uniform", 8, devices, None), Domain(n)
    enumerated = np.zeros(n, dtype=np.int64)
    for task in range(5000):
        n_before = devices.n_bulk
        position = selection.choose(domain, task, 0.0)
        assert position is not None and position < n_there
        enumerated[position] += devices.n_bulk > n_before
    share = (1.0 - n_there / n) ** 64
    assert abs(enumerated.sum() / 5000 - share) < 4.0 * sqrt(share * (1.0 - share) / 5000)
    assert_in_law(enumerated, np.where(np.arange(n) < n_there, 1.0, 0.0))
    assert enumerated[0] > 5


# -------------------------------------------------------------------------------------------------- by size


def test_by_size_by_enumeration() -> None:
    sizes = np.arange(20)
    devices = Staying(np.where(np.arange(20) == 19, 0.0, 1.0))
    weights = sizes.astype(np.float64)
    weights[[19, 3]] = 0.0
    assert_in_law(counts(Selection("size", 9, devices, sizes), with_busy(20, np.array([3])), 10_000), weights)


@pytest.mark.parametrize("all_there", [True, False])
def test_by_size_by_rejection(all_there: bool) -> None:
    n = 1500
    sizes = np.array([1, 10, 100])[np.arange(n) % 3]
    remaining = np.where((np.arange(n) % 2 == 0) | all_there, 1.0, 0.0)
    busy = np.arange(2, 300, 3)  # of the largest
    weights: Float64 = sizes * remaining
    weights[busy] = 0.0
    selection = Selection("size", 10, AlwaysThere() if all_there else Staying(remaining), sizes)
    observed = counts(selection, with_busy(n, busy), 4000)
    assert observed[weights == 0].sum() == 0
    kinds = np.arange(n) % 3
    by_kind: Float64 = np.bincount(kinds, weights).astype(np.float64)
    assert_in_law(np.bincount(kinds, observed).astype(np.int64), by_kind)
    large = kinds == 2
    assert_in_law(observed[large].reshape(10, 50).sum(axis=1), weights[large].reshape(10, 50).sum(axis=1))


# ------------------------------------------------------------------------------------------ by availability


def test_by_availability_by_enumeration() -> None:
    remaining = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 10.0])
    weights = remaining.copy()
    weights[4] = 0.0
    selection = Selection("availability", 11, Staying(remaining), None)
    assert_in_law(counts(selection, with_busy(6, np.array([4])), 5000), weights)


def test_by_availability_from_a_pool() -> None:
    # 2,000 clients, a tenth stay 9 s, the others 1 s. Of 63 uniform candidates n stay long, n ~ Bin(63, .1), and the
    # choice falls on one of them with 9 n / (9 n + 63 - n).
    n, p, pool = 2000, 0.1, 63
    remaining = np.where(np.arange(n) % 10 == 0, 9.0, 1.0)
    share = sum(comb(pool, k) * p**k * (1 - p) ** (pool - k) * 9 * k / (9 * k + pool - k) for k in range(pool + 1))
    observed = counts(Selection("availability", 12, Staying(remaining), None), Domain(n), 4000)
    long = observed[::10].sum() / 4000
    assert abs(long - share) < 4.0 * sqrt(share * (1.0 - share) / 4000)
    assert abs(share - 0.5) < 0.02  # nearly as by weight: 200 x 9 of 200 x 9 + 1800
    assert_in_law(observed[::10].reshape(10, 20).sum(axis=1), np.ones(10))


def test_by_availability_where_the_pool_is_empty() -> None:
    # 3 of 2,000 there: a pool of 63 misses them nine times in ten; then all are looked at.
    remaining = np.zeros(2000)
    remaining[[0, 700, 1999]] = [1.0, 2.0, 3.0]
    observed = counts(Selection("availability", 13, Staying(remaining), None), Domain(2000), 2000)
    assert observed[remaining == 0].sum() == 0
    # Where the pool holds one of them alone, which is likely if it holds any, all three are equal.
    hit = 1.0 - (1.0 - 3 / 2000) ** 63
    expected = (1.0 - hit) * remaining / 6.0 + hit / 3.0 * (remaining > 0)
    assert_in_law(observed, expected)
