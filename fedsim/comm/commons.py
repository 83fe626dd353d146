"""What rank zero has in common with the workers of its own host: memory that they all map, in place of messages.

A worker trains into rows of its own there, and its answer says which (`Rows`): rank zero reads them where they are.
Rank zero makes versions in slots there (`Versions`), and its commands say in which. So neither is copied, and what
goes through MPI are commands and answers. Where there is no room left, an update or a version travels as it does
between hosts.

Who writes a row or a slot is told by who holds it. A row is the worker's until its answer is sent; then rank zero's,
which gives it back by a mark beside it, once no array looks there any more. A slot is free once rank zero holds no
array of it and all workers that were told of its version were told to forget it, which they are when none of them uses
it any more. Vectors longer than a piece are left to `fedsim.comm.nodes` and to messages, which come in pieces.

Shapes: `P` values of an update, `V` of a version, `R` rows a worker, `S` slots.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.comm.pieces import ALONE_BYTES
from fedsim.comm.sharedfile import Fence, map_together, whole_pages
from fedsim.recycled import Recycled
from fedsim.types import Float32, Row

if TYPE_CHECKING:
    from mpi4py import MPI

PRIVATE = -1  # a place: comes to this worker alone, by a message
_MOST_BYTES = 2**28  # of the versions of a host, and of the rows of each worker


class Sizes(NamedTuple):
    """What is had in common: `n_rows` rows of `n_update` values a worker, `n_slots` slots of `n_version` values.

    No rows, or no slots, where those travel by messages.
    """

    n_rows: int
    n_update: int
    n_slots: int
    n_version: int
    least_rows: int = 1

    @classmethod
    def fitting(
        cls, n_rows: int, n_update: int, n_slots: int, n_version: int, piece: int, least_rows: int = 1
    ) -> Sizes:
        """As many as are wanted, as far as memory is to be given for them; none of what travels in pieces.

        Fewer rows than `least_rows` are of no use.
        """
        n_rows = min(n_rows, _MOST_BYTES // (4 * n_update)) if n_update <= piece else 0
        n_slots = min(n_slots, _MOST_BYTES // (4 * n_version)) if n_version <= piece else 0
        return cls(n_rows, n_update, n_slots, n_version, least_rows).halved(0)

    def halved(self, n: int) -> Sizes:
        """Half of the rows and slots, `n` times; no rows where those would be too few."""
        n_rows = self.n_rows >> n
        return self._replace(n_rows=n_rows if n_rows >= self.least_rows else 0, n_slots=self.n_slots >> n)

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to share."""
        return not self.n_rows and not self.n_slots

    @property
    def row_bytes(self) -> int:
        """Bytes of a worker's rows, which lie one behind the other."""
        return whole_pages(4 * self.n_update * self.n_rows)

    @property
    def slot_bytes(self) -> int:
        """Bytes from one slot to the next."""
        return whole_pages(4 * self.n_version)

    def n_bytes(self, n_workers: int) -> int:
        """Bytes of it all, with the marks of so many workers' rows in front."""
        return n_workers * (whole_pages(self.n_rows) + self.row_bytes) + self.n_slots * self.slot_bytes


class Rows:
    """The rows of one worker: `take` and `give_back` are its own, `received` is rank zero's.

    Large ones are taken, and given back, one by one. Small ones are taken together, as an array needs them, and rank
    zero gives them back together.
    """

    def __init__(self, memory: mmap.mmap, offset: int, sizes: Sizes) -> None:
        self._memory = memory
        self._n_values = sizes.n_update
        self._are_large = 4 * sizes.n_update >= ALONE_BYTES
        self._marks_R = np.frombuffer(memory, np.uint8, sizes.n_rows, offset)  # 1: not the worker's to write
        self._first = offset + whole_pages(sizes.n_rows)
        self._fence = Fence()
        self._held: dict[int, weakref.ref[Any]] = {}  # by the first row

    def take(self, n: int) -> tuple[Sequence[int], Float32 | list[Float32]] | None:
        """The numbers of `n` free rows, and the rows: (n, P), or if they are large a list; None if there are none."""
        if self._are_large:
            numbers: Sequence[int] = np.flatnonzero(self._marks_R == 0)[:n].tolist()
            if len(numbers) < n:
                return None
        else:
            first = self._marks_R.tobytes().find(bytes(n))
            if first < 0:
                return None
            numbers = range(first, first + n)
        self._fence()
        self._mark(numbers, 1)
        if self._are_large:
            return numbers, [self._at(number, 1) for number in numbers]
        return numbers, self._at(first, n).reshape(n, self._n_values)

    def give_back(self, numbers: Sequence[int]) -> None:
        """Rows are free again."""
        self._fence()
        self._mark(numbers, 0)

    def _mark(self, numbers: Sequence[int], mark: int) -> None:
        if isinstance(numbers, range):
            self._marks_R[numbers.start : numbers.stop] = mark
        else:
            self._marks_R[list(numbers)] = mark

    def received(self, numbers: Sequence[int]) -> Float32 | list[Float32]:
        """Updates that a worker left, as `take` gives rows: given back when they are let go of."""
        self._fence()
        if self._are_large:
            return [self._lent(number, 1) for number in numbers]
        return self._lent(numbers[0], len(numbers)).reshape(len(numbers), self._n_values)

    def _lent(self, first: int, n: int) -> Float32:
        """Rows that are given back with the array; whatever looks into it holds it, since its memory is no array's."""
        rows = self._at(first, n)
        self._held[first] = weakref.ref(rows, partial(self._returned, first, n))
        return rows

    def _returned(self, first: int, n: int, _: object) -> None:
        del self._held[first]
        self.give_back(range(first, first + n))

    def _at(self, first: int, n: int) -> Float32:
        offset = self._first + 4 * first * self._n_values
        return np.frombuffer(self._memory, np.float32, n * self._n_values, offset)


