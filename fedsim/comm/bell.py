"""How a rank that sleeps is woken by another one on the same machine: MPI knows no wait that sleeps.

A rank that looks for messages now and then either burns its core or comes late: with looks every 60 us and sleeps of up
to a millisecond, half of the time of a wave of FedAsync was spent asleep beside messages. So each rank has a counter of
the kernel's (an eventfd), and who has sent it a message adds to it. Nothing depends on that but the time: a ring that
is lost costs a sleep at most.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from mpi4py import MPI

_TOKEN_BYTES = 16
_CREDENTIALS = struct.Struct("3i")  # process, user, group of who sent a datagram
_MOST_LETTERS = 64  # datagrams of others that are looked at


class Bell:
    """A rank's own bell, and those of the ranks that it can ring, by their file descriptors.

    `server` is rank zero's process as a worker sees it, 0 where it does not. Who `takes_to` a core takes rank zero
    there with each ring that gives way (`fedsim.comm.cores`).
    """

    def __init__(self, own: int | None = None, others: Mapping[int, int] | None = None, server: int = 0) -> None:
        self._own = own
        self._others = dict(others or {})
        self._server = server
        self.takes_to: int | None = None

    @classmethod
    def open(cls, comm: MPI.Intracomm) -> Bell:
        """The bell of this rank; collective. Rank zero and a worker ring each other where they share a machine.

        Rank zero makes all of them, and hands each worker two through a socket that takes them from this user alone.
        """
        token = np.frombuffer(os.urandom(_TOKEN_BYTES), np.uint8).copy()
        comm.Bcast(token)
        names = [f"\0fedsim-{token.tobytes().hex()}-{rank}" for rank in range(comm.size)]
        with _bound(names[comm.rank]) as door:
            comm.Barrier()  # whoever is on this machine can be found now
            bell = _handed_out(door, names) if comm.rank == 0 else cls()
            comm.Barrier()
            if comm.rank > 0:
                bell = _taken(door)
        have_one = comm.gather(bell._own is not None)
        if have_one is not None:
            bell._forget(rank for rank, has_one in enumerate(have_one) if not has_one)
        return bell

    def close(self) -> None:
        """Gives its descriptors back; it rings and is rung no more."""
        own, self._own = self._own, None
        for descriptor in [own, *self._others.values()]:
            if descriptor is not None:
                os.close(descriptor)
        self._others.clear()

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _forget(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            if (descriptor := self._others.pop(rank, None)) is not None:
                os.close(descriptor)

    def reaches(self, ranks: Iterable[int]) -> bool:
        """Whether all these ranks ring here when they have sent something."""
        return self._own is not None and all(rank in self._others for rank in ranks)

    @property
    def reached(self) -> Sequence[int]:
        """The ranks that it rings."""
        return sorted(self._others)

    @property
    def sees_server(self) -> bool:
        """Whether a worker could take rank zero to a core."""
        return self._server > 0

    def ring(self, rank: int, *, gives_way: bool = False) -> None:
        """Wakes a rank, if it is on this machine. `gives_way`: it may go first if it shares our core."""
        descriptor = self._others.get(rank)
        if descriptor is not None:
            if gives_way and self.takes_to is not None:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self._server, (self.takes_to,))
            with contextlib.suppress(OSError):
                os.eventfd_write(descriptor, 1)
            if gives_way:
                os.sched_yield()

    def wait(self, seconds: float) -> bool:
        """Sleeps until somebody rings, or has rung since the last call, or so long; whether it was rung."""
        if self._own is None:
            time.sleep(seconds)
            return False
        if not select.select((self._own,), (), (), seconds)[0]:
            return False
        with contextlib.suppress(OSError):
            os.eventfd_read(self._own)
        return True


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
        door.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
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
    for _ in range(_MOST_LETTERS):
        try:
            process, user, descriptors = _letter(door)
        except OSError:  # there is none, or none any more
            break
        if user == os.getuid() and len(descriptors) == 2 and max(descriptors) < _most_descriptors():
            return Bell(descriptors[0], {0: descriptors[1]}, process)
        for descriptor in descriptors:
            os.close(descriptor)
    return Bell()


def _letter(door: socket.socket) -> tuple[int, int, list[int]]:
    """The next datagram: the process and the user that sent it, as the system says, and the descriptors in it. OSError
    without one."""
    process, user, descriptors = 0, -1, array("i")
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(2 * descriptors.itemsize)
    for level, kind, data in door.recvmsg(1, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)[1]:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            process, user, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return process, user, descriptors.tolist()


def _most_descriptors() -> int:
    """The largest descriptor that a bell may have, and one more: `select` knows 1,024, and half of what there are is
    left for other things."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(1024, soft if soft > 0 else 1024) // 2


def _made() -> int | None:
    """A new bell; None if there is none to be had."""
    try:
        descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError:
        return None
    if descriptor >= _most_descriptors():
        os.close(descriptor)
        return None
    return descriptor
