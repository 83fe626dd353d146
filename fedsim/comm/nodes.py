"""One copy of a version a node: memory that the workers of a node map, into which one of them receives.

Rank zero says with each version that is coming where it lies (`Ledger`): in a slot that this worker is to receive it
into, in one that another worker of its node receives it into, or nowhere, so that it comes to this worker alone. Who
received one shows its number beside the slot; the others look for it as they look for messages (`Shown`).

Only rank zero gives slots away, and gives one away again when all workers of the node have been told to forget its
version, which they are when nobody uses it any more: so nobody reads what is being written. The memory is a file in
/dev/shm whose name is gone before the first version comes: it outlives the death of any rank, which shared windows of
MPI do not, and vanishes with the last. Its room is taken when it is made (`posix_fallocate`): where there is not
enough, each worker keeps versions for itself, and a warning says so; touching memory without room would be a SIGBUS.

Versions that travel in bundles, being small, are left alone. Shapes: `S` slots, `V` values of a version as it travels.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from fedsim.population.nodecache import VARIABLE
from fedsim.types import Float32, Int64

if TYPE_CHECKING:
    from mpi4py import MPI

LEAST_VALUES = 2**18  # versions that travel alone: smaller ones are not worth a slot
FOLDER = "/dev/shm"
PRIVATE = -1  # a place: comes to this worker alone
_PAGE_BYTES = 4096
_LEAST_SLOTS = 4


class Shelf:
    """A worker's view of its node's memory: `n_slots` rows of `n_values` float32, and which version each shows."""

    def __init__(self, memory: mmap.mmap, n_slots: int, n_values: int) -> None:
        self.n_slots = n_slots
        head_bytes, row_bytes = _head_bytes(n_slots), _row_bytes(n_values)
        self._memory = memory
        self._shown_S: Int64 = np.frombuffer(memory, np.int64, n_slots)  # the version's number + 1
        self._rows: list[Float32] = [
            np.frombuffer(memory, np.float32, n_values, head_bytes + slot * row_bytes)[None] for slot in range(n_slots)
        ]
        self._lock = threading.Lock()

    def row(self, slot: int) -> Float32:
        """A slot's memory, (1, V); nobody shows it until `show`."""
        self._shown_S[slot] = 0
        return self._rows[slot]

    def read(self, slot: int) -> Float32:
        """The version that lies in a slot, (1, V)."""
        return self._rows[slot]

    def show(self, slot: int, version: int) -> None:
        """Says that a version lies whole in a slot."""
        self._fence()
        self._shown_S[slot] = version + 1

    def shows(self, slot: int, version: int) -> bool:
        """Whether it does."""
        is_there = bool(self._shown_S[slot] == version + 1)
        if is_there:
            self._fence()
        return is_there

    def _fence(self) -> None:
        """Nothing written or read before comes to be after: a lock given back and taken again is such a fence."""
        with self._lock:
            pass
        with self._lock:
            pass


class Shown(NamedTuple):
    """What a worker waits for that another one receives: it is asked as a request of MPI is."""

    shelf: Shelf
    slot: int
    version: int

    def Test(self) -> bool:
        """Whether it is there."""
        return self.shelf.shows(self.slot, self.version)


# ------------------------------------------------------------------------------------------ rank zero's end


@dataclass(slots=True)
class _Entry:
    slot: int
    receiver: int
    users: set[int]


@dataclass(slots=True)
class _Node:
    free: list[int]
    entries: dict[int, _Entry] = field(default_factory=dict)


class Ledger:
    """Which version lies in which slot of each node, and which workers know of it.

    `nodes` gives a worker's node and its number of slots, None for a worker that keeps versions for itself.
    """

    def __init__(self, nodes: Sequence[tuple[int, int] | None]) -> None:
        numbers = dict(node for node in nodes if node is not None)
        made = {number: _Node(list(range(n_slots))[::-1]) for number, n_slots in numbers.items()}
        self._node_of = [None if node is None else made[node[0]] for node in nodes]

    def shares(self, worker: int) -> bool:
        """Whether a worker has a node's memory."""
        return self._node_of[worker] is not None

    def place(self, worker: int, version: int) -> int:
        """Where a version is that comes to a worker: `PRIVATE`, or twice its slot, plus 1 if the worker receives it."""
        node = self._node_of[worker]
        if node is None:
            return PRIVATE
        entry = node.entries.get(version)
        if entry is not None:
            entry.users.add(worker)
            return 2 * entry.slot
        if not node.free:
            return PRIVATE
        entry = node.entries[version] = _Entry(node.free.pop(), worker, {worker})
        return 2 * entry.slot + 1

    def forget(self, worker: int, versions: Sequence[int]) -> None:
        """A worker is told to forget versions."""
        node = self._node_of[worker]
        if node is None:
            return
        for version in versions:
            entry = node.entries.get(version)
            if entry is not None:
                entry.users.discard(worker)
                self._let_go(node, version, entry)

    def lose(self, worker: int) -> list[tuple[int, int]]:
        """A worker died: (other worker, version) for what it was to receive, and others may wait for in vain.

        The slots of these are not used again: who is taken for dead and is not may still write there.
        """
        node, self._node_of[worker] = self._node_of[worker], None
        orphans: list[tuple[int, int]] = []
        if node is None:
            return orphans
        for version, entry in list(node.entries.items()):
            entry.users.discard(worker)
            if entry.receiver == worker:
                del node.entries[version]
                orphans += [(other, version) for other in sorted(entry.users)]
            else:
                self._let_go(node, version, entry)
        return orphans

    @staticmethod
    def _let_go(node: _Node, version: int, entry: _Entry) -> None:
        if not entry.users:
            del node.entries[version]
            node.free.append(entry.slot)


