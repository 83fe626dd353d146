"""Normalised averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import ALONE, Arrival, BaseRule, Facts
from fedsim.aggregation.weighting import is_too_stale, sample_weight
from fedsim.config import FedNovaRule
from fedsim.types import Float32, Update


@dataclass(slots=True)
class NovaState(ServerState):
    """`effective_steps` is the sum of p_k a_k over the updates accumulated."""

    effective_steps: float = 0.0


class FedNova(BaseRule):
    """w <- w + eta (sum p_k a_k) sum(p_k D_k / a_k), with p_k = n_k / sum n, or 1/|S| if the weighting is uniform.

    a_k is the sum of the weights that a client's gradients enter its update with: the number of its steps s for plain
    SGD, (s - rho (1 - rho^s)/(1 - rho)) / (1 - rho) with momentum rho.
    Reference: Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization",
    NeurIPS 2020, equations 7 to 10 (a_k = ||a_k||_1, tau_eff = sum p_k a_k), and section 4.1 for momentum.
    Deviations: the server learning rate eta; differences also make sense when bases differ, which the paper does not
    have. Refused where a_k is not as above: Adam at the clients, a proximal term.
    """

    name = "fednova"
    scalar_names: tuple[str, ...] = ("effective_steps",)

    def __init__(self, config: FedNovaRule, facts: Facts = ALONE) -> None:
        self._config = config
        self._momentum = facts.client_momentum
        self._kernels = Kernels()

    def init(self, weights_P: Float32) -> ServerState:
        return NovaState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        share = sample_weight(self._config.weighting, update.report)
        steps = effective_steps(update.report.n_steps, self._momentum)
        if is_too_stale(arrival.staleness, self._config.max_staleness) or not share:
            return state, Diagnostics(0.0, (steps,))
        self._kernels.add(state, update.vector_P, share / steps)
        cast(NovaState, state).effective_steps += share * steps
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(share, (steps,))

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            nova = cast(NovaState, state)
            scale = nova.effective_steps / state.weight_sum**2
            self._kernels.merge(state, keep=1.0, scale=self._config.server_learning_rate * scale)
            nova.effective_steps = 0.0
        return state


def effective_steps(n_steps: int, momentum: float) -> float:
    """a_k of a task of so many steps.

    >>> effective_steps(10, 0.0), effective_steps(2, 0.5)
    (10.0, 2.5)
    """
    if momentum == 0.0:
        return float(n_steps)
    return float((n_steps - momentum * (1.0 - momentum**n_steps) / (1.0 - momentum)) / (1.0 - momentum))
