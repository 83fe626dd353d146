"""Which worker knows which versions: each is sent to a worker once, and forgotten there when nobody needs it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from fedsim.comm.wire import MAX_TASKS


class Shelves:
    """The versions at each worker, with the number of posted tasks and evaluations that use them there.

    A worker keeps at most `bound` versions, and one more for each evaluation under way there.
    """

    def __init__(self, n_workers: int, bound: int) -> None:
        self._bound = bound
        self._users: list[dict[int, int]] = [{} for _ in range(n_workers)]
        self._tasks: list[dict[int, int]] = [{} for _ in range(n_workers)]  # the users that are tasks, where there are
        self._holders: dict[int, set[int]] = {}
        self._to_forget: list[dict[int, None]] = [{} for _ in range(n_workers)]  # in order

    def room(self, worker: int) -> int:
        """For how many further versions tasks may be posted to a worker."""
        return self._bound - len(self._tasks[worker])

    def known(self, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of (worker, version) where the version is at the worker, or on its way there."""
        return [(worker, version) for worker, version in places if version in self._users[worker]]

    def is_used_by_tasks(self, worker: int, version: int) -> bool:
        """Whether a task posted there uses the version."""
        return version in self._tasks[worker]

    def pin_for_tasks(self, worker: int, version: int, n: int = 1) -> bool:
        """`pin`, by `n` tasks."""
        tasks = self._tasks[worker]
        tasks[version] = tasks.get(version, 0) + n
        return self.pin(worker, version, n)

    def unpin_from_tasks(self, worker: int, version: int, n: int = 1) -> None:
        """`unpin`, by `n` tasks."""
        tasks = self._tasks[worker]
        tasks[version] -= n
        if not tasks[version]:
            del tasks[version]
        self.unpin(worker, version, n)

    def pin(self, worker: int, version: int, n: int = 1) -> bool:
        """Marks a version as used `n` times more; true if it has to be sent there first."""
        users = self._users[worker]
        is_there = version in users
        if not is_there:
            self._trim(worker, self._bound - 1)
            users[version] = 0
            self._holders.setdefault(version, set()).add(worker)
            if version in self._to_forget[worker]:  # not told yet: it is still there
                del self._to_forget[worker][version]
                is_there = True
        users[version] += n
        return not is_there

    def unpin(self, worker: int, version: int, n: int = 1) -> None:
        """`n` uses less."""
        self._users[worker][version] -= n
        self._trim(worker, self._bound)

    def retire(self, version: int) -> None:
        """Nobody will need the version again: every worker may forget it."""
        for worker in self._holders.pop(version, ()):
            del self._users[worker][version]
            self._to_forget[worker][version] = None

    def lose(self, worker: int) -> None:
        """The worker died: nothing is there any more."""
        for version in self._users[worker]:
            self._holders[version].discard(worker)
        self._users[worker], self._tasks[worker], self._to_forget[worker] = {}, {}, {}

    def forgotten(self, worker: int) -> Sequence[int]:
        """What to tell a worker to forget with the next command, at most `MAX_TASKS` versions at once."""
        waiting = self._to_forget[worker]
        told = list(islice(waiting, MAX_TASKS))
        for version in told:
            del waiting[version]
        return told

    def _trim(self, worker: int, n_kept: int) -> None:
        """Forgets versions that are known but unused there, oldest first, as far as more than `n_kept` are known."""
        users = self._users[worker]
        excess = len(users) - n_kept
        if excess <= 0:
            return
        for version in [v for v, n in users.items() if n == 0][:excess]:
            del users[version]
            self._holders[version].discard(worker)
            self._to_forget[worker][version] = None
