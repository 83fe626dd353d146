"""The step that averaging rules share: the model moves by the mean of the differences accumulated."""

from __future__ import annotations

import math

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.batch import Batch, Consumed
from fedsim.aggregation.rule import Arrival, BaseRule
from fedsim.aggregation.weighting import is_too_stale
from fedsim.columns import Remembered
from fedsim.types import Float32, TaskReport, Update


class MeanRule(BaseRule):
    """w <- w + eta sum(c_k p_k D_k) / sum(p_k), over the updates that are not too stale.

    Subclasses give each update's share p_k in the divisor (`share`) and its discount c_k (`discount`).
    """

    def __init__(self, server_learning_rate: float, max_staleness: int | None) -> None:
        self._server_learning_rate = server_learning_rate
        self._max_staleness = max_staleness
        self._kernels = Kernels()
        self._shares, self._discounts = Remembered(self._share), Remembered(self.discount)
        own = type(self)  # one that makes its versions otherwise takes the long way
        same = own.accumulate is MeanRule.accumulate and own.commit is MeanRule.commit
        self._is_plain = same and own.publish is BaseRule.publish
        same = own.accumulate is MeanRule.accumulate and own.planned_weight is MeanRule.planned_weight
        self.sums_at_workers = same
        self.streams = own.accumulate is MeanRule.accumulate and own.complete is MeanRule.complete

    def share(self, report: TaskReport) -> float:
        return 1.0

    def discount(self, staleness: int) -> float:
        return 1.0

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        share = self.share(update.report)
        if is_too_stale(arrival.staleness, self._max_staleness) or not share:
            return state, Diagnostics(0.0)
        weight = share * self.discount(arrival.staleness)
        self._kernels.add(state, update.vector_P, weight, ready=update.ready)
        state.weight_sum += share
        state.n_accumulated += 1
        return state, Diagnostics(weight)

    def count(self, state: ServerState, report: TaskReport, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        weight = self.planned_weight(report.n_samples, arrival.staleness)
        if weight:
            state.weight_sum += self.share(report)
            state.n_accumulated += 1
        return state, Diagnostics(weight)

    def complete(
        self, state: ServerState, update: Update, arrival: Arrival
    ) -> tuple[ServerState, Diagnostics, Float32]:
        share = self.share(update.report)
        if not self._is_plain or is_too_stale(arrival.staleness, self._max_staleness) or not share:
            return super().complete(state, update, arrival)
        weight = share * self.discount(arrival.staleness)
        scale = self._server_learning_rate / (state.weight_sum + share if state.n_accumulated else share)
        new_P = self._kernels.complete(state, update.vector_P, weight, keep=1.0, scale=scale, ready=update.ready)
        return state, Diagnostics(weight), new_P

    def consume(self, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
        is_plain = self._is_plain and self.sums_at_workers and self._kernels.takes_batches
        if not is_plain or batch.is_too_stale(self._max_staleness):
            return super().consume(state, batch)
        shares = self._shares(batch.n_samples)
        if not shares.all():
            return super().consume(state, batch)
        steps, state.weight_sum, state.n_accumulated = self._kernels.compiled.mean_steps(
            shares, self._discounts(batch.staleness), batch.makes_version, self._server_learning_rate, state.weight_sum,
            state.n_accumulated,
        )  # fmt: skip
        versions = self._kernels.consume(state, batch.addresses, batch.makes_version, steps)
        return state, Consumed(steps[:, 0], np.empty((len(batch), 0)), versions)

    def _share(self, n_samples: int) -> float:
        """The share of an update of so many samples, on which alone it depends (`sums_at_workers`)."""
        return self.share(TaskReport(0, 0, n_samples, 0, math.nan, math.nan, math.nan, 0.0))

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        if is_too_stale(staleness, self._max_staleness):
            return 0.0
        share = self._share(n_samples)
        return share * self.discount(staleness) if share else 0.0

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=1.0, scale=self._server_learning_rate / state.weight_sum)
        return state
