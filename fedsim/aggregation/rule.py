"""The border between the engine and the rules: what a rule is, what it is told, and what it says that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState, fresh, published
from fedsim.aggregation.batch import Batch, Consumed, one_by_one
from fedsim.types import Float32, Float64, Int64, Task, TaskReport, Update
from fedsim.userfiles import UserFunction

NO_TASK = Task(0, 0, 0, 1, 1, 0, 0.0, 0.0, math.nan, math.nan, math.nan, math.nan, math.nan, False, True)


class Arrival(NamedTuple):
    """What is known of an update when it is consumed, besides what its report says.

    `staleness` counts the versions made since the task's base, `version` all versions made so far. `arrival_s` is when
    the update reached the server, on the run's clock. `base_P` is the base version as it was sent, float32 (P,), for a
    rule that `needs_base`. A replay knows all of this again, and nothing more: rules follow from it alone.
    """

    staleness: int
    task: Task = NO_TASK
    version: int = 0
    arrival_s: float = math.nan
    base_P: Float32 | None = None


class Keeps(NamedTuple):
    """What a rule holds at rank zero, in vectors of P values: float64, float32, float32 a client and an update of a
    version. The two that every rule has (weights and accumulator) are among the first."""

    float64: int = 2
    float32: int = 0
    per_client: int = 0
    per_update: int = 0

    def n_bytes(self, n_parameters: int, n_clients: int, n_updates: int) -> int:
        """Bytes once every client and every update of a version has its vectors."""
        n_float32 = self.float32 + self.per_client * n_clients + self.per_update * n_updates
        return n_parameters * (8 * self.float64 + 4 * n_float32)


def _no_samples() -> int:
    return 1


def _no_tier(client: int) -> int:
    return 0


@dataclass(frozen=True)
class Facts:
    """What a rule may know of the federation before the first task.

    `n_clients` are those with data (registered); `count_samples` counts the samples of them all, in a pass over the
    clients. `layers` are the tensors' slices of the flat vector. `n_updates` is how many updates go into a version
    where the policy fixes it, else 0. `tier_of` gives a client's tier, 0 the fastest, under the policy `tiers`.
    `max_lag` is the lag tolerance of the policy `safa`. `planned_versions` is where the run stops, 0 if it does not
    stop by that.
    `client_momentum` is that of the clients' SGD. `as_trained`: the norm in an update's report is that of the vector
    which the rule gets, changed by no encoding, attack or cut. `function` is the rule of the user's own, where there is
    one.
    """

    n_clients: int = 1
    count_samples: Callable[[], int] = _no_samples
    layers: tuple[slice, ...] = (slice(None),)
    n_updates: int = 0
    n_tiers: int = 1
    max_lag: int = 0
    planned_versions: int = 0
    tier_of: Callable[[int], int] = _no_tier
    client_momentum: float = 0.0
    as_trained: bool = True
    function: UserFunction | None = None


ALONE = Facts()


class Rule(Protocol):
    """A way of making versions out of updates; `scalar_names` name what its diagnostics hold besides the weight.

    The state passed in is consumed: it is changed in place and returned. An update costs one pass over P in
    `accumulate`, a version one in `commit`, if docs/algorithms.md does not say more; whatever a rule keeps between them
    is in the state, a dataclass of arrays, numbers and dictionaries from numbers to arrays (`fedsim.snapshot.of`).
    """

    name: str
    payload: Literal["delta", "model"]
    scalar_names: tuple[str, ...]
    needs_base: bool
    streams: bool  # goes through an update once, from its beginning to its end, and asks `ready` before it reads
    sums_at_workers: bool  # a version is made of a weighted sum, with weights that the schedule knows
    decides_steps: bool
    n_extras: int
    keeps: Keeps

    def hasten(self) -> None:
        """A long run is to come: what takes time once and makes updates cheaper is done now. The bits stay the same."""

    def make_in(self, new: Callable[[int], Float32]) -> None:
        """Versions are best made in vectors that `new` gives, of so many values: they need not be copied from there."""

    def init(self, weights_P: Float32) -> ServerState:
        """The state of version 0, float32 (P,), with nothing accumulated."""

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        """Takes an update towards the next version. `update.vector_P` and `arrival.base_P` are not kept."""

    def count(self, state: ServerState, report: TaskReport, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        """`accumulate` of an update that a worker has summed already: everything but the vector."""

    def put_sum(self, state: ServerState, sum_P: Float64) -> None:
        """The weighted sum of the updates that were counted, float64 (P,)."""

    def commit(self, state: ServerState) -> ServerState:
        """Makes the next version of what was accumulated; the model stays as it is if nothing was."""

    def complete(
        self, state: ServerState, update: Update, arrival: Arrival
    ) -> tuple[ServerState, Diagnostics, Float32]:
        """`accumulate` of the last update of a version, then `commit` and `publish`: the same bits, in fewer passes."""

    def consume(self, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
        """`accumulate` of each update of a batch, or `complete` where it makes a version: the same bits, together."""

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        """The weight that an update of so many samples enters with; NaN if that takes more than the schedule knows."""

    def publish(self, state: ServerState) -> Float32:
        """The version as it is sent, a new float32 vector: the weights, then `n_extras` further vectors of P values."""


class BaseRule:
    """What most rules share: they take differences, keep weights and accumulator, and send the weights alone."""

    name: str
    payload: Literal["delta", "model"] = "delta"
    scalar_names: tuple[str, ...] = ()
    needs_base = False
    streams = False
    sums_at_workers = False
    decides_steps = False
    n_extras = 0
    keeps = Keeps()

    def hasten(self) -> None:
        kernels = getattr(self, "_kernels", None)
        if isinstance(kernels, Kernels):
            kernels.hasten()

    def make_in(self, new: Callable[[int], Float32]) -> None:
        kernels = getattr(self, "_kernels", None)
        if isinstance(kernels, Kernels):
            kernels.new = new

    def init(self, weights_P: Float32) -> ServerState:
        return fresh(weights_P)

    def publish(self, state: ServerState) -> Float32:
        return published(state)

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        raise NotImplementedError

    def count(self, state: ServerState, report: TaskReport, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        raise NotImplementedError

    def put_sum(self, state: ServerState, sum_P: Float64) -> None:
        state.accumulator_P[:] = sum_P

    def commit(self, state: ServerState) -> ServerState:
        raise NotImplementedError

    def complete(
        self, state: ServerState, update: Update, arrival: Arrival
    ) -> tuple[ServerState, Diagnostics, Float32]:
        state, diagnostics = self.accumulate(state, update, arrival)
        state = self.commit(state)
        return state, diagnostics, self.publish(state)

    def consume(self, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
        return one_by_one(self, state, batch)

    def planned_weight(self, n_samples: int, staleness: int) -> float:
        return math.nan


def planned_weights(weight_of: Callable[[int, int], float], n_samples: Int64, staleness: Int64) -> Float64:
    """The weights (R,) of updates by their samples and staleness, both (R,): NaN where the rule cannot say beforehand.

    `weight_of` is the rule's `planned_weight`. A staleness of -1 stands for an update that was not consumed: its weight
    is NaN.
    """
    span = int(staleness.max(initial=-1)) + 2
    keys = n_samples * span + staleness + 1
    least = int(keys.min(initial=0))
    if keys.size and int(keys.max()) - least < 2 * keys.size:  # clients of much the same size: no need to sort
        where = keys - least
        found = np.flatnonzero(np.bincount(where))
        table = np.empty(int(where.max()) + 1)
        table[found] = [_weight(weight_of, key, span) for key in (found + least).tolist()]
        by_key: Float64 = table[where]
        return by_key
    keys, where = np.unique(keys, return_inverse=True)
    return np.array([_weight(weight_of, key, span) for key in keys.tolist()], np.float64)[where]


def _weight(weight_of: Callable[[int, int], float], key: int, span: int) -> float:
    return math.nan if key % span == 0 else weight_of(key // span, key % span - 1)
