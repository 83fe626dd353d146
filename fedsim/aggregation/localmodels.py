"""Rules that average local models kept at rank zero: FedFa (a queue), ASO-Fed, SAFA (a client), FedAT (a tier)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Facts, Keeps
from fedsim.aggregation.vectors import add
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import AsoFedRule, FedAtRule, FedFaRule, SafaRule
from fedsim.types import Float32, Float64, Update


@dataclass(slots=True)
class ModelsState(ServerState):
    """`models` are the local models kept, by place in the queue or by client; `order` counts those that came in."""

    models: dict[int, Float32] = field(default_factory=dict)
    order: int = 0


def _empty(weights_P: Float32) -> ModelsState:
    return ModelsState(weights_P.astype(np.float64), np.zeros(weights_P.size))


class FedFa(BaseRule):
    """w = mean of the last K local models, at each arrival, once K have arrived.

    Reference: Xu et al., "FedFa: a fully asynchronous training paradigm for federated learning", IJCAI 2024
    (arXiv:2404.11015), algorithm 1. No weighting by samples or staleness.
    Deviations: until the queue is full the model stays as it is. `max_staleness` keeps a model out of the queue.
    """

    name = "fedfa"
    payload: Literal["delta", "model"] = "model"

    def __init__(self, config: FedFaRule) -> None:
        self._size = config.queue
        self._max_staleness = config.max_staleness
        self.keeps = Keeps(float32=config.queue)

    def init(self, weights_P: Float32) -> ModelsState:
        return _empty(weights_P)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, ModelsState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        place = state.order % self._size
        old = state.models.get(place)
        if old is not None:
            add(state.accumulator_P, old, -1.0)
        add(state.accumulator_P, update.vector_P)
        state.models[place] = update.vector_P.copy()
        state.order += 1
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, ModelsState)
        if state.n_accumulated and len(state.models) == self._size:
            np.multiply(state.accumulator_P, 1.0 / self._size, out=state.weights_P)
        state.n_accumulated = 0
        return state


class AsoFed(BaseRule):
    """w <- w + eta (n_k/n) (w_k - w_k,previous), at each arrival; n the samples of all, w_k,previous = w_0 at first.

    Reference: Chen et al., "Asynchronous online federated learning for edge devices with non-IID data", IEEE BigData
    2020 (arXiv:1911.02134), equation 4. Reconstructed: neither the paper's text nor its authors' code was at hand, and
    what the previous copy of a client is stays open. Here it is the local model that it sent last, so that for eta = 1
    the server's model is always w_0 + sum (n_k/n) (w_k - w_0) over the last local models. The two ports that were found
    (AFL-Lib, FedOpt) take the version that the client received: w <- w + (n_k/n) D_k.
    Deviations: samples do not grow while a run lasts; the feature attention of the first layer (equations 5 and 6) is
    left out; the client's own part (balanced gradients, decay, step scaled by the delay) is the objective `aso-fed`
    (`fedsim.training.clients.methods.BalancedGradients`). eta is ours.
    """

    name = "aso-fed"
    payload: Literal["delta", "model"] = "model"
    keeps = Keeps(float64=3, per_client=1)

    def __init__(self, config: AsoFedRule, facts: Facts) -> None:
        self._server_learning_rate = config.server_learning_rate
        self._max_staleness = config.max_staleness
        self._n_samples = facts.count_samples()

    def init(self, weights_P: Float32) -> ModelsState:
        state = _empty(weights_P)
        state.models[-1] = weights_P.copy()  # whoever never sent a model is taken to have sent this one
        return state

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, ModelsState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
        client, weight = arrival.task.client, update.report.n_samples / self._n_samples
        difference_P = np.subtract(update.vector_P, state.models.get(client, state.models[-1]), dtype=np.float64)
        add(state.accumulator_P, difference_P, weight)
        state.models[client] = update.vector_P.copy()
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            add(state.weights_P, state.accumulator_P, self._server_learning_rate)
            state.n_accumulated = 0
        return state


@dataclass(slots=True)
class CacheState(ServerState):
    """`models` are the cache, `sizes` the samples, `since` the versions that clients train from since they reported.

    `accumulator_P` is what changed in the sum over the cache since the last version, `later_P` what counts from the
    next version on. Key -1 stands for all clients that never reported: their model is w_0, until that is deprecated.
    """

    models: dict[int, Float32] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)
    later_P: Float64 | None = None
    next_version: int = 1


class Safa(BaseRule):
    """w = sum over all N clients of (n_k/n) cache_k, once a round; the cache holds what each client last gave.

    The first `quota` updates of a round are picked and enter the cache before the sum is taken; the others are
    undrafted and enter it afterwards (the bypass). A client more than the lag tolerance behind is deprecated: it
    starts anew from the current model, which also takes the place of its entry.
    Reference: Wu et al., "SAFA: a semi-asynchronous protocol for fast federated learning with low overhead", IEEE
    Transactions on Computers 2021 (arXiv:1910.01355), equations 6 to 8. Policy `safa` gives a round's updates in order,
    those picked first.
    Deviations: the rule finds out who is deprecated from what it is told, taking every client to be at work since its
    last update; lost updates and absent clients make it early by the time that they cost.
    """

    name = "safa"
    payload: Literal["delta", "model"] = "model"
    keeps = Keeps(float64=3, per_client=1)

    def __init__(self, config: SafaRule, facts: Facts) -> None:
        self._quota = facts.n_updates
        self._max_lag = facts.max_lag
        self._n_samples = facts.count_samples()

    def init(self, weights_P: Float32) -> CacheState:
        state = CacheState(weights_P.astype(np.float64), np.zeros(weights_P.size), later_P=np.zeros(weights_P.size))
        state.models[-1], state.sizes[-1], state.since[-1] = weights_P.copy(), self._n_samples, 0
        return state

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, CacheState) and state.later_P is not None
        client, size = arrival.task.client, update.report.n_samples
        state.n_accumulated += 1
        is_picked = state.n_accumulated <= self._quota
        old_P = state.models.get(client)
        if old_P is None:
            old_P = state.models[-1]
            state.sizes[-1] -= size
        difference_P = np.subtract(update.vector_P, old_P, dtype=np.float64)
        add(state.accumulator_P if is_picked else state.later_P, difference_P, size / self._n_samples)
        state.next_version = arrival.version + 1
        state.models[client], state.sizes[client] = update.vector_P.copy(), size
        state.since[client] = state.next_version
        return state, Diagnostics(size / self._n_samples if is_picked else 0.0)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, CacheState) and state.later_P is not None
        if not state.n_accumulated:
            return state
        add(state.weights_P, state.accumulator_P)
        state.accumulator_P, state.later_P = state.later_P, state.accumulator_P
        state.later_P.fill(0.0)
        state.n_accumulated = 0
        self._deprecate(state)
        return state

    def _deprecate(self, state: CacheState) -> None:
        """Puts the new version in the place of the entries of those too far behind; it counts from the next one on."""
        version_P = state.weights_P.astype(np.float32)
        for client in [c for c, since in state.since.items() if state.next_version - since > self._max_lag]:
            difference_P = np.subtract(version_P, state.models[client], dtype=np.float64)
            add(state.accumulator_P, difference_P, state.sizes[client] / self._n_samples)
            state.models[client], state.since[client] = version_P, state.next_version


@dataclass(slots=True)
class TiersState(ServerState):
    """`models` are the tiers' models, `rounds` the rounds that each ended; `tier` is that of what is accumulated."""

    models: dict[int, Float64] = field(default_factory=dict)
    rounds: dict[int, int] = field(default_factory=dict)
    tier: int = 0


