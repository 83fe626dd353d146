"""AsyncFedED: steps sized by how far the model moved while the client was away."""

from __future__ import annotations

import math

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule
from fedsim.aggregation.vectors import relation
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import AsyncFedEdRule
from fedsim.types import Update


class AsyncFedEd(BaseRule):
    """w <- w + lambda / (g + eps) D_k, g = ||w_t - w_(t-tau)|| / ||D_k||; K_k <- max(1, K_k + floor(kappa (gbar - g))).

    K_k are the client's local steps in its next task: fewer for one whose updates come too late, more for one in time.
    Reference: Wang et al., "AsyncFedED: asynchronous federated learning with Euclidean distance based adaptive weight
    aggregation", 2022 (arXiv:2205.13797), equations 6 to 8. eps is a hyper-parameter and not tiny: the step at tau = 0
    is lambda / eps.
    Deviations: `max_steps` bounds K_k, which grows without end for clients that are always in time. Defaults of lambda,
    eps, kappa and gbar are ours. An update of zeros is left out, and its client keeps its steps; one staler than
    `max_staleness` is left out, too, but its client's steps follow from its distance, or it would stay as late.
    """

    name = "async-fed-ed"
    scalar_names: tuple[str, ...] = ("distance", "next_steps")
    needs_base = True
    decides_steps = True

    def __init__(self, config: AsyncFedEdRule) -> None:
        self._config = config
        self._kernels = Kernels()

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert arrival.base_P is not None
        config, ways = self._config, relation(state.weights_P, arrival.base_P, update.vector_P)
        if ways.vv == 0.0:
            return state, Diagnostics(0.0, (math.nan, float(arrival.task.n_steps)))
        distance = math.sqrt(ways.mm) / math.sqrt(ways.vv)
        weight = 0.0
        if not is_too_stale(arrival.staleness, config.max_staleness):
            weight = config.rate / (distance + config.eps)
            self._kernels.add(state, update.vector_P, weight)
            state.n_accumulated += 1
        change = config.kappa * (config.target - distance)
        steps = max(1.0, min(float(config.max_steps), arrival.task.n_steps + math.floor(max(change, -(2.0**53)))))
        return state, Diagnostics(weight, (distance, steps), int(steps))

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=1.0, scale=1.0)
        return state
