"""The border between the engine and the rules."""

from __future__ import annotations

from typing import Literal, Protocol

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.types import Float32, Update


class Rule(Protocol):
    """A way of making versions out of updates; `scalar_names` name what its diagnostics hold besides the weight.

    The state passed in is consumed: it is changed in place and returned. An update costs one pass over P in
    `accumulate`, a version one in `commit`; whatever a rule keeps between them is in the state.
    """

    name: str
    payload: Literal["delta", "model"]
    scalar_names: tuple[str, ...]

    def init(self, weights_P: Float32) -> ServerState:
        """The state of version 0, float32 (P,), with nothing accumulated."""

    def accumulate(self, state: ServerState, update: Update, staleness: int) -> tuple[ServerState, Diagnostics]:
        """Takes an update, of `staleness` versions, towards the next version. `update.vector_P` is not kept."""

    def commit(self, state: ServerState) -> ServerState:
        """Makes the next version of what was accumulated; the model stays as it is if nothing was."""
