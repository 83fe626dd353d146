"""How a rank that sleeps is woken by another one on the same machine: MPI knows no wait that sleeps.

A rank that looks for messages now and then either burns its core or comes late: with looks every 60 us and sleeps of up
to a millisecond, half of the time of a wave of FedAsync was spent asleep beside messages. So each rank has a counter of
the kernel's (an eventfd), and who has sent it a message adds to it. Nothing depends on that but the time: a ring that
is lost costs a sleep at most.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from array import array
from collections.abc import Iterable, Mapping

import numpy as np
from mpi4py import MPI

_TOKEN_BYTES = 16
_MOST_DESCRIPTORS = 1024  # `select` knows no larger ones


class Bell:
    """A rank's own bell, and those of the ranks that it can ring, by their file descriptors."""

    def __init__(self, own: int | None = None, others: Mapping[int, int] | None = None) -> None:
        self._own = own
        self._others = dict(others or {})

    @classmethod
    def open(cls, comm: MPI.Intracomm) -> Bell:
        """The bell of this rank; collective. Rank zero and a worker ring each other where they share a machine.

        Rank zero makes all of them, and hands each worker two through a socket whose name they alone know.
        """
        token = np.frombuffer(os.urandom(_TOKEN_BYTES), np.uint8).copy()
        comm.Bcast(token)
        names = [f"\0fedsim-{token.tobytes().hex()}-{rank}" for rank in range(comm.size)]
        with _bound(names[comm.rank]) as door:
            comm.Barrier()  # whoever is on this machine can be found now
            bell = _handed_out(door, names) if comm.rank == 0 else cls()
            comm.Barrier()
            return bell if comm.rank == 0 else _taken(door)

    def reaches(self, ranks: Iterable[int]) -> bool:
        """Whether all these ranks ring here when they have sent something."""
        return self._own is not None and all(rank in self._others for rank in ranks)

    def ring(self, rank: int, *, gives_way: bool = False) -> None:
        """Wakes a rank, if it is on this machine. `gives_way`: it may go first if it shares our core."""
        descriptor = self._others.get(rank)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.eventfd_write(descriptor, 1)
            if gives_way:
                os.sched_yield()

    def wait(self, seconds: float) -> None:
        """Sleeps until somebody rings, or has rung since the last call, or so long."""
        if self._own is None:
            time.sleep(seconds)
        elif select.select((self._own,), (), (), seconds)[0]:
            with contextlib.suppress(OSError):
                os.eventfd_read(self._own)


class _NoDoor:
    """Where the system has no such sockets."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *what: object) -> None:
        return None


def _bound(name: str) -> socket.socket | _NoDoor:
    """A socket that others on this machine find by its name, which is gone with it."""
    if not hasattr(os, "eventfd") or not hasattr(socket, "AF_UNIX"):
        return _NoDoor()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    door.setblocking(False)
    try:
        door.bind(name)
    except OSError:
        door.close()
        return _NoDoor()
    return door


def _handed_out(door: socket.socket | None, names: list[str]) -> Bell:
    """Rank zero's bell, once every worker on this machine has got its own."""
    own = None if door is None else _made()
    others: dict[int, int] = {}
    for rank, name in enumerate(names[1:], 1):
        theirs = None if own is None else _made()
        if theirs is None:
            break
        try:
            assert door is not None and own is not None
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", (theirs, own)))
            door.sendmsg([b"\0"], [rights], socket.MSG_DONTWAIT, name)  # `socket.send_fds` forgets the address
        except OSError:  # it is on another machine
            os.close(theirs)
        else:
            others[rank] = theirs
    return Bell(own, others)


def _taken(door: socket.socket | None) -> Bell:
    """A worker's bell, if rank zero has sent it one."""
    if door is None:
        return Bell()
    try:
        _, descriptors, _, _ = socket.recv_fds(door, 1, 2, socket.MSG_DONTWAIT)
    except OSError:
        return Bell()
    if len(descriptors) != 2 or max(descriptors) >= _MOST_DESCRIPTORS:
        return Bell()
    own, servers = descriptors
    return Bell(own, {0: servers})


def _made() -> int | None:
    """A new bell; None if there is none to be had."""
    try:
        descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError:
        return None
    if descriptor >= _MOST_DESCRIPTORS:
        os.close(descriptor)
        return None
    return descriptor
