"""A rule from a file of the user's own: a function of the weights and of all updates of a version."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Facts, Keeps
from fedsim.config import UserRule
from fedsim.types import Float32, Float64, Update


class Given(NamedTuple):
    """What a rule of the user's own is told of an update: `delta`, float32 (P,), is what the client changed."""

    delta: Float32
    client: int
    n_samples: int
    n_steps: int
    staleness: int
    loss_before: float
    loss_after: float


@dataclass(slots=True)
class OwnState(ServerState):
    """`rows` are the updates of the version being made, `told` what is said of each, `own_N` the function's own state.

    That is an NPZ archive as bytes: arrays and numbers by name, nothing that has to be unpickled.
    """

    rows: dict[int, Float32] = field(default_factory=dict)
    told: dict[int, Float64] = field(default_factory=dict)
    own_N: NDArray[np.uint8] | None = None


class OwnRule(BaseRule):
    """w <- f(w, the updates of the version), f a function of the user's file.

    It gets the weights, float64 (P,), a copy, and a list of `Given`, and returns the new weights. One that asks for
    `state` gets a dictionary, empty at first, whose arrays and numbers it finds again at the next version and after a
    resume. The updates of a version are kept until it is made.
    """

    name = "user"
    keeps = Keeps(float64=4, per_update=1)

    def __init__(self, config: UserRule, facts: Facts) -> None:
        assert facts.function is not None
        self._function = facts.function
        self._has_state = facts.function.takes("state")

    def init(self, weights_P: Float32) -> OwnState:
        return OwnState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, OwnState)
        report = update.report
        state.rows[state.n_accumulated] = update.vector_P.copy()
        state.told[state.n_accumulated] = np.array(
            (arrival.task.client, report.n_samples, report.n_steps, arrival.staleness, report.loss_before,
             report.loss_after), np.float64,
        )  # fmt: skip
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def commit(self, state: ServerState) -> ServerState:
        assert isinstance(state, OwnState)
        if not state.n_accumulated:
            return state
        updates = [_given(row_P, state.told[i].tolist()) for i, row_P in state.rows.items()]
        own = _unpacked(state.own_N)
        new = self._function(state.weights_P.copy(), updates, **({"state": own} if self._has_state else {}))
        state.weights_P = self._checked(new, state.weights_P.size)
        if self._has_state:
            state.own_N = self._packed(own)
        state.rows, state.told, state.n_accumulated = {}, {}, 0
        return state

    def _checked(self, new: Any, n: int) -> Float64:
        """The new weights, if that is what was returned."""
        wanted = f"a rule returns the new weights, finite numbers of shape ({n},)"
        if not isinstance(new, np.ndarray) or new.shape != (n,) or new.dtype.kind not in "fiu":
            got = f"{new.dtype} {new.shape}" if isinstance(new, np.ndarray) else type(new).__name__
            raise self._function.refuse(f"{wanted}; got {got}")
        if not np.isfinite(new).all():
            raise self._function.refuse(f"{wanted}; element {int(np.argmin(np.isfinite(new)))} is none")
        return new.astype(np.float64)

    def _packed(self, own: dict[str, Any]) -> NDArray[np.uint8]:
        arrays = {}
        for name, value in own.items():
            array = np.asarray(value)
            if not isinstance(name, str) or not name.isidentifier() or array.dtype.kind not in "fiub":
                raise self._function.refuse(f"state[{name!r:.60}] is no array or number under a plain name")
            arrays[name] = array
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        return np.frombuffer(stream.getvalue(), np.uint8).copy()


def _given(row_P: Float32, told: list[float]) -> Given:
    client, n_samples, n_steps, staleness, before, after = told
    return Given(row_P, int(client), int(n_samples), int(n_steps), int(staleness), before, after)


def _unpacked(packed_N: NDArray[np.uint8] | None) -> dict[str, Any]:
    if packed_N is None:
        return {}
    with np.load(io.BytesIO(packed_N.tobytes()), allow_pickle=False) as archive:
        return {name: archive[name] if archive[name].ndim else archive[name].item() for name in archive.files}
