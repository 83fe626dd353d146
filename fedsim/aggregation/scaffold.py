"""Stochastic controlled averaging. Shape: `P` parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import ALONE, Arrival, BaseRule, Facts, Keeps
from fedsim.aggregation.weighting import sample_weight
from fedsim.config import ScaffoldRule
from fedsim.types import Float32, Float64, Update

_BLOCK = 32768


@dataclass(slots=True)
class ScaffoldState(ServerState):
    """`control_P` is c; `gradients_P` the weighted sum of the clients' mean gradients -D_k / (K lr) of this round."""

    control_P: Float64 | None = None
    gradients_P: Float64 | None = None


class Scaffold(BaseRule):
    """w <- w + eta sum(p_k D_k), c <- c + (|S|/N) sum(p_k (c_k+ - c_k)); clients train with gradients g - c_k + c.

    Reference: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020,
    algorithm 1, option II; the client's part is `fedsim.training.clients.methods.ControlVariates`. With option II,
    c_k+ - c_k = -c - D_k / (K lr), so the change of c follows from D_k, the steps K, the learning rate and the c that
    was sent: an update carries one vector, where the paper's carries two. p_k = 1/|S| is the paper's; with weighting
    by samples p_k = n_k / sum n in w and in c, as FLamby's code has it.
    Deviations: a client whose update gets lost has a new c_k all the same, so that c is then no longer the mean
    of all c_k. Where `compression.updates` loses something, a client's c_k follows from the D_k that it trained, and c
    from the one that arrived; what error feedback sends later counts in c then, and without it the two would stay
    apart, which is refused. Refused with momentum or Adam at the clients, for which K lr is not what divides.
    """

    name = "scaffold"
    n_extras = 1
    keeps = Keeps(float64=4)

    def __init__(self, config: ScaffoldRule, facts: Facts = ALONE) -> None:
        self._config = config
        self._n_clients = facts.n_clients
        self._kernels = Kernels()

    def init(self, weights_P: Float32) -> ServerState:
        zeros = [np.zeros(weights_P.size) for _ in range(3)]
        return ScaffoldState(weights_P.astype(np.float64), zeros[0], control_P=zeros[1], gradients_P=zeros[2])

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        share = sample_weight(self._config.weighting, update.report)
        gradients_P = cast(ScaffoldState, state).gradients_P
        assert gradients_P is not None
        scale = -share / (update.report.n_steps * arrival.task.learning_rate)
        for start in range(0, gradients_P.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            term = update.vector_P[block] * scale
            gradients_P[block] = term if not state.n_accumulated else gradients_P[block] + term
        self._kernels.add(state, update.vector_P, share)
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(share)

    def commit(self, state: ServerState) -> ServerState:
        if not state.n_accumulated:
            return state
        scaffold = cast(ScaffoldState, state)
        assert scaffold.control_P is not None and scaffold.gradients_P is not None
        fraction = state.n_accumulated / self._n_clients
        for start in range(0, state.weights_P.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            sent = scaffold.control_P[block].astype(np.float32)
            scaffold.control_P[block] += fraction * (scaffold.gradients_P[block] / state.weight_sum - sent)
        self._kernels.merge(state, keep=1.0, scale=self._config.server_learning_rate / state.weight_sum)
        return state

    def publish(self, state: ServerState) -> Float32:
        control_P = cast(ScaffoldState, state).control_P
        assert control_P is not None
        return np.concatenate([state.weights_P, control_P]).astype(np.float32)
