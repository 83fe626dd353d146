"""Asynchronous mixing of local models."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.batch import Batch, Consumed
from fedsim.aggregation.rule import Arrival, BaseRule
from fedsim.aggregation.weighting import is_too_stale, staleness_function
from fedsim.columns import Remembered
from fedsim.config import FedAsyncRule
from fedsim.types import Float32, Update


class FedAsync(BaseRule):
    """w <- (1 - a) w + a w_k with a = alpha s(tau), for each arrival.

    Reference: Xie et al., "Asynchronous federated optimization", 2019 (arXiv:1903.03934), algorithm 1 and its
    adaptive mixing. The proximal term of the paper's clients is `training.objective: proximal` with mu = rho.
    Deviations: an update past `max_staleness` is left out, where the paper assumes that there is none. Several
    arrivals before one commit are mixed one after the other, in their order, so the last has the most weight; the
    asynchronous schedule commits after each. The product of the factors (1 - a) is kept in `weight_sum`.
    """

    name = "fedasync"
    payload: Literal["delta", "model"] = "model"
    streams = True

    def __init__(self, config: FedAsyncRule) -> None:
        self._alpha = config.alpha
        self._max_staleness = config.max_staleness
        self._staleness = staleness_function(config.staleness)
        self._kernels = Kernels()
        self._weights = Remembered(self._weight)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        weight = self._weight(arrival.staleness)
        self._kernels.add(state, update.vector_P, weight, keep=1.0 - weight, ready=update.ready)
        state.weight_sum = (1.0 - weight) * (state.weight_sum if state.n_accumulated else 1.0)
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def complete(
        self, state: ServerState, update: Update, arrival: Arrival
    ) -> tuple[ServerState, Diagnostics, Float32]:
        if is_too_stale(arrival.staleness, self._max_staleness):
            return super().complete(state, update, arrival)
        weight = self._weight(arrival.staleness)
        keep = (1.0 - weight) * (state.weight_sum if state.n_accumulated else 1.0)
        mix = {"kept": 1.0 - weight, "keep": keep, "scale": 1.0}
        new_P = self._kernels.complete(state, update.vector_P, weight, **mix, ready=update.ready)
        return state, Diagnostics(weight), new_P

    def consume(self, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
        if not self._kernels.takes_batches or batch.is_too_stale(self._max_staleness):
            return super().consume(state, batch)
        weights = self._weights(batch.staleness)
        steps, state.weight_sum, state.n_accumulated = self._kernels.compiled.mixing_steps(
            weights, batch.makes_version, state.weight_sum, state.n_accumulated
        )
        versions = self._kernels.consume(state, batch.addresses, batch.makes_version, steps)
        return state, Consumed(weights, np.empty((len(batch), 0)), versions)

    def _weight(self, staleness: int) -> float:
        return self._alpha * self._staleness(staleness)

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return 0.0 if is_too_stale(staleness, self._max_staleness) else self._weight(staleness)

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=state.weight_sum, scale=1.0)
        return state
