"""Test results of versions that come with further vectors, and of clients' own models.

Shape: `P` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.training.clients.methods import Method, Received
from fedsim.training.clients.states import ClientStates
from fedsim.training.clients.trainer import pieces, split
from fedsim.training.evaluate import Evaluator
from fedsim.types import EvaluationRow, Float32, Task


class WeightsEvaluator:
    """Scores the weights of a version, whatever was sent with them."""

    def __init__(self, inner: Evaluator, n_parameters: int) -> None:
        self._inner = inner
        self._n_parameters = n_parameters

    def evaluate(self, version: Float32) -> list[EvaluationRow]:
        """See `fedsim.training.evaluate.Evaluator.evaluate`."""
        return self._inner.evaluate(split(version, self._n_parameters)[0])


class PersonalEvaluator:
    """Scores each client's own model on its own test set, for the clients that live at this worker."""

    def __init__(
        self,
        inner: Evaluator,
        methods: Sequence[Method],
        states: ClientStates,
        n_parameters: int,
        clients: Sequence[int],
    ) -> None:
        self._inner = inner
        self._methods = methods
        self._states = states
        self._n_parameters = n_parameters
        self._clients = clients

    def evaluate(self, version: Float32) -> list[EvaluationRow]:
        """A row for each of the clients, in ascending order."""
        return [self._inner.client_row(client, self.model(client, version)) for client in self._clients]

    def model(self, client: int, version: Float32) -> Float32:
        """The model that the client would use, (P,), if it had just received the version."""
        weights_P, extras_EP = split(version, self._n_parameters)
        state_S = self._states.committed(client)
        received = Received(_nothing_due(client), weights_P, extras_EP, state_S)
        model_P = weights_P
        for method, part_S in pieces(self._methods, state_S):
            model_P = method.personal(received._replace(state_S=part_S), model_P)
        return model_P


def _nothing_due(client: int) -> Task:
    """The task of a client that is only evaluated."""
    nan = math.nan
    return Task(0, client, 0, 0, 0, 0, nan, nan, nan, nan, nan, nan, nan, False, False)