class CommonShelf:
    """A worker's view: its own rows, where it has any, and all versions."""

    def __init__(self, memory: mmap.mmap, sizes: Sizes, worker: int, n_workers: int) -> None:
        """`worker` counts those of the host."""
        self._memory, self._sizes = memory, sizes
        self.rows = Rows(memory, _rows_at(sizes, worker), sizes) if sizes.n_rows else None
        self.has_versions = sizes.n_slots > 0
        self._first = _rows_at(sizes, n_workers)

    def read(self, slot: int) -> Float32:
        """The version in a slot, (V,), read-only."""
        n_values = self._sizes.n_version
        vector = np.frombuffer(self._memory, np.float32, n_values, self._first + slot * self._sizes.slot_bytes)
        vector.flags.writeable = False
        return vector


@dataclass(slots=True)
class _Entry:
    slot: int
    vector: Row
    users: set[int] = field(default_factory=set)


class Versions:
    """Rank zero's slots: where versions are made, and which workers know of what lies there."""

    def __init__(self, memory: mmap.mmap, first: int, sizes: Sizes) -> None:
        self._memory, self._first, self._sizes = memory, first, sizes
        self._free = list(range(sizes.n_slots))[::-1]  # the last one let go of is in somebody's cache
        self._held: dict[int, tuple[int, weakref.ref[Any]]] = {}  # slots by what lies there, an array's identity
        self._entries: dict[int, _Entry] = {}
        self._others = Recycled()

    @property
    def n_slots(self) -> int:
        """Slots, free or not."""
        return self._sizes.n_slots

    def empty(self, n: int) -> Float32:
        """A vector (n,) with anything in it: in a slot, if there is one free."""
        vector = self._taken() if n == self._sizes.n_version else None
        return self._others.empty(n) if vector is None else vector

    def place(self, worker: int, version: int, vector_P: Row) -> int:
        """The slot of a version that a worker is told of, which may be copied there first; PRIVATE if it is in none."""
        entry = self._entries.get(version)
        if entry is None:
            if id(vector_P) not in self._held:
                copy = self._taken()
                if copy is None:
                    return PRIVATE
                copy[:] = vector_P
                vector_P = copy
            entry = self._entries[version] = _Entry(self._held[id(vector_P)][0], vector_P)
        entry.users.add(worker)
        return entry.slot

    def forget(self, worker: int, versions: Sequence[int]) -> None:
        """A worker is told to forget versions."""
        for version in versions:
            entry = self._entries.get(version)
            if entry is not None:
                self._let_go(worker, version, entry)

    def lose(self, worker: int) -> None:
        """A worker died."""
        for version, entry in list(self._entries.items()):
            self._let_go(worker, version, entry)

    def _let_go(self, worker: int, version: int, entry: _Entry) -> None:
        entry.users.discard(worker)
        if not entry.users:
            del self._entries[version]

    def _taken(self) -> Float32 | None:
        if not self._free:
            return None
        slot = self._free.pop()
        offset = self._first + slot * self._sizes.slot_bytes
        vector = np.frombuffer(self._memory, np.float32, self._sizes.n_version, offset)
        self._held[id(vector)] = slot, weakref.ref(vector, partial(self._returned, id(vector)))
        return vector

    def _returned(self, identity: int, _: object) -> None:
        self._free.append(self._held.pop(identity)[0])


class Commons(NamedTuple):
    """Rank zero's end: its versions, and the rows of those workers that are on its host, by the worker's number."""

    versions: Versions
    rows: dict[int, Rows]
    workers: frozenset[int]

    def has_versions(self, worker: int) -> bool:
        """Whether a worker finds versions in the slots."""
        return worker in self.workers and self.versions.n_slots > 0


def open_commons(host: MPI.Intracomm, workers: Sequence[int], sizes: Sizes) -> Commons | CommonShelf | None:
    """What rank zero, or a worker, has in common with the others of the host of rank zero; collective there.

    `workers` are the numbers of the host's other ranks, in their order. None where there is nothing to share or no
    room.
    """
    n_workers = len(workers)
    if not n_workers or sizes.are_none:
        return None
    together = map_together(host, partial(_fitted, sizes, n_workers), "updates and versions travel by messages")
    if together is None:
        return None
    memory, n_halvings = together
    sizes = sizes.halved(n_halvings)
    if host.rank:
        return CommonShelf(memory, sizes, host.rank - 1, n_workers)
    rows = {worker: Rows(memory, _rows_at(sizes, i), sizes) for i, worker in enumerate(workers) if sizes.n_rows}
    return Commons(Versions(memory, _rows_at(sizes, n_workers), sizes), rows, frozenset(workers))


def _fitted(sizes: Sizes, n_workers: int, free_bytes: int) -> tuple[int, int]:
    """The bytes of the sizes, and how often they have to be halved until half of the free room holds them.

    Raises:
        OSError: there is room for nothing.
    """
    n_halvings, most = 0, free_bytes // 2  # MPI needs room there, too
    while (some := sizes.halved(n_halvings)).n_bytes(n_workers) > most:
        n_halvings += 1
    if some.are_none:
        raise OSError(None, f"{free_bytes:,} bytes are free, {2 * sizes.n_bytes(n_workers):,} are needed")
    return some.n_bytes(n_workers), n_halvings


def _rows_at(sizes: Sizes, worker: int) -> int:
    """Where the marks of a host's worker begin, with its rows behind them; of the one past the last: the slots."""
    return worker * (whole_pages(sizes.n_rows) + sizes.row_bytes)