class FedAt(BaseRule):
    """w = sum over tiers of (T_(M+1-m) / T) w_m, once every tier has reported; w_m is FedAvg inside tier m, 1 fastest.

    T_m counts the rounds that tier m has ended, T those of all: the slowest tier weighs by the rounds of the fastest.
    Reference: Chai et al., "FedAT: a high-performance and communication-efficient federated learning system with
    asynchronous tiers", SC 2021 (arXiv:2010.05958), equation 5 and algorithm 2.
    Deviations: no compression of messages. Until every tier has reported, the model stays as it is.
    """

    name = "fedat"
    payload: Literal["delta", "model"] = "model"

    def __init__(self, config: FedAtRule, facts: Facts) -> None:
        self._n_tiers = facts.n_tiers
        self._tier_of = facts.tier_of
        self.keeps = Keeps(float64=2 + facts.n_tiers)

    def init(self, weights_P: Float32) -> TiersState:
        return TiersState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, TiersState)
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
            state.weight_sum = 0.0
            state.tier = self._tier_of(arrival.task.client)
        weight = float(update.report.n_samples)
        add(state.accumulator_P, update.vector_P, weight)
        state.weight_sum += weight
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, TiersState)
        if not state.n_accumulated:
            return state
        state.models[state.tier] = state.accumulator_P * (1.0 / state.weight_sum)
        state.rounds[state.tier] = state.rounds.get(state.tier, 0) + 1
        state.n_accumulated = 0
        if len(state.models) == self._n_tiers:
            total = sum(state.rounds.values())
            state.weights_P.fill(0.0)
            for tier in range(self._n_tiers):
                add(state.weights_P, state.models[tier], state.rounds[self._n_tiers - 1 - tier] / total)
        return state
