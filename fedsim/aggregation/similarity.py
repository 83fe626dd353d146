"""Rules that weigh an update by the direction that it points in: PORT, WKAFL, KAFL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.rule import Arrival, BaseRule, Facts, Keeps
from fedsim.aggregation.vectors import add, cosine, norm, relation
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import KaflRule, PortRule, WkaflRule
from fedsim.types import Float32, Float64, TaskReport, Update


class Port(MeanRule):
    """w <- w + eta sum(p_k D_k) / sum(p_k), p_k = n_k [l_s (cos(w_t - w_(t-tau), D_k) + 1) / 2 + l_t S / (tau + S)].

    cos is 1 at tau = 0, 0 for an update of zeros.
    Reference: Su and Li, "How asynchronous can federated learning be?" (PORT), IEEE IWQoS 2022, the aggregation
    weights; S = 10, l_s = 1, l_t = 3. Its asking for updates of clients staler than S is policy `buffered` with
    `max_lag`.
    Deviations: a client asked for its update cannot cut its task short, since tasks are fixed at dispatch: the version
    waits for it. eta is ours.
    """

    name = "port"
    scalar_names: tuple[str, ...] = ("cosine",)
    needs_base = True

    def __init__(self, config: PortRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._config = config

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0, (math.nan,))
        config, tau = self._config, arrival.staleness
        cos = 1.0
        if tau > 0:
            assert arrival.base_P is not None
            cos = relation(state.weights_P, arrival.base_P, update.vector_P).cosine
        fresh = config.staleness_weight * config.staleness_bound / (tau + config.staleness_bound)
        weight = update.report.n_samples * (config.similarity_weight * (cos + 1.0) / 2.0 + fresh)
        if weight > 0.0:
            self._kernels.add(state, update.vector_P, weight)
            state.weight_sum += weight
            state.n_accumulated += 1
        return state, Diagnostics(weight, (cos,))

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return math.nan


@dataclass(slots=True)
class BufferState(ServerState):
    """`buffer` holds the updates of the version being made, by their order, `taus` their staleness."""

    buffer: dict[int, Float32] = field(default_factory=dict)
    taus: dict[int, int] = field(default_factory=dict)
    previous_P: Float64 | None = None
    version: int = 0


class Wkafl(BaseRule):
    """Two-stage weighted K-async: keep what points along the estimate, weigh it by a softmax of its cosine.

        g_i = clip(D_i + .1 g~_prev, 100) ; g~ = sum (e/2)^-tau_i g_i / sum (e/2)^-tau_i   (tau from 1)
        of those with cos(g_i, g~) > .3: p = softmax(10 cos), none left: g~ itself
        in the second stage each kept g_i is clipped to 10 ||g~|| ; w <- w + eta / (1 + .1 min tau) sum p_i g_i

    Reference: Zhou et al., "Towards efficient and stable K-asynchronous federated learning with unbounded stale
    gradients on non-IID data" (WKAFL), IEEE TPDS 2022 (arXiv:2203.01214), algorithm 1.
    Deviations: D_i, what local training changed, in place of a gradient; so `clip_norm` bounds differences, and eta
    multiplies what already carries the client's learning rate. The second stage begins at version `second_stage_from`,
    or at half of stop.versions. Until the second version g~_prev is 0.
    """

    name = "wkafl"
    keeps = Keeps(float64=3, per_update=1)

    def __init__(self, config: WkaflRule, facts: Facts) -> None:
        self._config = config
        half = facts.planned_versions // 2 if facts.planned_versions else math.inf
        self._second_from = half if config.second_stage_from is None else config.second_stage_from

    def init(self, weights_P: Float32) -> BufferState:
        return BufferState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, BufferState)
        if is_too_stale(arrival.staleness, self._config.max_staleness):
            return state, Diagnostics(0.0)
        state.buffer[state.n_accumulated] = update.vector_P.copy()
        state.taus[state.n_accumulated] = arrival.staleness + 1
        state.version = arrival.version
        state.n_accumulated += 1
        return state, Diagnostics((math.e / 2.0) ** -(arrival.staleness + 1))

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, BufferState)
        if not state.n_accumulated:
            return state
        taus = list(state.taus.values())
        gradients = [self._clipped(self._with_momentum(row, state.previous_P)) for row in state.buffer.values()]
        decays = [(math.e / 2.0) ** -tau for tau in taus]
        estimate_P = np.zeros(state.weights_P.size)
        for gradient_P, decay in zip(gradients, decays, strict=True):
            add(estimate_P, gradient_P, decay / math.fsum(decays))
        step = self._config.server_learning_rate / (1.0 + self._config.rate_decay * min(taus))
        add(state.weights_P, self._selected(gradients, estimate_P, state.version >= self._second_from), step)
        state.previous_P, state.buffer, state.taus, state.n_accumulated = estimate_P, {}, {}, 0
        return state

    def _with_momentum(self, row_P: Float32, previous_P: Float64 | None) -> Float64:
        gradient_P = row_P.astype(np.float64)
        if previous_P is not None:
            add(gradient_P, previous_P, self._config.momentum)
        return gradient_P

    def _clipped(self, gradient_P: Float64, bound: float | None = None) -> Float64:
        bound, length = self._config.clip_norm if bound is None else bound, norm(gradient_P)
        return gradient_P * (bound / length) if length > bound else gradient_P

    def _selected(self, gradients: list[Float64], estimate_P: Float64, is_second: bool) -> Float64:
        """sum p_i g_i over those that agree with the estimate; the estimate if none does."""
        config = self._config
        cosines = [cosine(gradient_P, estimate_P) for gradient_P in gradients]
        kept = [(g, c) for g, c in zip(gradients, cosines, strict=True) if c > config.threshold]
        if not kept:
            return estimate_P
        powers = [math.exp(config.sharpness * (c - 1.0)) for _, c in kept]  # less 1: nothing overflows
        bound = config.second_clip * norm(estimate_P)
        total_P = np.zeros(estimate_P.size)
        for (gradient_P, _), power in zip(kept, powers, strict=True):
            term_P = self._clipped(gradient_P, bound) if is_second else gradient_P
            add(total_P, term_P, power / math.fsum(powers))
        return total_P


@dataclass(slots=True)
class DeviationState(ServerState):
    """`counts` are the updates that each client contributed so far; the others make the mean deviation."""

    counts: dict[int, int] = field(default_factory=dict)
    n_deviations: int = 0
    deviation_sum: float = 0.0


class Kafl(MeanRule):
    """w <- w + eta sum(p_k D_k) / sum(p_k), with p_k = n_k exp(-beta dev_k / m) / (1 + c_k).

    c_k counts the updates taken from client k before, so that frequent clients weigh less; dev_k = ||w_k - w_t|| is how
    far the client's model lies from the server's, m the mean of all dev so far, this one included.
    Reference: Wu and Wang, "KAFL: achieving high training efficiency for fast-K asynchronous federated learning", ICDCS
    2022. Reconstructed: the paper weighs by a matrix of weight deviations and by each client's contribution frequency;
    its formula was not at hand, so this is the simplest law with these two ingredients, and not the authors'.
    K-FedAsync is policy `k-async`, Mstep-FedAsync policy `buffered`.
    """

    name = "kafl"
    scalar_names: tuple[str, ...] = ("deviation",)
    needs_base = True

    def __init__(self, config: KaflRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._beta = config.beta

    def init(self, weights_P: Float32) -> DeviationState:
        return DeviationState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, DeviationState) and arrival.base_P is not None
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0, (math.nan,))
        deviation = relation(state.weights_P, arrival.base_P, update.vector_P).distance
        state.n_deviations += 1
        state.deviation_sum += deviation
        relative = deviation * state.n_deviations / state.deviation_sum if state.deviation_sum > 0.0 else 0.0
        client = arrival.task.client
        seen = state.counts.get(client, 0)
        state.counts[client] = seen + 1
        weight = self.share(update.report) * math.exp(-self._beta * relative) / (1.0 + seen)
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += weight
        state.n_accumulated += 1
        return state, Diagnostics(weight, (deviation,))

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return math.nan

    def share(self, report: TaskReport) -> float:
        return float(report.n_samples)
