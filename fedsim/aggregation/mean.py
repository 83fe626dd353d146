"""The step that averaging rules share: the model moves by the mean of the differences accumulated."""

from __future__ import annotations

import math

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule
from fedsim.aggregation.weighting import is_too_stale
from fedsim.types import TaskReport, Update


class MeanRule(BaseRule):
    """w <- w + eta sum(c_k p_k D_k) / sum(p_k), over the updates that are not too stale.

    Subclasses give each update's share p_k in the divisor (`share`) and its discount c_k (`discount`).
    """

    def __init__(self, server_learning_rate: float, max_staleness: int | None) -> None:
        self._server_learning_rate = server_learning_rate
        self._max_staleness = max_staleness
        self._kernels = Kernels()

    def share(self, report: TaskReport) -> float:
        return 1.0

    def discount(self, staleness: int) -> float:
        return 1.0

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        share = self.share(update.report)
        if is_too_stale(arrival.staleness, self._max_staleness) or not share:
            return state, Diagnostics(0.0)
        weight = share * self.discount(arrival.staleness)
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        if is_too_stale(staleness, self._max_staleness):
            return 0.0
        share = self.share(TaskReport(0, 0, n_samples, 0, math.nan, math.nan, math.nan, 0.0))
        return share * self.discount(staleness) if share else 0.0

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=1.0, scale=self._server_learning_rate / state.weight_sum)
        return state
