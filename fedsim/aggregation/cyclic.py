"""Cyclic weight transfer: one client after the other trains the model that it is handed."""

from __future__ import annotations

from typing import Literal

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule
from fedsim.config import CyclicRule
from fedsim.types import Update

SCORED = 0  # the client whose copy the released code scores


class Cyclic(BaseRule):
    """w <- w_k: each version is the local model of the client whose turn it was.

    Reference: Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA 2018.
    `released` is what FLamby's code does under that name (du Terrail et al. 2022): every client trains a copy of its
    own, nothing is handed on, and the copy of client 0 is the one that is scored: so only its updates count here, and
    the clients' part (`fedsim.training.clients.methods.OwnModel`) starts from what each had.
    """

    name = "cyclic"
    payload: Literal["delta", "model"] = "model"

    def __init__(self, config: CyclicRule) -> None:
        self._is_released = config.released
        self._kernels = Kernels()

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        if self._is_released and arrival.task.client != SCORED:
            return state, Diagnostics(0.0)
        self._kernels.add(state, update.vector_P, 1.0)
        state.n_accumulated += 1
        return state, Diagnostics(1.0)

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=0.0, scale=1.0)
        return state
