"""Optimisers at the server, whose gradient is the mean of the clients' differences.

Shape: `P` parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from fedsim.aggregation.accumulate import ServerState
from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.rule import Keeps
from fedsim.aggregation.weighting import sample_weight
from fedsim.config import FedAdagradRule, FedAdamRule, FedAvgMRule, FedYogiRule
from fedsim.types import Float32, Float64, TaskReport

_BLOCK = 32768  # values that are worked on at once, so that a pass stays in cache

FedOptConfig = FedAdamRule | FedYogiRule | FedAdagradRule


@dataclass(slots=True)
class MomentumState(ServerState):
    """`velocity_P` is v, of the sums of differences so far; None before the first version."""

    velocity_P: Float64 | None = None


class FedAvgM(MeanRule):
    """v <- beta v + D, w <- w + eta v, with D the mean of the differences, by samples or uniform.

    Reference: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019 (arXiv:1909.06335), section 4.3. Deviation: the server learning rate eta.
    """

    name = "fedavgm"
    keeps = Keeps(float64=3)

    def __init__(self, config: FedAvgMRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._beta = config.beta
        self._weighting = config.weighting

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._weighting, report)

    def init(self, weights_P: Float32) -> ServerState:
        return MomentumState(
            weights_P.astype(np.float64), np.zeros(weights_P.size), velocity_P=np.zeros(weights_P.size)
        )

    def commit(self, state: ServerState) -> ServerState:
        if not state.n_accumulated:
            return state
        velocity_P = cast(MomentumState, state).velocity_P
        assert velocity_P is not None
        for start in range(0, velocity_P.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            v = velocity_P[block]
            v *= self._beta
            v += state.accumulator_P[block] / state.weight_sum
            state.weights_P[block] += self._server_learning_rate * v
        state.weight_sum, state.n_accumulated = 0.0, 0
        return state


@dataclass(slots=True)
class MomentsState(ServerState):
    """`first_P` is m, `second_P` is v, `n_steps` the versions made of at least one update."""

    first_P: Float64 | None = None
    second_P: Float64 | None = None
    n_steps: int = 0


class FedOpt(MeanRule):
    """m <- b1 m + (1 - b1) D; v by the kind; w <- w + eta m / (sqrt(v) + tau). D is the mean of the differences.

    FedAdam: v <- b2 v + (1 - b2) D^2. FedYogi: v <- v - (1 - b2) D^2 sign(v - D^2). FedAdagrad: v <- v + D^2.
    Reference: Reddi et al., "Adaptive federated optimization", ICLR 2021 (arXiv:2003.00295), algorithm 2. As there,
    b1 .9, b2 .99, tau 1e-3, v0 = tau^2 (the smallest that it allows), and no bias correction.
    Deviations: the weighting by samples, where the paper's algorithm has 1/|S|; `initial_v` sets v0, 0 included, and
    `bias_correction` divides m by 1 - b1^t and v by 1 - b2^t (not FedAdagrad's v), as other code does.
    """

    keeps = Keeps(float64=4)

    def __init__(self, config: FedOptConfig) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self.name: str = config.rule
        self._config = config
        self._second = partial(_SECOND[config.rule], beta2=config.beta2)

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._config.weighting, report)

    def init(self, weights_P: Float32) -> ServerState:
        config, n = self._config, weights_P.size
        v = config.tau**2 if config.initial_v is None else config.initial_v
        return MomentsState(
            weights_P.astype(np.float64), np.zeros(n), first_P=np.zeros(n), second_P=np.full(n, v), n_steps=0
        )

    def commit(self, state: ServerState) -> ServerState:
        if not state.n_accumulated:
            return state
        moments, config = cast(MomentsState, state), self._config
        assert moments.first_P is not None and moments.second_P is not None
        moments.n_steps += 1
        m_scale, v_scale = self._corrections(moments.n_steps)
        for start in range(0, state.weights_P.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            m, v = moments.first_P[block], moments.second_P[block]
            d = state.accumulator_P[block] / state.weight_sum
            m *= config.beta1
            m += (1.0 - config.beta1) * d
            self._second(v, d * d)
            state.weights_P[block] += self._server_learning_rate * (m / m_scale) / (np.sqrt(v / v_scale) + config.tau)
        state.weight_sum, state.n_accumulated = 0.0, 0
        return state

    def _corrections(self, n_steps: int) -> tuple[float, float]:
        """What m and v are divided by."""
        config = self._config
        if not config.bias_correction:
            return 1.0, 1.0
        second = 1.0 if config.rule == "fedadagrad" else 1.0 - config.beta2**n_steps
        return 1.0 - config.beta1**n_steps, second


def _adam(v: Float64, square: Float64, beta2: float) -> None:
    v *= beta2
    v += (1.0 - beta2) * square


def _yogi(v: Float64, square: Float64, beta2: float) -> None:
    v -= (1.0 - beta2) * square * np.sign(v - square)


def _adagrad(v: Float64, square: Float64, beta2: float) -> None:
    v += square


_SECOND = {"fedadam": _adam, "fedyogi": _yogi, "fedadagrad": _adagrad}
