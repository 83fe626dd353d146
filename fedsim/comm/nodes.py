"""One copy of a version a node: memory that the workers of a node map, into which one of them receives.

Rank zero says with each version that is coming where it lies (`Ledger`): in a slot that this worker is to receive it
into, in one that another worker of its node receives it into, or nowhere, so that it comes to this worker alone. Who
received one shows its number beside the slot; the others look for it as they look for messages (`Shown`). On rank
zero's own node versions that travel in one piece lie where rank zero put them (`fedsim.comm.commons`).

Only rank zero gives slots away, and gives one away again when all workers of the node have been told to forget its
version, which they are when nobody uses it any more: so nobody reads what is being written. Where there is no room for
such memory (`fedsim.comm.sharedfile`) each worker keeps versions for itself.

Versions that travel in bundles, being small, are left alone. Shapes: `S` slots, `V` values of a version as it travels.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from fedsim.comm.commons import PRIVATE, Commons, CommonShelf, Sizes, open_commons
from fedsim.comm.sharedfile import PAGE_BYTES, Fence, map_together, whole_pages
from fedsim.types import Float32, Int64

if TYPE_CHECKING:
    from mpi4py import MPI

LEAST_VALUES = 2**18  # versions that travel alone: smaller ones are not worth a slot
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
        self._fence = Fence()

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
    """What a rank has of the nodes: a worker its shelf, if it has one; rank zero the ledger, if anybody has one.

    And on rank zero's own node, what all its ranks have in common (`fedsim.comm.commons`).
    """

    shelf: Shelf | None = None
    ledger: Ledger | None = None
    commons: Commons | None = None
    common_shelf: CommonShelf | None = None


def open_nodes(comm: MPI.Intracomm, n_values: int, most_slots: int, sizes: Sizes) -> Opened:
    """Memory for versions of `n_values` on every node with several workers, `most_slots` at most; collective.

    On rank zero's node `sizes` says what its ranks are to have in common; where those are versions, they lie there.
    Raises nothing: a node without room goes without.
    """
    from mpi4py import MPI

    if comm.size < 2:
        return Opened()
    host = cast("MPI.Intracomm", comm.Split_type(MPI.COMM_TYPE_SHARED))
    ranks = host.allgather(comm.rank)
    opened = Opened()
    if ranks[0] == 0:
        common = open_commons(host, [rank - 1 for rank in ranks[1:]], sizes)
        if isinstance(common, Commons):
            opened = opened._replace(commons=common)
        elif common is not None:
            opened = opened._replace(common_shelf=common)
    if n_values >= LEAST_VALUES and comm.size > 2:  # the same at every rank, which an environment need not be
        has_versions = opened.commons is not None and opened.commons.versions.n_slots > 0
        has_versions |= opened.common_shelf is not None and opened.common_shelf.has_versions
        opened = _with_shelf(comm, host, n_values, 0 if has_versions else most_slots, opened)
    host.Free()
    return opened


def _with_shelf(comm: MPI.Intracomm, host: MPI.Intracomm, n_values: int, most_slots: int, opened: Opened) -> Opened:
    """What was opened, with the shelf of a node's workers beside it; collective."""
    workers = cast("MPI.Intracomm", host.Split(int(comm.rank == 0), comm.rank))
    has_shelf = comm.rank > 0 and workers.size > 1 and most_slots > 0
    shelf = _opened(workers, n_values, most_slots) if has_shelf else None
    number = workers.bcast(comm.rank, root=0)
    nodes = comm.allgather(None if shelf is None else (number, shelf.n_slots))[1:]
    workers.Free()
    if comm.rank:
        return opened._replace(shelf=shelf)
    return opened._replace(ledger=Ledger(nodes)) if any(node is not None for node in nodes) else opened


def _opened(workers: MPI.Intracomm, n_values: int, most_slots: int) -> Shelf | None:
    """The memory of the workers of one node, made by the first of them, if all of them can map it."""
    n_wanted = min(most_slots, max(_LEAST_SLOTS, 2 * workers.size))
    together = map_together(workers, partial(_size, n_wanted, n_values), "every worker keeps versions of its own")
    return None if together is None else Shelf(*together, n_values)


def _size(n_wanted: int, n_values: int, free_bytes: int) -> tuple[int, int]:
    """Bytes for as many versions as are wanted, or for as many as half of the free room holds, and how many those are.

    Raises:
        OSError: there is no room for one.
    """
    n_slots = min(n_wanted, (free_bytes // 2 - PAGE_BYTES) // _row_bytes(n_values))  # MPI needs room there, too
    if n_slots < 1:
        needed = 2 * (_row_bytes(n_values) + PAGE_BYTES)
        raise OSError(None, f"{free_bytes:,} bytes are free, a version of {4 * n_values:,} needs {needed:,}")
    return _head_bytes(n_slots) + n_slots * _row_bytes(n_values), n_slots


def _head_bytes(n_slots: int) -> int:
    return whole_pages(8 * n_slots)


def _row_bytes(n_values: int) -> int:
    return whole_pages(4 * n_values)
