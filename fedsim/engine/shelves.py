"""Which worker knows which versions: each is sent to a worker once, and forgotten there when nobody needs it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from fedsim.comm.wire import MAX_TASKS


class Shelves:
    """The versions at each worker, with the number of posted tasks and evaluations that use them there.

    A worker keeps at most `bound` versions, more only while evaluations pin them.
    """

    def __init__(self, n_workers: int, bound: int) -> None:
        self._bound = bound
        self._users: list[dict[int, int]] = [{} for _ in range(n_workers)]
        self._n_pinned = [0] * n_workers
        self._holders: dict[int, set[int]] = {}
        self._to_forget: list[dict[int, None]] = [{} for _ in range(n_workers)]  # in order

    def room(self, worker: int) -> int:
        """How many further versions may be pinned at a worker."""
        return self._bound - self._n_pinned[worker]

    def is_pinned(self, worker: int, version: int) -> bool:
        """Whether something posted there uses the version."""
        return bool(self._users[worker].get(version))

    def pin(self, worker: int, version: int) -> bool:
        """Marks a version as used once more; true if it has to be sent there first."""
        users = self._users[worker]
        is_there = version in users
        if not is_there:
            self._trim(worker)
            users[version] = 0
            self._holders.setdefault(version, set()).add(worker)
            if version in self._to_forget[worker]:  # not told yet: it is still there
                del self._to_forget[worker][version]
                is_there = True
        self._n_pinned[worker] += users[version] == 0
        users[version] += 1
        return not is_there

    def unpin(self, worker: int, version: int) -> None:
        """One use less."""
        users = self._users[worker]
        users[version] -= 1
        self._n_pinned[worker] -= users[version] == 0

    def retire(self, version: int) -> None:
        """Nobody will need the version again: every worker may forget it."""
        for worker in self._holders.pop(version, ()):
            del self._users[worker][version]
            self._to_forget[worker][version] = None

    def forgotten(self, worker: int) -> Sequence[int]:
        """What to tell a worker to forget with the next command, at most `MAX_TASKS` versions at once."""
        waiting = self._to_forget[worker]
        told = list(islice(waiting, MAX_TASKS))
        for version in told:
            del waiting[version]
        return told

    def _trim(self, worker: int) -> None:
        """Forgets versions that are known but unused there, oldest first, until there is room for one more."""
        users = self._users[worker]
        excess = len(users) + 1 - self._bound
        if excess <= 0:
            return
        for version in [v for v, n in users.items() if n == 0][:excess]:
            del users[version]
            self._holders[version].discard(worker)
            self._to_forget[worker][version] = None
