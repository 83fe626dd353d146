"""Who computes on which core, where rank zero's host has as many cores as workers.

Rank zero has no core of its own there, and sleeps most of the time. Left to itself, the system lets it wake up where it
slept last, beside a worker that computes, while another core is idle; and it may wake two workers on one core. Of two
cores a fifth was idle so, in rounds of a small model. So each worker keeps to a core of its own, and takes rank zero to
that before it rings it (`fedsim.comm.bell`): it has just finished something, and has often nothing else to do.

All is left as it is where ranks may not all use the same cores, since a launcher has bound them, where rank zero has a
core to itself, or where there are more workers than cores; and with many workers. When a worker dies, the others stay
where they are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedsim.affinity import allowed, keep_to
from fedsim.comm.bell import Bell

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_WORKERS = 4  # with more, rank zero is mostly at work when somebody rings, and would be moved in the middle of it


def dealt_out(cores: Sequence[frozenset[int]]) -> list[int] | None:
    """The core of each worker of a host, by the cores that rank zero and then each worker may use; None if none is to
    keep to one.

    >>> both = frozenset([2, 3])
    >>> dealt_out([both, both, both]), dealt_out([both, both]), dealt_out([both, frozenset([2]), frozenset([3])])
    ([2, 3], None, None)
    """
    n_workers, all_cores = len(cores) - 1, cores[0]
    if not 2 <= n_workers <= _MOST_WORKERS or len(all_cores) != n_workers or any(some != all_cores for some in cores):
        return None
    return sorted(all_cores)


class Cores(NamedTuple):
    """What a rank may use, where cores were dealt out on its machine; and a worker's `own`."""

    before: frozenset[int] = frozenset()
    own: int | None = None

    @classmethod
    def agreed(cls, comm: MPI.Intracomm, bell: Bell, *, is_wanted: bool) -> Cores:
        """Deals them out, if that is of use; collective. `is_wanted` is what this rank says: all of rank zero's machine
        have to."""
        is_seen = comm.rank == 0 or bell.sees_server
        is_main = threading.current_thread() is threading.main_thread()  # which a process's number stands for
        before = allowed() if is_wanted and is_seen and is_main else frozenset()
        everybody = comm.gather(before)
        are_dealt, own = comm.scatter(None if everybody is None else _told(everybody, bell.reached))
        return cls(before, own) if are_dealt else cls()

    @contextlib.contextmanager
    def kept(self, bell: Bell) -> Iterator[None]:
        """Until the end of the block a worker keeps to its core, and takes rank zero there."""
        if self.own is not None:
            keep_to(frozenset([self.own]))
            bell.takes_to = self.own
        try:
            yield
        finally:
            bell.takes_to = None
            keep_to(self.before)


def _told(everybody: Sequence[frozenset[int]], workers: Sequence[int]) -> list[tuple[bool, int | None]]:
    """What each rank is told: whether it is about it, and its core. `workers` are those on rank zero's machine."""
    cores = dealt_out([everybody[rank] for rank in (0, *workers)])
    told: list[tuple[bool, int | None]] = [(False, None)] * len(everybody)
    if cores is not None:
        told[0] = (True, None)
        for rank, core in zip(workers, cores, strict=True):
            told[rank] = (True, core)
    return told
