"""Rules that keep every client's last update at rank zero: MIFA, ACE, ACED, CA2FL.

Each holds a table of N vectors, float32, N the clients that have reported. Sums over the table are kept in float64 and
changed by what changed, so an update costs two passes over P, not N.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Facts, Keeps
from fedsim.aggregation.vectors import add
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import AceDelayAwareRule, AceRule, Ca2FlRule, MifaRule
from fedsim.types import Float32, Float64, Update


@dataclass(slots=True)
class TableState(ServerState):
    """`rows` are the clients' last updates, `base_of` the versions that these began from. `accumulator_P` is the sum of
    the rows that count (all, or `active` ones), and always means something."""

    rows: dict[int, Float32] = field(default_factory=dict)
    base_of: dict[int, int] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)


class _TableRule(BaseRule):
    """Keeps the table and its sum; `accumulator_P` is that sum."""

    keeps = Keeps(per_client=1)

    def __init__(self, server_learning_rate: float, max_staleness: int | None, facts: Facts) -> None:
        self._server_learning_rate = server_learning_rate
        self._max_staleness = max_staleness
        self._n_clients = facts.n_clients

    def init(self, weights_P: Float32) -> TableState:
        return TableState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, TableState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        self._enter(state, update, arrival)
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def _enter(self, state: TableState, update: Update, arrival: Arrival) -> None:
        client = arrival.task.client
        old = state.rows.get(client)
        if old is not None:
            add(state.accumulator_P, old, -1.0)
        add(state.accumulator_P, update.vector_P)
        state.rows[client] = update.vector_P.copy()

    def _move(self, state: ServerState, n: int) -> None:
        """Takes the step eta (1/n) times the sum of the table; nothing counts as accumulated afterwards."""
        add(state.weights_P, state.accumulator_P, self._server_learning_rate / n)
        state.n_accumulated = 0


class Mifa(_TableRule):
    """w <- w + eta (1/N) sum over all N clients of their last update, once a version.

    Reference: Gu et al., "Fast federated learning in the presence of arbitrary device unavailability", NeurIPS 2021
    (arXiv:2106.04159), algorithm 1, whose devices send scaled gradients; D_k carries the client's learning rate.
    Deviations: the paper has every device answer the first round; here one that never reported counts as zero, and N
    divides all the same. `max_staleness` leaves an update out of the table.
    """

    name = "mifa"

    def __init__(self, config: MifaRule, facts: Facts) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness, facts)

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._move(state, self._n_clients)
        return state


class Ace(_TableRule):
    """w <- w + eta (1/N) sum over all N clients of their last update, at each arrival.

    Reference: Chang et al., "Mitigating participation imbalance bias in asynchronous federated learning", 2025
    (arXiv:2511.19066), the method ACE. No weighting by samples.
    Deviations: the paper begins with an update of every client from w_0. Here the model stays w_0, whatever its number,
    until every client has reported, which is the same; `warm_up: false` takes steps from the first arrival on.
    """

    name = "ace"

    def __init__(self, config: AceRule, facts: Facts) -> None:
        super().__init__(config.server_learning_rate, None, facts)
        self._warm_up = config.warm_up

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, TableState)
        if state.n_accumulated and (not self._warm_up or len(state.rows) == self._n_clients):
            self._move(state, self._n_clients)
        return state


class AceDelayAware(_TableRule):
    """w <- w + eta (1/|A|) sum over A of the last updates, A = {i: t - base_i <= bound}, at each arrival.

    Reference: Chang et al. 2025 (arXiv:2511.19066), the delay-aware variant ACED. Reconstructed: base_i is the version
    from which client i's last update began, t the version that the arrival meets.
    Deviations: a client that never reported is not in A, so that nothing has to wait for all. Where A is empty, the
    model stays.
    """

    name = "aced"
    scalar_names: tuple[str, ...] = ("n_active",)

    def __init__(self, config: AceDelayAwareRule, facts: Facts) -> None:
        super().__init__(config.server_learning_rate, None, facts)
        self._bound = config.bound

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, TableState)
        client = arrival.task.client
        for other in [c for c in state.active if c == client or arrival.version - state.base_of[c] > self._bound]:
            del state.active[other]
            add(state.accumulator_P, state.rows.pop(other), -1.0)
        state.base_of[client] = arrival.task.base_version
        if arrival.staleness <= self._bound:
            state.active[client] = 1
            state.rows[client] = update.vector_P.copy()
            add(state.accumulator_P, update.vector_P)
        state.n_accumulated += 1
        counts = client in state.active
        return state, Diagnostics(1.0 if counts else 0.0, (float(len(state.active)),))

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, TableState)
        if state.n_accumulated and state.active:
            self._move(state, len(state.active))
        state.n_accumulated = 0
        return state


@dataclass(slots=True)
class CalibratedState(ServerState):
    """`rows` are h_k, `mean_P` is h, their mean over all N clients; `fresh` are the buffer's updates, by client."""

    rows: dict[int, Float32] = field(default_factory=dict)
    fresh: dict[int, Float32] = field(default_factory=dict)
    mean_P: Float64 | None = None


class Ca2Fl(BaseRule):
    """v = (1/B) sum over the buffer of (D_k - h_k) + h ; w <- w + eta v ; then h_k <- D_k, h the mean of all N h_k.

    Reference: Wang et al., "Tackling the data heterogeneity in asynchronous federated learning with cached update
    calibration" (CA2FL), ICLR 2024, algorithm 2. h_k = 0 at first; within a buffer the h_k of the last version count.
    Deviations: B is the number of updates that counted. Of two updates of one client in a buffer the later is cached.
    """

    name = "ca2fl"
    keeps = Keeps(float64=3, per_client=1, per_update=1)

    def __init__(self, config: Ca2FlRule, facts: Facts) -> None:
        self._server_learning_rate = config.server_learning_rate
        self._max_staleness = config.max_staleness
        self._n_clients = facts.n_clients

    def init(self, weights_P: Float32) -> CalibratedState:
        zeros = np.zeros(weights_P.size)
        return CalibratedState(weights_P.astype(np.float64), zeros, mean_P=zeros.copy())

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, CalibratedState)
        if is_too_stale(arrival.staleness, self._max_staleness):
            return state, Diagnostics(0.0)
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
        client = arrival.task.client
        add(state.accumulator_P, update.vector_P)
        cached = state.rows.get(client)
        if cached is not None:
            add(state.accumulator_P, cached, -1.0)
        state.fresh[client] = update.vector_P.copy()
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, CalibratedState) and state.mean_P is not None
        if not state.n_accumulated:
            return state
        add(state.weights_P, state.accumulator_P, self._server_learning_rate / state.n_accumulated)
        add(state.weights_P, state.mean_P, self._server_learning_rate)
        for client, row_P in state.fresh.items():
            add(state.mean_P, row_P, 1.0 / self._n_clients)
            cached = state.rows.get(client)
            if cached is not None:
                add(state.mean_P, cached, -1.0 / self._n_clients)
            state.rows[client] = row_P
        state.fresh = {}
        state.n_accumulated = 0
        return state
