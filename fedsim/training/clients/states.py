"""What the clients of one worker keep from task to task: committed by client, pending by task.

State belongs to the update (architecture, "The semantics, settled", 6): training a task leaves a pending state, and the
server says when the task's event was consumed (`commit`) or came to nothing (`discard`). Until then the former state
is kept, so a task can be trained again, and a client without a committed state starts from none. Shape: `S` values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.types import Float32


class ClientStates:
    """Flat float32 vectors (S,): one a client that has finished a task, one a task that is trained and not settled."""

    def __init__(self, n_values: int) -> None:
        self.n_values = n_values
        self._committed: dict[int, Float32] = {}
        self._pending: dict[int, tuple[int, Float32]] = {}

    def __len__(self) -> int:
        return len(self._committed)

    @property
    def n_pending(self) -> int:
        """States of tasks that are neither committed nor discarded."""
        return len(self._pending)

    def committed(self, client: int) -> Float32 | None:
        """The state that a client's next task starts from, (S,), only to be read; None before its first."""
        return self._committed.get(client)

    def put(self, task: int, client: int, state_S: Float32) -> None:
        """Takes over the state that a task leads to; a task that is trained again replaces its former one."""
        assert state_S.shape == (self.n_values,) and state_S.dtype == np.float32
        self._pending[task] = (client, state_S)

    def commit(self, tasks: Sequence[int]) -> None:
        """The events of these tasks were consumed: their states are what their clients keep."""
        for task in tasks:
            client, state_S = self._pending.pop(task)
            self._committed[client] = state_S

    def discard(self, tasks: Sequence[int]) -> None:
        """These tasks came to nothing, trained or not: their clients keep what they had."""
        for task in tasks:
            self._pending.pop(task, None)

    def collect(self) -> tuple[list[int], Float32]:
        """All committed states: clients in ascending order, and their vectors (n, S)."""
        clients = sorted(self._committed)
        rows = np.empty((len(clients), self.n_values), np.float32)
        for row, client in zip(rows, clients, strict=True):
            row[:] = self._committed[client]
        return clients, rows

    def adopt(self, clients: Sequence[int], rows_nS: Float32) -> None:
        """Takes over committed states, as `collect` gave them, perhaps at another worker."""
        assert rows_nS.shape == (len(clients), self.n_values)
        for client, row_S in zip(clients, rows_nS, strict=True):
            self._committed[client] = row_S.copy()

    def clear(self) -> None:
        """Forgets everything, as before the first task."""
        self._committed.clear()
        self._pending.clear()
