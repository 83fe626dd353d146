"""Test results of versions that come with further vectors, and of clients' own models.

Shape: `P` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedsim.training.clients.methods import Method, Received
from fedsim.training.clients.personal import nothing_due
from fedsim.training.clients.states import ClientStates
from fedsim.training.clients.trainer import pieces, split
from fedsim.training.evaluate import Evaluator
from fedsim.types import EvaluationRow, Float32

AT_ONCE = 64  # clients whose models are held


class WeightsEvaluator:
    """Scores the weights of a version, whatever was sent with them."""

    def __init__(self, inner: Evaluator, n_parameters: int) -> None:
        self._inner = inner
        self._n_parameters = n_parameters

    def evaluate(self, version: Float32, *, number: int = 0) -> list[EvaluationRow]:
        """See `fedsim.training.evaluate.Evaluator.evaluate`."""
        return self._inner.evaluate(split(version, self._n_parameters)[0])


class PersonalEvaluator:
    """Scores the models that clients use on their own test sets, for the clients that live at this worker.

    That is the version, with what stays with the client in place of its own; and the second model, if there is one.
    `has_central`: this worker scores the version on the central test set, too.
    """

    def __init__(
        self,
        inner: Evaluator,
        methods: Sequence[Method],
        states: ClientStates,
        n_parameters: int,
        clients: Sequence[int],
        has_central: bool = False,
    ) -> None:
        self._inner = inner
        self._methods = methods
        self._states = states
        self._n_parameters = n_parameters
        self._clients = clients
        self._has_central = has_central
        self._has_second = any(method.has_second for method in methods)

    def evaluate(self, version: Float32, *, number: int = 0) -> list[EvaluationRow]:
        """A row for each of the clients, in ascending order, then perhaps the central test set, then second models."""
        rows: list[EvaluationRow] = []
        seconds: list[EvaluationRow] = []
        for first in range(0, len(self._clients), AT_ONCE):
            clients = self._clients[first : first + AT_ONCE]
            received = [self._received(client, version, number) for client in clients]
            models = [self._model(one) for one in received]
            rows += [self._inner.client_row(*one) for one in zip(clients, models, strict=True)]
            if self._has_second:
                own = self._seconds(received, models)
                seconds += [self._inner.client_row(*one) for one in zip(clients, own, strict=True)]
        if self._has_central:
            rows += self._inner.central_rows(split(version, self._n_parameters)[0])
        return rows + [replace(row, is_personal=True) for row in seconds]

    def model(self, client: int, version: Float32) -> Float32:
        """The model that the client would use, (P,), if it had just received the version."""
        return self._model(self._received(client, version, 0))

    def _received(self, client: int, version: Float32, number: int) -> Received:
        weights_P, extras_EP = split(version, self._n_parameters)
        return Received(nothing_due(client, number), weights_P, extras_EP, self._states.committed(client))

    def _model(self, received: Received) -> Float32:
        model_P = received.weights_P
        for method, part_S in pieces(self._methods, received.state_S):
            model_P = method.personal(received._replace(state_S=part_S), model_P)
        return model_P

    def _seconds(self, received: Sequence[Received], models: Sequence[Float32]) -> list[Float32]:
        found, at = list(models), 0
        for method in self._methods:
            part = slice(at, at + method.n_values)
            at = part.stop
            told = [one if one.state_S is None else one._replace(state_S=one.state_S[part]) for one in received]
            found = method.second(told, found)
        return found
