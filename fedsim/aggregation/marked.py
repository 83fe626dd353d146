"""A rule around another one that says of each update whether an attacker sent it; it merges as the other does."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.batch import Batch, Consumed, one_by_one
from fedsim.aggregation.rule import Arrival, Rule
from fedsim.types import Float32, Float64, Int64, TaskReport, Update

ATTACKED = "attacked"


class Marked:
    """Another rule with one more scalar, `attacked`: 1 for the update of an attacker, else 0. Nobody acts on it."""

    def __init__(self, inner: Rule, attacking: Int64) -> None:
        self._inner = inner
        self._attacking = frozenset(attacking.tolist())
        self.name, self.payload, self.keeps = inner.name, inner.payload, inner.keeps
        self.scalar_names: tuple[str, ...] = (*inner.scalar_names, ATTACKED)
        self.needs_base, self.sums_at_workers, self.streams = inner.needs_base, inner.sums_at_workers, inner.streams
        self.decides_steps, self.n_extras = inner.decides_steps, inner.n_extras

    def hasten(self) -> None:
        self._inner.hasten()

    def make_in(self, new: Callable[[int], Float32]) -> None:
        self._inner.make_in(new)

    def init(self, weights_P: Float32) -> ServerState:
        return self._inner.init(weights_P)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        state, said = self._inner.accumulate(state, update, arrival)
        return state, self._marked(said, arrival)

    def count(self, state: ServerState, report: TaskReport, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        state, said = self._inner.count(state, report, arrival)
        return state, self._marked(said, arrival)

    def put_sum(self, state: ServerState, sum_P: Float64) -> None:
        self._inner.put_sum(state, sum_P)

    def commit(self, state: ServerState) -> ServerState:
        return self._inner.commit(state)

    def complete(
        self, state: ServerState, update: Update, arrival: Arrival
    ) -> tuple[ServerState, Diagnostics, Float32]:
        state, said, new_P = self._inner.complete(state, update, arrival)
        return state, self._marked(said, arrival), new_P

    def consume(self, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
        return one_by_one(self, state, batch)

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return self._inner.planned_weight(n_samples, staleness)

    def publish(self, state: ServerState) -> Float32:
        return self._inner.publish(state)

    def _marked(self, said: Diagnostics, arrival: Arrival) -> Diagnostics:
        is_attacker = 1.0 if arrival.task.client in self._attacking else 0.0
        return said._replace(scalars=(*said.scalars, is_attacker))
