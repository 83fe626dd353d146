"""Local training with methods around it: a `Trainer` that asks another one for the steps themselves.

Shapes: `G` tasks in a group, `P` parameters, `E` vectors sent with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedsim.tables import ReportTable
from fedsim.training import Payload, Trainer
from fedsim.training.clients.methods import Method, Received
from fedsim.training.clients.states import ClientStates
from fedsim.training.flat import Flat
from fedsim.training.weights import update_norms
from fedsim.types import Float32, Rows, Task


def pieces(methods: Sequence[Method], state_S: Float32 | None) -> Iterator[tuple[Method, Float32 | None]]:
    """Each method with its own part of a client's state."""
    start = 0
    for method in methods:
        stop = start + method.n_values
        yield method, None if state_S is None else state_S[start:stop]
        start = stop


class MethodTrainer:
    """Trains groups by `inner`, from where the methods say and with the slopes that they add, and keeps the states."""

    takes_rows = False  # methods compute with all rows at once

    def __init__(
        self,
        inner: Trainer,
        methods: Sequence[Method],
        states: ClientStates,
        n_parameters: int,
        payload: Payload = "delta",
    ) -> None:
        self.path, self.group_size = inner.path, inner.group_size
        self._inner = inner
        self._methods = methods
        self._states = states
        self._n_parameters = n_parameters
        self._has_linear = any(method.has_linear for method in methods)
        self._is_delta = payload == "delta"

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out: Rows,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> ReportTable:
        """See `fedsim.training.Trainer.train`; the bases hold the vectors sent with the weights, too: ((1 + E) P,)."""
        assert linear_GP is None and isinstance(out, np.ndarray)
        out_GP: Float32 = out
        if self._has_linear:
            linear_GP = np.zeros_like(out_GP)
        versions = {task.base_version: split(base_of(task.base_version), self._n_parameters) for task in tasks}
        received, starts = [], []
        for i, task in enumerate(tasks):
            weights_P, extras_EP = versions[task.base_version]
            received.append(Received(task, weights_P, extras_EP, self._states.committed(task.client)))
            starts.append(self._start(received[i], None if linear_GP is None else linear_GP[i]))
        numbered = [self._numbered(i, one) for i, one in enumerate(received)]
        reports = ReportTable.of(self._inner.train(numbered, starts.__getitem__, out_GP, progress, linear_GP))
        norms = self._finish(received, starts, out_GP, progress)
        if norms:
            reports.rows["update_norm"] = norms
        return reports

    def _numbered(self, i: int, received: Received) -> Task:
        """The task as local training sees it: from the i-th start, at the rate that its methods ask for."""
        task = received.task._replace(base_version=i)
        for method, state_S in pieces(self._methods, received.state_S):
            factor = method.rate(received._replace(state_S=state_S))
            if factor != 1.0:
                task = task._replace(learning_rate=task.learning_rate * factor)
        return task

    def _start(self, received: Received, slope_P: Float32 | None) -> Float32:
        start_P = received.weights_P
        for method, state_S in pieces(self._methods, received.state_S):
            start_P, added_P = method.start(received._replace(state_S=state_S), start_P)
            if added_P is not None:
                assert slope_P is not None
                slope_P += added_P
        return start_P

    def _finish(
        self,
        received: Sequence[Received],
        starts: Sequence[Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[float]:
        """What the methods do after local training, one method after the other, and the states that this leads to.

        The norms of what is left of the updates where some of it stays with the clients; else nothing.
        """
        norms: list[float] = []
        kept: list[list[Float32]] = [[] for _ in received]
        at = 0
        for method in self._methods:
            part = slice(at, at + method.n_values)
            at = part.stop
            told = [one if one.state_S is None else one._replace(state_S=one.state_S[part]) for one in received]
            for pieces_S, new_S in zip(kept, method.finish_group(told, starts, out_GP, progress), strict=True):
                if method.n_values:
                    assert new_S is not None
                    pieces_S.append(new_S)
            if method.n_withheld:
                whole = [one.weights_P for one in received]
                norms = update_norms(Flat(out_GP), None if self._is_delta else Flat(whole)).tolist()
        for one, pieces_S in zip(received, kept, strict=True):
            if pieces_S:
                state_S = pieces_S[0] if len(pieces_S) == 1 else np.concatenate(pieces_S)
                self._states.put(one.task.task, one.task.client, state_S)
        return norms


def split(version: Float32, n_parameters: int) -> tuple[Float32, Float32]:
    """The weights (P,) of a version as it was sent, and the vectors that came with them (E, P)."""
    rows = version.reshape(-1, n_parameters)
    return rows[0], rows[1:]
