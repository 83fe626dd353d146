"""FADAS: AMSGrad at the server, on the mean of a buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Keeps
from fedsim.aggregation.vectors import add, blocks
from fedsim.aggregation.weighting import is_too_stale, sample_weight
from fedsim.config import FadasRule
from fedsim.types import Float32, Float64, Update


@dataclass(slots=True)
class MomentsState(ServerState):
    """AMSGrad's moments, how often they were renewed, and the largest staleness in the buffer."""

    first_P: Float64 | None = None
    second_P: Float64 | None = None
    largest_P: Float64 | None = None
    n_steps: int = 0
    tau_max: int = 0


class Fadas(BaseRule):
    """AMSGrad on the buffer's mean D: w <- w + eta_t m^ / (sqrt(v^) + eps).

        m <- b1 m + (1 - b1) D ; v <- b2 v + (1 - b2) D o D ; vmax <- max(vmax, v)
        m^ = m / (1 - b1^s) ; v^ = vmax / (1 - b2^s), s counts versions ; eta_t = eta / max tau where max tau > tau_c

    Reference: Wang et al., "FADAS: towards federated adaptive asynchronous optimization", ICML 2024 (arXiv:2407.18365),
    algorithm 1 with its delay-adaptive learning rate; M = 5 updates a version, b1 = .9, b2 = .99, eps = 1e-8, tau_c =
    1.
    Deviations: bias-corrected, as torch's AMSGrad is and the paper's pseudocode is not (`bias_correction: false` for
    that). The default of eta is ours. `weighting: samples` has the mean by samples.
    """

    name = "fadas"
    keeps = Keeps(float64=5)

    def __init__(self, config: FadasRule) -> None:
        self._config = config

    def init(self, weights_P: Float32) -> MomentsState:
        zeros = [np.zeros(weights_P.size) for _ in range(4)]
        return MomentsState(weights_P.astype(np.float64), zeros[0], 0.0, 0, zeros[1], zeros[2], zeros[3])

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, MomentsState)
        if is_too_stale(arrival.staleness, self._config.max_staleness):
            return state, Diagnostics(0.0)
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
            state.tau_max, state.weight_sum = 0, 0.0
        weight = sample_weight(self._config.weighting, update.report)
        add(state.accumulator_P, update.vector_P, weight)
        state.weight_sum += weight
        state.tau_max = max(state.tau_max, arrival.staleness)
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, MomentsState)
        if not state.n_accumulated:
            return state
        config, s = self._config, state.n_steps + 1
        first, second = 1.0, 1.0
        if config.bias_correction:
            first, second = 1.0 - config.beta1**s, 1.0 - config.beta2**s
        rate = config.server_learning_rate / (state.tau_max if state.tau_max > config.tau_c else 1)
        for part in blocks(state.weights_P.size):
            self._step(state, part, rate / first, second)
        state.n_steps, state.n_accumulated = s, 0
        return state

    def _step(self, state: MomentsState, part: slice, rate: float, second: float) -> None:
        """Renews the moments of a part of the model, and moves it."""
        assert state.first_P is not None and state.second_P is not None and state.largest_P is not None
        config = self._config
        total = state.n_accumulated if config.weighting == "uniform" else state.weight_sum
        mean = state.accumulator_P[part] / total
        moment, square, largest = state.first_P[part], state.second_P[part], state.largest_P[part]
        moment *= config.beta1
        moment += (1.0 - config.beta1) * mean
        square *= config.beta2
        square += (1.0 - config.beta2) * np.square(mean)
        np.maximum(largest, square, out=largest)
        root = np.sqrt(largest / second)
        root += config.eps
        state.weights_P[part] += rate * moment / root
