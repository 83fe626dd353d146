"""What becomes at the server of values that models keep beside their parameters, such as normalisation's statistics.

No rule was made for them: a server optimiser would make a variance negative. So a rule sees the parameters alone, and
buffers are averaged beside it. Shapes: `P` parameters, `Q` values of buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Rule
from fedsim.types import Float32, Update


@dataclass(slots=True)
class BuffersState(ServerState):
    """`weights_P` are the buffers (Q,), `accumulator_P` the sum of the clients' by samples; `inner` is the rule's."""

    inner: ServerState | None = None


class WithBuffers(BaseRule):
    """A rule for the parameters, and b <- (1 - a) b + a sum(n_k b_k) / sum(n_k) for the buffers, once a version.

    The sums are over the updates that the rule gave a weight above 0; b_k is what client k's training came to. a
    is 1 in rounds, else K/m, of K such updates and m tasks in flight: a mean over about as many as are at work.
    With `is_averaged` false nobody sends any, and b stays what it was.
    Reference: none for unequal bases; in rounds with FedAvg it is what averaging whole state dictionaries does.
    """

    def __init__(self, rule: Rule, n_trained: int, n_in_flight: int | None, is_averaged: bool) -> None:
        self.name, self.payload, self.scalar_names = rule.name, rule.payload, rule.scalar_names
        self.decides_steps, self.n_extras, self.keeps = rule.decides_steps, rule.n_extras, rule.keeps
        self.needs_base = rule.needs_base or (is_averaged and rule.payload == "delta")
        self._rule = rule
        self._n_trained = n_trained
        self._n_in_flight = n_in_flight
        self._is_averaged = is_averaged

    def init(self, weights_P: Float32) -> BuffersState:
        buffers_Q = weights_P[self._n_trained :].astype(np.float64)
        return BuffersState(buffers_Q, np.zeros(buffers_Q.size), inner=self._rule.init(weights_P[: self._n_trained]))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        own, n = cast(BuffersState, state), self._n_trained
        assert own.inner is not None
        base_P = arrival.base_P
        part = Update(update.report, update.vector_P[:n])
        told = arrival if base_P is None else arrival._replace(base_P=base_P[:n])
        own.inner, diagnostics = self._rule.accumulate(own.inner, part, told)
        if self._is_averaged and diagnostics.weight > 0.0:
            values_Q = update.vector_P[n:].astype(np.float64)
            if self.payload == "delta":
                assert base_P is not None
                values_Q += base_P[n : n + values_Q.size]
            own.accumulator_P += values_Q * update.report.n_samples
            own.weight_sum += update.report.n_samples
            own.n_accumulated += 1
        return state, diagnostics

    def commit(self, state: ServerState) -> ServerState:
        own = cast(BuffersState, state)
        assert own.inner is not None
        own.inner = self._rule.commit(own.inner)
        if own.n_accumulated:
            share = 1.0 if self._n_in_flight is None else min(1.0, own.n_accumulated / self._n_in_flight)
            own.weights_P *= 1.0 - share
            own.weights_P += own.accumulator_P * (share / own.weight_sum)
            own.accumulator_P.fill(0.0)
            own.weight_sum, own.n_accumulated = 0.0, 0
        return state

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return self._rule.planned_weight(n_samples, staleness)

    def publish(self, state: ServerState) -> Float32:
        own = cast(BuffersState, state)
        assert own.inner is not None
        sent_EP = self._rule.publish(own.inner).reshape(1 + self.n_extras, self._n_trained)
        whole = np.zeros((1 + self.n_extras, self._n_trained + own.weights_P.size), np.float32)
        whole[:, : self._n_trained] = sent_EP
        whole[0, self._n_trained :] = own.weights_P
        return whole.reshape(-1)
