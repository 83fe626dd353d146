"""Local training with methods around it: a `Trainer` that asks another one for the steps themselves.

Shapes: `G` tasks in a group, `P` parameters, `E` vectors sent with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedsim.training import Trainer
from fedsim.training.clients.methods import Method, Received
from fedsim.training.clients.states import ClientStates
from fedsim.types import Float32, Task, TaskReport


def pieces(methods: Sequence[Method], state_S: Float32 | None) -> Iterator[tuple[Method, Float32 | None]]:
    """Each method with its own part of a client's state."""
    start = 0
    for method in methods:
        stop = start + method.n_values
        yield method, None if state_S is None else state_S[start:stop]
        start = stop


class MethodTrainer:
    """Trains groups by `inner`, from where the methods say and with the slopes that they add, and keeps the states."""

    def __init__(self, inner: Trainer, methods: Sequence[Method], states: ClientStates, n_parameters: int) -> None:
        self.path, self.group_size = inner.path, inner.group_size
        self._inner = inner
        self._methods = methods
        self._states = states
        self._n_parameters = n_parameters
        self._has_linear = any(method.has_linear for method in methods)

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> list[TaskReport]:
        """See `fedsim.training.Trainer.train`; the bases hold the vectors sent with the weights, too: ((1 + E) P,)."""
        assert linear_GP is None
        if self._has_linear:
            linear_GP = np.zeros_like(out_GP)
        versions = {task.base_version: split(base_of(task.base_version), self._n_parameters) for task in tasks}
        received, starts = [], []
        for i, task in enumerate(tasks):
            weights_P, extras_EP = versions[task.base_version]
            received.append(Received(task, weights_P, extras_EP, self._states.committed(task.client)))
            starts.append(self._start(received[i], None if linear_GP is None else linear_GP[i]))
        numbered = [task._replace(base_version=i) for i, task in enumerate(tasks)]
        reports = self._inner.train(numbered, starts.__getitem__, out_GP, progress, linear_GP)
        for i in range(len(tasks)):
            self._finish(received[i], starts[i], out_GP[i])
        return reports

    def _start(self, received: Received, slope_P: Float32 | None) -> Float32:
        start_P = received.weights_P
        for method, state_S in pieces(self._methods, received.state_S):
            start_P, added_P = method.start(received._replace(state_S=state_S), start_P)
            if added_P is not None:
                assert slope_P is not None
                slope_P += added_P
        return start_P

    def _finish(self, received: Received, start_P: Float32, out_P: Float32) -> None:
        kept: list[Float32] = []
        for method, state_S in pieces(self._methods, received.state_S):
            new_S = method.finish(received._replace(state_S=state_S), start_P, out_P)
            if method.n_values:
                assert new_S is not None
                kept.append(new_S)
        if kept:
            state = kept[0] if len(kept) == 1 else np.concatenate(kept)
            self._states.put(received.task.task, received.task.client, state)


def split(version: Float32, n_parameters: int) -> tuple[Float32, Float32]:
    """The weights (P,) of a version as it was sent, and the vectors that came with them (E, P)."""
    rows = version.reshape(-1, n_parameters)
    return rows[0], rows[1:]
