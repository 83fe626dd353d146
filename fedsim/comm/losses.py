"""Ranks that die: how MPI says so, whether it can be survived, and what becomes of messages to and from the dead.

Only Open MPI from version 5 on goes on after a death, and only where `mpirun --with-ft ulfm` started it (ULFM:
user-level failure mitigation). A death is then an error of the requests that concern the dead rank; everything between
the living goes on as before. A rank that leaves without a signal is not noticed: so Python's `os._exit` is made a death
by one. What leaves by C's `_exit` is left to the watchdog.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

ENABLED = "OMPI_MCA_mpi_ft_enable"  # set for every rank by mpirun's --with-ft ulfm


class Orphaned(BaseException):
    """Raised at a worker when the server died; no handler of a client's exceptions stops it."""


@contextmanager
def noticed_exits(headline: str) -> Iterator[None]:
    """Meanwhile a call of `os._exit` in this process prints its place under the headline and is a death by SIGKILL."""
    process, exit_unnoticed = os.getpid(), os._exit

    def die(status: int) -> NoReturn:
        if os.getpid() == process:  # not in a child of it
            print(f"{headline}: left by os._exit({status})", file=sys.stderr)
            traceback.print_stack(file=sys.stderr)
            sys.stderr.flush()
            os.kill(process, signal.SIGKILL)
        exit_unnoticed(status)

    os._exit = die
    try:
        yield
    finally:
        os._exit = exit_unnoticed


def is_death(error: BaseException) -> bool:
    """Whether an exception is MPI's word for a rank that died."""
    from mpi4py import MPI

    classes = (getattr(MPI, name, None) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED"))
    return isinstance(error, MPI.Exception) and error.Get_error_class() in tuple(classes)


def why_not_survivable(vendor: tuple[str, tuple[int, ...]], library: str, environ: Mapping[str, str]) -> str:
    """Why a run on this MPI would end with the first rank that dies; empty if it would go on.

    >>> why_not_survivable(("MPICH", (4, 3, 0)), "MPICH 4.3.0", {})
    'MPICH 4.3.0 ends the job when a rank dies; Open MPI 5 or later does not, started with `mpirun --with-ft ulfm`'
    >>> why_not_survivable(("Open MPI", (5, 0, 8)), "Open MPI v5.0.8", {"OMPI_MCA_mpi_ft_enable": "1"})
    ''
    """
    name, version = vendor
    if name != "Open MPI" or version[:1] < (5,):
        return (
            f"{library} ends the job when a rank dies; Open MPI 5 or later does not, started with "
            "`mpirun --with-ft ulfm`"
        )
    if environ.get(ENABLED, "").lower() not in ("1", "true"):
        return f"{library} was not started with `mpirun --with-ft ulfm` (srun cannot ask for it; launch/run does)"
    return ""


class Abandoned:
    """Requests that concern the dead, each with its memory, which is MPI's until the request has ended in some way."""

    def __init__(self) -> None:
        self._requests: list[tuple[Any, Any]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def take(self, requests: Sequence[Any], memory: Any) -> None:
        """Takes requests over that nobody will wait for."""
        self._requests += [(request, memory) for request in requests]
        self.sweep()

    def sweep(self) -> None:
        """Lets go of the requests that have ended, well or not."""
        self._requests = [entry for entry in self._requests if not _has_ended(entry[0])]


def _has_ended(request: Any) -> bool:
    from mpi4py import MPI

    try:
        return bool(request.Test())
    except MPI.Exception:
        return True
