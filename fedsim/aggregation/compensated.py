"""DC-ASGD: stale gradients corrected by a diagonal guess at the curvature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Keeps
from fedsim.aggregation.vectors import add, blocks, moved
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import DcAsgdRule
from fedsim.types import Float32, Float64, Update


@dataclass(slots=True)
class SquaresState(ServerState):
    """`squares_P` is the running mean square of the gradients, for the adaptive form."""

    squares_P: Float64 | None = None


class DcAsgd(BaseRule):
    """w <- w + D - (lambda / eta) D o D o (w_t - w_base), eta = client learning rate x local steps, o elementwise.

    With g = -D / eta this is the paper's w <- w - eta (g + lambda g o g o (w_t - w_base)). Adaptive: lambda is
    lambda_0 / sqrt(ms + 1e-7) for each parameter, ms <- .95 ms + .05 g o g.
    Reference: Zheng et al., "Asynchronous stochastic gradient descent with delay compensation", ICML 2017
    (arXiv:1609.08326), equation 10 and algorithm 2; lambda = .04, or lambda_0 = 2 where adaptive.
    Deviations: D stands for several local steps; the mean gradient along them for the gradient at the base. Momentum
    and adaptive optimisers at the client make eta a wrong scale by their own factor.
    """

    name = "dc-asgd"
    needs_base = True

    def __init__(self, config: DcAsgdRule) -> None:
        self._config = config
        self.keeps = Keeps(float64=3 if config.adaptive else 2)

    def init(self, weights_P: Float32) -> SquaresState:
        squares_P = np.zeros(weights_P.size) if self._config.adaptive else None
        return SquaresState(weights_P.astype(np.float64), np.zeros(weights_P.size), squares_P=squares_P)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, SquaresState) and arrival.base_P is not None
        if is_too_stale(arrival.staleness, self._config.max_staleness):
            return state, Diagnostics(0.0)
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
        eta = arrival.task.learning_rate * arrival.task.n_steps
        for part in blocks(state.weights_P.size):
            delta = update.vector_P[part].astype(np.float64)
            squares = np.square(delta)
            state.accumulator_P[part] += delta
            squares *= self._strength(state, part, squares, eta)
            squares *= moved(state.weights_P[part], arrival.base_P[part])
            squares *= -1.0 / eta
            state.accumulator_P[part] += squares
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def _strength(self, state: SquaresState, part: slice, squares: Float64, eta: float) -> Float64 | float:
        """lambda: a number, or one for each parameter after the mean squares have taken g o g = D o D / eta^2 in."""
        config = self._config
        if state.squares_P is None:
            return config.strength
        running = state.squares_P[part]
        running *= config.decay
        running += squares * ((1.0 - config.decay) / eta**2)
        result: Float64 = config.adaptive_strength / np.sqrt(running + 1e-7)
        return result

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            add(state.weights_P, state.accumulator_P, self._config.server_learning_rate)
            state.n_accumulated = 0
        return state
