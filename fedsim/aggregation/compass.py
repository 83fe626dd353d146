"""FedCompass: groups of clients that arrive together, mixed into the model."""

from __future__ import annotations

from typing import Literal

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Facts
from fedsim.aggregation.weighting import is_too_stale, staleness_function
from fedsim.config import FedCompassRule
from fedsim.types import Update


class FedCompass(BaseRule):
    """w <- (1 - sum a_k) w + sum a_k w_k over a group, with a_k = alpha s(tau_k) p_k, p_k = 1/N or n_k/n.

    Reference: Li et al., "FedCompass: efficient cross-silo federated learning on heterogeneous client devices using a
    computing power aware scheduler", ICLR 2024 (arXiv:2309.14675); alpha = .9. Its scheduler is policy `compass`.
    Deviations: none in the formula; the default of s is the polynomial with a = .5. It is of groups of N at most: a
    longer `buffer` is refused (`fedsim.engine.planchecks`), since sum a_k could exceed 1.
    """

    name = "fedcompass"
    payload: Literal["delta", "model"] = "model"

    def __init__(self, config: FedCompassRule, facts: Facts) -> None:
        self._config = config
        self._staleness = staleness_function(config.staleness)
        self._n_clients = facts.n_clients
        self._n_samples = facts.count_samples() if config.weighting == "samples" else 1
        self._kernels = Kernels()

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        config = self._config
        if is_too_stale(arrival.staleness, config.max_staleness):
            return state, Diagnostics(0.0)
        uniform = config.weighting == "uniform"
        share = 1.0 / self._n_clients if uniform else update.report.n_samples / self._n_samples
        weight = config.alpha * self._staleness(arrival.staleness) * share
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += weight
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=1.0 - state.weight_sum, scale=1.0)
        return state
