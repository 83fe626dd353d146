"""Who computes on which core, where rank zero's host has as many cores as workers.

Rank zero has no core of its own there, and sleeps most of the time. Left to itself, the system lets it wake up where it
slept last, beside a worker that computes, while another core is idle; and it may wake two workers on one core. Of two
cores a fifth was idle so, in rounds of a small model. So each worker keeps to a core of its own, and takes rank zero to
that before it rings it (`fedsim.comm.bell`): it has just finished something, and has often nothing else to do.

Where a launcher has bound ranks already, where rank zero has a core to itself, or where there are more workers than
cores, all is left as it is; and so it is with many workers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from mpi4py import MPI

from fedsim.comm.bell import Bell

_MOST_WORKERS = 4  # with more, rank zero is mostly at work when somebody rings, and would be moved in the middle of it


def dealt_out(allowed: Sequence[frozenset[int]]) -> list[int] | None:
    """The core of each worker of a host, by the cores that rank zero and then each worker may use; None if none is to
    keep to one.

    >>> both = frozenset([2, 3])
    >>> dealt_out([both, both, both]), dealt_out([both, both]), dealt_out([both, frozenset([2]), frozenset([3])])
    ([2, 3], None, None)
    """
    n_workers, cores = len(allowed) - 1, allowed[0]
    if not 2 <= n_workers <= _MOST_WORKERS or len(cores) != n_workers or any(others != cores for others in allowed):
        return None
    return sorted(cores)


@contextlib.contextmanager
def shared_out(comm: MPI.Intracomm, bell: Bell, *, is_wanted: bool) -> Iterator[None]:
    """Until the end of the block each worker on rank zero's machine has its core, if that is of use; collective.

    `is_wanted` is what this rank says: all of that machine have to.
    """
    is_possible = is_wanted and (comm.rank == 0 or bell.sees_server)
    is_possible = is_possible and threading.current_thread() is threading.main_thread()  # a process's number means that
    before = _allowed() if is_possible else frozenset()
    everybody = comm.gather(before)
    core = comm.scatter(None if everybody is None else _told(everybody, bell.reached))
    if core is not None:
        _keep_to(frozenset([core]))
        bell.takes_to = core
    try:
        yield
    finally:
        bell.takes_to = None
        if before:
            _keep_to(before)


def _told(everybody: Sequence[frozenset[int]], workers: Sequence[int]) -> list[int | None]:
    """What each rank is told: its core if it is to keep to one. `workers` are those on rank zero's machine."""
    cores = dealt_out([everybody[rank] for rank in (0, *workers)])
    by_rank = dict(zip(workers, cores, strict=True)) if cores is not None else {}
    return [by_rank.get(rank) for rank in range(len(everybody))]


def _allowed() -> frozenset[int]:
    """The cores that this rank may use; none where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _keep_to(cores: frozenset[int]) -> None:
    with contextlib.suppress(OSError):  # the system may have taken cores away meanwhile
        os.sched_setaffinity(0, cores)
