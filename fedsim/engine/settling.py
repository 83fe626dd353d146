"""What the server owes to the workers about the states of their clients: which tasks count, and which came to nothing.

It is told with the next command to the worker, which is in time: a client's next task starts only after its former one
has ended, and goes to the same worker. Shape: `S` values of a client's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedsim.comm.transport import Collected, Command, Evaluated
from fedsim.comm.wire import MAX_TASKS
from fedsim.types import EvaluationRow, Float32


class Settling:
    """Tasks whose states are to be committed or discarded, by worker; what comes in from all workers in parts.

    `is_personal`: clients are scored by models of their own, where these are.
    """

    def __init__(self, n_workers: int, n_values: int, is_personal: bool) -> None:
        self.is_personal = is_personal
        self._n_values = n_values
        self._n_workers = n_workers
        self._commit: list[list[int]] = [[] for _ in range(n_workers)]
        self._discard: list[list[int]] = [[] for _ in range(n_workers)]
        self._collected: list[Collected] = []
        self._evaluated: dict[int, list[Evaluated]] = {}

    @property
    def keeps_states(self) -> bool:
        """Whether clients keep anything."""
        return self._n_values > 0

    def committed(self, worker: int, task: int) -> None:
        """The task's event was consumed."""
        if self._n_values:
            self._commit[worker].append(task)

    def discarded(self, worker: int, task: int) -> None:
        """Nobody wants the task any more."""
        if self._n_values:
            self._discard[worker].append(task)

    def told(self, worker: int, command: Command) -> list[Command]:
        """The command with what the worker is to be told, after others if it is more than a command holds."""
        commit, discard = self._commit[worker], self._discard[worker]
        self._commit[worker], self._discard[worker] = [], []
        n = max(len(commit), len(discard), 1)
        cuts = [slice(start, start + MAX_TASKS) for start in range(0, n, MAX_TASKS)]
        before = [Command(commit=commit[cut], discard=discard[cut]) for cut in cuts[:-1]]
        return [*before, command._replace(commit=commit[cuts[-1]], discard=discard[cuts[-1]])]

    # ------------------------------------------------------------------------------ checkpoints

    def collected(self, message: Collected) -> None:
        """A part of the states has come in."""
        self._collected.append(message)

    def is_collected(self, n_workers: int) -> bool:
        """Whether so many workers have sent all that they have, some perhaps twice: asked again in haste."""
        return len({part.worker for part in self._collected if part.is_last}) == n_workers

    def collection(self) -> tuple[list[int], Float32]:
        """What has come in, once: the clients in ascending order, and their vectors (n, S)."""
        parts, self._collected = self._collected, []
        clients = np.concatenate([np.array(part.clients, dtype=np.int64) for part in parts])
        rows_nS = np.concatenate([part.rows.reshape(len(part.clients), self._n_values) for part in parts])
        clients, first = np.unique(clients, return_index=True)
        return clients.tolist(), rows_nS[first]

    def dealt(
        self, clients: Sequence[int], states_nS: Float32, host_of: Callable[[int], int]
    ) -> Iterator[tuple[int, list[int], Float32]]:
        """States by worker, as many at once as a command holds: worker, clients, vectors."""
        for worker in range(self._n_workers):
            rows = [row for row, client in enumerate(clients) if host_of(client) == worker]
            for start in range(0, len(rows), MAX_TASKS):
                some = rows[start : start + MAX_TASKS]
                yield worker, [clients[row] for row in some], states_nS[some]

    # ------------------------------------------------------------------------------ evaluations

    def evaluated(self, message: Evaluated) -> list[Evaluated]:
        """The evaluation that is whole now: at once, or when every worker has scored its own clients."""
        if not self.is_personal:
            return [message]
        parts = self._evaluated.setdefault(message.version, [])
        parts.append(message)
        if len(parts) < self._n_workers:
            return []
        del self._evaluated[message.version]
        return [message._replace(rows=sorted((row for part in parts for row in part.rows), key=_place))]


def _place(row: EvaluationRow) -> tuple[bool, bool, int]:
    """The order of an evaluation's rows: by client, the test set of nobody last; then second models."""
    return row.is_personal, row.client < 0, row.client