# ----------------------------------------------------------------------------------------------- the start


class Opened(NamedTuple):
    """What a rank has of the nodes: a worker its shelf, if it has one; rank zero the ledger, if anybody has one."""

    shelf: Shelf | None = None
    ledger: Ledger | None = None


def open_nodes(comm: MPI.Intracomm, n_values: int, most_slots: int) -> Opened:
    """Memory for versions of `n_values` on every node with several workers, `most_slots` at most; collective.

    Raises nothing: a node without room goes without.
    """
    from mpi4py import MPI

    if n_values < LEAST_VALUES or comm.size < 3:  # the same at every rank, which an environment need not be
        return Opened()
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    workers = host.Split(int(comm.rank == 0), comm.rank)
    shelf = _opened(cast("MPI.Intracomm", workers), n_values, most_slots) if comm.rank and workers.size > 1 else None
    number = workers.bcast(comm.rank, root=0)
    nodes = comm.allgather(None if shelf is None else (number, shelf.n_slots))[1:]
    workers.Free()
    host.Free()
    if comm.rank:
        return Opened(shelf=shelf)
    return Opened(ledger=Ledger(nodes) if any(node is not None for node in nodes) else None)


def _opened(workers: MPI.Intracomm, n_values: int, most_slots: int) -> Shelf | None:
    """The memory of the workers of one node, made by the first of them, if all of them can map it."""
    if "off" in workers.allgather(os.environ.get(VARIABLE, "")):
        return None
    path, n_slots, reason = "", 0, ""
    if workers.rank == 0:
        n_wanted = min(most_slots, max(_LEAST_SLOTS, 2 * workers.size))
        try:
            path, n_slots = _made(n_wanted, n_values)
        except OSError as error:
            reason = error.strerror or str(error)
    path, n_slots, reason = workers.bcast((path, n_slots, reason), root=0)
    memory = None
    if n_slots:
        try:
            memory = _mapped(path, _head_bytes(n_slots) + n_slots * _row_bytes(n_values))
        except OSError as error:
            reason = f"{error.strerror or error}: {path}"
    reasons = [said for said in workers.allgather(reason) if said]
    if workers.rank == 0 and path:
        os.unlink(path)
    if reasons or memory is None:
        if workers.rank == 0:
            warnings.warn(f"{FOLDER}: every worker keeps versions of its own ({reasons[0]})", stacklevel=2)
        return None
    return Shelf(memory, n_slots, n_values)


def _made(n_wanted: int, n_values: int) -> tuple[str, int]:
    """A new file with room for as many versions as are wanted, or for as many as half of the free room holds.

    Raises:
        OSError: there is no room for one, or no such folder.
    """
    free_bytes = free_room(FOLDER)
    n_slots = min(n_wanted, (free_bytes // 2 - _PAGE_BYTES) // _row_bytes(n_values))  # MPI needs room there, too
    if n_slots < 1:
        needed = 2 * (_row_bytes(n_values) + _PAGE_BYTES)
        raise OSError(None, f"{free_bytes:,} bytes are free, a version of {4 * n_values:,} needs {needed:,}")
    descriptor, path = tempfile.mkstemp(prefix="fedsim-", dir=FOLDER)
    try:
        os.posix_fallocate(descriptor, 0, _head_bytes(n_slots) + n_slots * _row_bytes(n_values))
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return path, n_slots


def free_room(folder: str) -> int:
    """Bytes that this user may still take in a folder's file system."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _mapped(path: str, n_bytes: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_size != n_bytes:  # another node's, where /dev/shm is not shared
            raise OSError(None, "not the file that was made")
        return mmap.mmap(descriptor, n_bytes)
    finally:
        os.close(descriptor)


def _head_bytes(n_slots: int) -> int:
    return _whole_pages(8 * n_slots)


def _row_bytes(n_values: int) -> int:
    return _whole_pages(4 * n_values)


def _whole_pages(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES
