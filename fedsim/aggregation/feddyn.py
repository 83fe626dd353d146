"""Dynamic regularisation. Shape: `P` parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import ALONE, Arrival, BaseRule, Facts, Keeps
from fedsim.config import FedDynRule
from fedsim.types import Float32, Float64, Update

_BLOCK = 32768


@dataclass(slots=True)
class DynState(ServerState):
    """`dual_P` is h."""

    dual_P: Float64 | None = None


class FedDyn(BaseRule):
    """h <- h - (alpha/N) sum(D_k), w <- mean(w_k) - h/alpha; clients minimise f - <g_k, w> + (alpha/2) ||w - w_t||^2.

    Reference: Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, algorithm 1; the client's
    part is `fedsim.training.clients.methods.DualVariables`.
    Deviations: a client takes the configured steps, where the paper has the exact minimiser. Where
    `compression.updates` loses something, g_k follows from the D_k that was trained, and h from the one that arrived:
    with error feedback what is left is sent later; without it (refused) the two would stay apart.
    """

    name = "feddyn"
    keeps = Keeps(float64=3)

    def __init__(self, config: FedDynRule, facts: Facts = ALONE) -> None:
        self._alpha = config.alpha
        self._n_clients = facts.n_clients
        self._kernels = Kernels()

    def init(self, weights_P: Float32) -> ServerState:
        return DynState(weights_P.astype(np.float64), np.zeros(weights_P.size), dual_P=np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        self._kernels.add(state, update.vector_P, 1.0)
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def commit(self, state: ServerState) -> ServerState:
        if not state.n_accumulated:
            return state
        dual_P = cast(DynState, state).dual_P
        assert dual_P is not None
        for start in range(0, dual_P.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            dual_P[block] -= (self._alpha / self._n_clients) * state.accumulator_P[block]
            state.weights_P[block] -= dual_P[block] / self._alpha
        self._kernels.merge(state, keep=1.0, scale=1.0 / state.n_accumulated)
        return state
