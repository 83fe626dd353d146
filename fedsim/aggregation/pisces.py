"""Pisces: a discount by how stale a client's updates usually are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.rule import Arrival
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import PiscesRule
from fedsim.types import Float32, Float64, Update


@dataclass(slots=True)
class LagsState(ServerState):
    """`lags` holds the staleness of each client's last updates, the latest last, NaN where there was none."""

    lags: dict[int, Float64] = field(default_factory=dict)


class Pisces(MeanRule):
    """w <- w + eta sum(n_k d_k D_k) / sum(n_k), d_k = (1 + mean of the client's last 5 tau)^-.5, this one included.

    Reference: Jiang et al., "Pisces: efficient federated learning via guided asynchronous training", SoCC 2022
    (arXiv:2206.09264), section 4. Its selection is `schedule.selection: {kind: pisces}`, its pace policy `pisces`.
    Deviations: eta is ours.
    """

    name = "pisces"
    scalar_names: tuple[str, ...] = ("lag_mean",)

    def __init__(self, config: PiscesRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._power = config.power
        self._window = config.window

    def init(self, weights_P: Float32) -> LagsState:
        return LagsState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, LagsState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0, (math.nan,))
        lags = state.lags.setdefault(arrival.task.client, np.full(self._window, math.nan))
        lags[:-1] = lags[1:]
        lags[-1] = arrival.staleness
        mean = float(np.nanmean(lags))
        share = float(update.report.n_samples)
        weight = share * (1.0 + mean) ** -self._power
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(weight, (mean,))

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return math.nan
