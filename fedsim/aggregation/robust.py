"""Rules that bear updates of attackers: median, trimmed mean, norm bounding, Krum and multi-Krum.

All but norm bounding compare the updates of a version with each other, so rank zero keeps every one of them until the
version is made. What they work with is s(tau_k) D_k; s is 1 unless `staleness` is set, so a version of one base is the
papers'. The functions that merge are pure; they see a block of coordinates, float64. Shapes: `K` updates of a version,
`B` coordinates of a block, `P` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.rule import Arrival, BaseRule, Keeps
from fedsim.aggregation.vectors import add, blocks, norm
from fedsim.aggregation.weighting import is_too_stale, sample_weight, staleness_function
from fedsim.config import KrumRule, MedianRule, MultiKrumRule, NormBoundRule, TrimmedMeanRule
from fedsim.types import Float32, Float64, TaskReport, Update


def median(values_KB: Float64) -> Float64:
    """The median of each coordinate, (B,); of an even number of values the mean of the two in the middle.

    >>> median(np.array([[1.0, 5.0], [2.0, -9.0], [100.0, 4.0]])).tolist()
    [2.0, 4.0]
    """
    ordered_KB, K = np.sort(values_KB, axis=0), len(values_KB)
    middle_B: Float64 = ordered_KB[K // 2]
    return middle_B if K % 2 else (ordered_KB[K // 2 - 1] + middle_B) / 2.0


def trimmed_mean(values_KB: Float64, n_cut: int) -> Float64:
    """The mean of each coordinate without its `n_cut` largest and its `n_cut` smallest values, (B,).

    >>> trimmed_mean(np.array([[1.0], [2.0], [6.0], [-70.0], [900.0]]), 1).tolist()
    [3.0]
    """
    mean_B: Float64 = np.sort(values_KB, axis=0)[n_cut : len(values_KB) - n_cut].mean(axis=0)
    return mean_B


def krum_scores(squared_KK: Float64, n_attackers: int) -> Float64:
    """Krum's score of each update, (K,): the sum of the squared distances to its K - f - 2 nearest other updates.

    >>> krum_scores((np.array([0.0, 1.0, 3.0, 50.0, 4.0])[:, None] - [0.0, 1.0, 3.0, 50.0, 4.0]) ** 2, 1).tolist()
    [10.0, 5.0, 5.0, 4325.0, 10.0]
    """
    K = len(squared_KK)
    others = np.sort(squared_KK + np.diag(np.full(K, np.inf)), axis=1)
    scores_K: Float64 = others[:, : K - n_attackers - 2].sum(axis=1)
    return scores_K


def squared_distances(rows: Sequence[Float32], scales: Sequence[float]) -> Float64:
    """The squared Euclidean distances between scaled updates, (K, K): differences, not products, so none cancels."""
    K = len(rows)
    squared_KK = np.zeros((K, K))
    for part in blocks(rows[0].size):
        values_KB = _block(rows, scales, part)
        for i in range(K - 1):
            squared_KK[i, i + 1 :] += np.square(values_KB[i + 1 :] - values_KB[i]).sum(axis=1)
    return squared_KK + squared_KK.T


def _block(rows: Sequence[Float32], scales: Sequence[float], part: slice) -> Float64:
    """A block of the scaled updates, (K, B)."""
    return np.stack(
        [np.multiply(row_P[part], scale, dtype=np.float64) for row_P, scale in zip(rows, scales, strict=True)]
    )


@dataclass(slots=True)
class RowsState(ServerState):
    """`rows` are the updates of the version being made, in their order, `scales` what each is multiplied by."""

    rows: dict[int, Float32] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)


class _WholeBuffer(BaseRule):
    """Keeps the updates of a version, and makes it of them all at once (`_move`)."""

    keeps = Keeps(per_update=1)

    def __init__(self, config: MedianRule | TrimmedMeanRule | KrumRule | MultiKrumRule) -> None:
        self._server_learning_rate = config.server_learning_rate
        self._max_staleness = config.max_staleness
        self._staleness = staleness_function(config.staleness)

    def init(self, weights_P: Float32) -> RowsState:
        return RowsState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, RowsState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        scale = self._staleness(arrival.staleness)
        state.rows[state.n_accumulated] = update.vector_P.copy()
        state.scales[state.n_accumulated] = scale
        state.n_accumulated += 1
        return state, Diagnostics(scale)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, RowsState)
        if state.n_accumulated:
            self._move(state.weights_P, list(state.rows.values()), list(state.scales.values()))
            state.rows, state.scales, state.n_accumulated = {}, {}, 0
        return state

    def _move(self, weights_P: Float64, rows: list[Float32], scales: list[float]) -> None:
        """Changes the weights in place."""
        raise NotImplementedError


class _Coordinatewise(_WholeBuffer):
    """Merges coordinate by coordinate."""

    def _merged(self, values_KB: Float64) -> Float64:
        raise NotImplementedError

    def _move(self, weights_P: Float64, rows: list[Float32], scales: list[float]) -> None:
        for part in blocks(weights_P.size):
            weights_P[part] += self._server_learning_rate * self._merged(_block(rows, scales, part))


class Median(_Coordinatewise):
    """w <- w + eta med_k(s(tau_k) D_k), the median of each coordinate.

    Reference: Yin, Chen, Ramchandran and Bartlett, "Byzantine-robust distributed learning: towards optimal statistical
    rates", ICML 2018 (arXiv:1803.01498), algorithm 1, option I (definition 1).
    Deviations: differences of several local steps in place of gradients; under an asynchronous schedule they have
    several bases, which the paper does not have, and may be discounted by staleness.
    """

    name = "median"

    def _merged(self, values_KB: Float64) -> Float64:
        return median(values_KB)


class TrimmedMean(_Coordinatewise):
    """w <- w + eta mean of the s(tau_k) D_k, without the largest and the smallest ceil(beta K) of each coordinate.

    Reference: Yin et al., ICML 2018 (arXiv:1803.01498), algorithm 1, option II (definition 2); beta is `trim`.
    Deviations: as for `Median`; beta K is rounded up, and less is cut where nothing would be left.
    """

    name = "trimmed-mean"

    def __init__(self, config: TrimmedMeanRule) -> None:
        super().__init__(config)
        self._trim = config.trim

    def _merged(self, values_KB: Float64) -> Float64:
        K = len(values_KB)
        n_cut = math.ceil(round(self._trim * K, 9))
        return trimmed_mean(values_KB, min(n_cut, (K - 1) // 2))


class Krum(_WholeBuffer):
    """w <- w + eta s(tau_i) D_i with i the lowest score; multi-Krum: the mean of the m updates of lowest scores.

    The score of an update is the sum of the squared distances to its n - f - 2 nearest others, of n in all.
    Reference: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine tolerant
    gradient descent", NeurIPS 2017, section 4 (Krum) and section 5 (multi-Krum); f is `attackers`, m is `keep`.
    Deviations: differences of several local steps in place of gradients, with several bases under an asynchronous
    schedule; m is n - f by default, the most updates that can all be honest ones; of equal scores the first to arrive
    counts as lower. A version of fewer than 2 f + 3 updates (a round cut short, a window) could be decided by
    attackers: the model stays as it is.
    """

    def __init__(self, config: KrumRule | MultiKrumRule) -> None:
        super().__init__(config)
        self.name: str = config.rule
        self._config = config

    def _move(self, weights_P: Float64, rows: list[Float32], scales: list[float]) -> None:
        n, n_attackers = len(rows), self._config.attackers
        if n < self._config.least_updates:
            return
        scores_K = krum_scores(squared_distances(rows, scales), n_attackers)
        best = np.argsort(scores_K, kind="stable")[: self._n_kept(n)].tolist()
        for i in sorted(best):
            add(weights_P, rows[i], self._server_learning_rate * scales[i] / len(best))

    def _n_kept(self, n: int) -> int:
        if isinstance(self._config, KrumRule):
            return 1
        return min(self._config.keep or n - self._config.attackers, n)


class NormBound(MeanRule):
    """w <- w + eta sum(s(tau_k) p_k c_k D_k) / sum(p_k), c_k = min(1, M / ||D_k||), M the bound.

    Reference: Sun, Kairouz, Suresh and McMahan, "Can you really backdoor federated learning?", 2019 (arXiv:1911.07963),
    section 4, norm thresholding of updates.
    Deviations: staleness, and weighting by samples if asked for; no noise is added. The norm is taken at the server of
    what arrived, whatever the client said of it. Each update is merged as it comes: nothing is kept.
    """

    name = "norm-bound"
    scalar_names: tuple[str, ...] = ("shortened",)

    def __init__(self, config: NormBoundRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._bound = config.bound
        self._weighting = config.weighting
        self._staleness = staleness_function(config.staleness)

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._weighting, report)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0, (math.nan,))
        length = norm(update.vector_P)
        factor = self._bound / length if length > self._bound else 1.0
        share = self.share(update.report)
        weight = share * self._staleness(arrival.staleness) * factor
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(weight, (factor,))

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return math.nan
