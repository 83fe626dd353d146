"""What both ends of the transport over MPI have: a communicator a protocol, and sends under way.

Buffers belong to MPI until their request completes, so every request is kept together with what it sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from mpi4py import MPI

from fedsim.comm.bell import Bell
from fedsim.comm.cores import Cores
from fedsim.comm.losses import Abandoned
from fedsim.comm.openmpi import stop_yielding
from fedsim.comm.pieces import ALONE_BYTES, PIECE, spans
from fedsim.comm.sleeping import wake_in_time

LONGEST_SLEEP_S = 5e-4  # of a worker without work, whose core nobody else needs; while something is being sent
LONGEST_WAIT_S = 5e-3  # of one that is rung
_BUNDLE = 2**18  # elements: versions below `ALONE_BYTES` travel together, as many as fit into 1 MiB


class Channels(NamedTuple):
    """One communicator a protocol, all with the server as rank zero; `piece` elements travel in a message at most.

    Who has sent something rings the other's `bell`. `cores` says where the rank runs.
    """

    commands: MPI.Intracomm
    versions: MPI.Intracomm
    replies: MPI.Intracomm
    rows: MPI.Intracomm
    piece: int = PIECE
    bell: Bell = Bell()
    cores: Cores = Cores()

    @classmethod
    def open(cls, comm: MPI.Intracomm, piece: int = PIECE, *, deals_cores: bool = False) -> Channels:
        """Duplicates of `comm`; collective, and the last thing that waits inside MPI."""
        bell = Bell.open(comm)
        cores = Cores.agreed(comm, bell, is_wanted=deals_cores)
        channels = cls(comm.Dup(), comm.Dup(), comm.Dup(), comm.Dup(), piece, bell, cores)
        stop_yielding()
        wake_in_time()
        return channels


def bundles(n_versions: int, n_parameters: int) -> list[int]:
    """How many versions travel in each message: both ends count alike."""
    most = 1 if 4 * n_parameters >= ALONE_BYTES else _BUNDLE // n_parameters  # copies of large ones cost more
    full, rest = divmod(n_versions, most)
    return [most] * full + [rest] * (rest > 0)


def isend(comm: MPI.Intracomm, flat: Any, rank: int, piece: int) -> list[MPI.Request]:
    return [comm.Isend(flat[start:stop], dest=rank) for start, stop in spans(flat.size, piece)]


def irecv(comm: MPI.Intracomm, flat: Any, rank: int, piece: int) -> list[MPI.Request]:
    return [comm.Irecv(flat[start:stop], source=rank) for start, stop in spans(flat.size, piece)]


class Outbox:
    """Sends under way, oldest first, each with the memory it needs until it is done."""

    def __init__(self) -> None:
        self._sends: deque[tuple[MPI.Request, Any]] = deque()

    def put(self, requests: Sequence[MPI.Request], memory: Any) -> None:
        self._sends.extend((request, memory) for request in requests)

    def __len__(self) -> int:
        return len(self._sends)

    def advance(self) -> bool:
        """Forgets the sends that are done; true when none is left."""
        sends = self._sends
        while sends and sends[0][0].Test():
            sends.popleft()
        return not sends

    def abandon(self, abandoned: Abandoned) -> None:
        """Hands over what is still under way."""
        while self._sends:
            request, memory = self._sends.popleft()
            abandoned.take([request], memory)
