"""Rules that weigh an update by where it points or lies: PORT, WKAFL, KAFL."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.rule import Arrival, BaseRule, Facts, Keeps
from fedsim.aggregation.vectors import add, cosine, dot, norm, relation
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import KaflRule, PortRule, WkaflRule
from fedsim.types import Float32, Float64, Update


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
class KaflState(ServerState):
    """`counts` are the updates that each client contributed so far, `models` those of the version being made.

    The models are kept by their order, as are their `clients`, `samples` and `deviations`.
    """

    counts: dict[int, int] = field(default_factory=dict)
    models: dict[int, Float32] = field(default_factory=dict)
    clients: dict[int, int] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    deviations: dict[int, float] = field(default_factory=dict)


class Kafl(BaseRule):
    """w <- (1 - eta) w + eta sum(p_k w_k) / sum(p_k), with p_k = n_k exp(-beta |dev_k| / q_k).

        dev_k = <w, w_k> / ||w_k||^2 - 1 ; q_k = c_mirror(k) / sum c, over the K clients of the version

    c_k counts k's updates, this one included, and the mirror of the i-th most frequent client is the i-th least
    frequent: who comes seldom has the large share q, and is forgiven more. Equal counts share the first place.
    Reference: Wu and Wang, "KAFL: achieving high training efficiency for fast-K asynchronous federated learning", ICDCS
    2022. K-FedAsync is policy `k-async`, Mstep-FedAsync policy `buffered`.
    Reconstructed: the paper was not at hand. The form of p_k is common to three published ports that have nothing else
    in common (SAFL_GAP, a fork of easyFL, one of FederatedScope). They disagree on beta (.5, .5 and 2; .5 here), on
    whose length dev_k is taken by (two: the client's, as here), on whose counts are ranked (two: those of the version's
    clients, as here), and on the last step: models alone (eta 1, as here), models with eta = .72, or differences.
    Deviations: a client that is twice in a version enters twice with its one count; dev_k is 0 for a model of zeros.
    """

    name = "kafl"
    payload: Literal["delta", "model"] = "model"
    scalar_names: tuple[str, ...] = ("deviation",)
    keeps = Keeps(per_update=1)

    def __init__(self, config: KaflRule) -> None:
        self._config = config

    def init(self, weights_P: Float32) -> KaflState:
        return KaflState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, KaflState)
        if is_too_stale(arrival.staleness, self._config.max_staleness):
            return state, Diagnostics(0.0, (math.nan,))
        model_P, client, number = update.vector_P, arrival.task.client, state.n_accumulated
        square = dot(model_P, model_P)
        deviation = dot(state.weights_P, model_P) / square - 1.0 if square > 0.0 else 0.0
        state.models[number], state.clients[number] = model_P.copy(), client
        state.samples[number], state.deviations[number] = update.report.n_samples, deviation
        state.counts[client] = state.counts.get(client, 0) + 1
        state.n_accumulated += 1
        return state, Diagnostics(float(update.report.n_samples), (deviation,))

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, KaflState)
        weights = self._weights(state)
        if any(weights):
            state.weights_P *= 1.0 - self._config.server_learning_rate
            for model_P, weight in zip(state.models.values(), weights, strict=True):
                add(state.weights_P, model_P, self._config.server_learning_rate * weight / math.fsum(weights))
        state.models, state.clients, state.samples, state.deviations = {}, {}, {}, {}
        state.n_accumulated = 0
        return state

    def _weights(self, state: KaflState) -> list[float]:
        """p_k of the version's updates, all by one factor: the largest exponent is taken for 0, so that one is left."""
        counts = [state.counts[client] for client in state.clients.values()]
        ascending = sorted(counts)
        shares = [ascending[-1 - bisect_left(ascending, count)] / sum(counts) for count in counts]
        powers = [-self._config.beta * abs(d) / q for d, q in zip(state.deviations.values(), shares, strict=True)]
        return [n * math.exp(power - max(powers)) for n, power in zip(state.samples.values(), powers, strict=True)]
