"""Which client trains next: a draw keyed by the task's number among the idle and available clients of a domain.

A domain is the set of clients that an opening may be filled from: everyone, or the members of one tier. In large
domains nothing is enumerated: a candidate is drawn and drawn again while it is absent; only when that fails `_TRIES`
times (almost everyone absent) is the whole domain looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.seeding import Purpose, cycle_orders, uniforms
from fedsim.types import Float64, Int64

SelectionKind = Literal["uniform", "size", "availability", "cyclic"]

_BLOCK = 1024
_TRIES = 64
_ENUMERATE = 1024


class Availability(Protocol):
    """What selection asks of the devices."""

    always_available: bool

    def is_available(self, client: int, time_s: float) -> bool: ...

    def available(self, clients: Int64, time_s: float) -> NDArray[np.bool_]: ...

    def remaining_s(self, clients: Int64, time_s: float) -> Float64: ...

    def next_available_s(self, clients: Int64, time_s: float) -> Float64: ...


class Domain:
    """The clients `members` (everyone below `n_clients` if None), and which of them are busy."""

    def __init__(self, n_clients: int, members: Int64 | None = None) -> None:
        self._members = members
        self.size = n_clients if members is None else int(members.size)
        self._busy: list[int] = []
        self.cumulative_sizes: Float64 | None = None  # kept here by a selection by size

    @property
    def n_idle(self) -> int:
        return self.size - len(self._busy)

    def client(self, position: int) -> int:
        """The client at a position of the domain."""
        return position if self._members is None else int(self._members[position])

    def position(self, client: int) -> int:
        """The position of a client of the domain."""
        return client if self._members is None else int(np.searchsorted(self._members, client))

    def clients(self, positions: Int64) -> Int64:
        """The clients at several positions."""
        return positions if self._members is None else self._members[positions]

    def take(self, position: int) -> None:
        """Marks a position busy."""
        insort(self._busy, position)

    def release(self, position: int) -> None:
        """Marks a position idle again."""
        del self._busy[bisect_left(self._busy, position)]

    def is_busy(self, position: int) -> bool:
        i = bisect_left(self._busy, position)
        return i < len(self._busy) and self._busy[i] == position

    def is_idle(self, position: int, client: int) -> bool:
        """Whether this client has this position, and is idle."""
        return 0 <= position < self.size and self.client(position) == client and not self.is_busy(position)

    def kth_idle(self, k: int) -> int:
        """The position of the k-th idle one, counted from 0: k, and the busy ones up to it."""
        n_before = bisect_right(self._busy, k)
        while (n := bisect_right(self._busy, k + n_before)) != n_before:
            n_before = n
        return k + n_before

    def idle(self) -> Int64:
        """All idle positions, ascending: O(size)."""
        mask = np.ones(self.size, dtype=bool)
        mask[self._busy] = False
        return np.flatnonzero(mask)


class Selection:
    """Draws clients. Task t uses word 0, 1, ... of the stream (SELECTION, task t) as long as candidates are absent.

    The word that the enumeration uses in a large domain is one that no candidate was drawn with: those that failed say
    something of who is absent.
    """

    def __init__(self, kind: SelectionKind, seed: int, devices: Availability, sizes: Int64 | None) -> None:
        self._kind = kind
        self._seed = seed
        self._devices = devices
        self._sizes = sizes
        self._block_number = -1
        self._block: list[float] = []
        self._cycles: list[Int64] = []
        self._cycle_orders: Iterator[Int64] | None = None

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        """The position that task number `task` goes to, or None if nobody idle is available at `time_s`."""
        if domain.n_idle == 0:
            return None
        if self._kind == "cyclic":
            return self._turn(domain, task)
        if self._kind == "uniform" and self._devices.always_available:
            return domain.kth_idle(int(self._uniform(task) * domain.n_idle))
        if domain.size <= _ENUMERATE:
            return self._by_enumeration(domain, time_s, self._uniform(task))
        words = self._words(task)
        position = self._by_rejection(domain, words[:-1], time_s)
        return self._by_enumeration(domain, time_s, words[-1]) if position is None else position

    def _turn(self, domain: Domain, task: int) -> int:
        """The position whose turn it is: each comes once a cycle, in an order drawn for the cycle."""
        cycle, place = divmod(task, domain.size)
        while len(self._cycles) <= cycle:
            if self._cycle_orders is None:
                self._cycle_orders = cycle_orders(self._seed, domain.size)
            self._cycles.append(next(self._cycle_orders))
        return int(self._cycles[cycle][place])

    def next_available_s(self, domain: Domain, time_s: float) -> float:
        """When the next idle client of the domain that can be chosen becomes available; infinite if never."""
        clients = domain.clients(domain.idle())
        if self._kind == "size":
            assert self._sizes is not None
            clients = clients[self._sizes[clients] > 0]
        return float(self._devices.next_available_s(clients, time_s).min()) if clients.size else np.inf

    def _uniform(self, task: int) -> float:
        number, index = divmod(task, _BLOCK)
        if number != self._block_number:
            tasks = np.arange(number * _BLOCK, (number + 1) * _BLOCK)
            self._block = uniforms(self._seed, Purpose.SELECTION, 0, tasks, 1)[:, 0].tolist()
            self._block_number = number
        return self._block[index]

    def _words(self, task: int) -> list[float]:
        words: list[float] = uniforms(self._seed, Purpose.SELECTION, 0, task, _TRIES + 1).tolist()
        return words

    def _by_rejection(self, domain: Domain, words: list[float], time_s: float) -> int | None:
        if self._kind == "availability":
            return self._by_pool(domain, words, time_s)
        for u in words:
            position = self._candidate(domain, u)
            if position is not None and self._devices.is_available(domain.client(position), time_s):
                return position
        return None

    def _candidate(self, domain: Domain, u: float) -> int | None:
        if self._kind == "uniform":
            return domain.kth_idle(int(u * domain.n_idle))
        cumulative = self._cumulative(domain)
        position = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
        return None if domain.is_busy(position) else position

    def _cumulative(self, domain: Domain) -> Float64:
        """Running sums of the sizes; float64, or every search would cast the whole array first."""
        if domain.cumulative_sizes is None:
            assert self._sizes is not None
            sizes = self._sizes[domain.clients(np.arange(domain.size))]
            domain.cumulative_sizes = np.cumsum(sizes).astype(np.float64)
        return domain.cumulative_sizes

    def _by_pool(self, domain: Domain, words: list[float], time_s: float) -> int | None:
        """By availability in a large domain: among uniform candidates, by the time that their windows still last."""
        pool = np.array([domain.kth_idle(int(u * domain.n_idle)) for u in words[1:]], dtype=np.int64)
        return self._weighted(pool, self._devices.remaining_s(domain.clients(pool), time_s), words[0])

    def _by_enumeration(self, domain: Domain, time_s: float, u: float) -> int | None:
        positions = domain.idle()
        clients = domain.clients(positions)
        if self._kind == "availability":
            weights = self._devices.remaining_s(clients, time_s)
        else:
            weights = self._devices.available(clients, time_s).astype(np.float64)
            if self._kind == "size":
                assert self._sizes is not None
                weights *= self._sizes[clients]
        return self._weighted(positions, weights, u)

    @staticmethod
    def _weighted(positions: Int64, weights: Float64, u: float) -> int | None:
        """The position where u falls in the cumulative weights; infinite weights win and share equally."""
        endless = np.isinf(weights)
        if endless.any():
            weights = endless.astype(np.float64)
        cumulative = np.cumsum(weights)
        if cumulative.size == 0 or cumulative[-1] <= 0.0:
            return None
        index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
        return int(positions[min(index, positions.size - 1)])


class AlwaysThere:
    """The availability of clients that are never absent: those of the wall clock."""

    always_available = True

    def is_available(self, client: int, time_s: float) -> bool:
        return True

    def available(self, clients: Int64, time_s: float) -> NDArray[np.bool_]:
        return np.ones(clients.shape, dtype=bool)

    def remaining_s(self, clients: Int64, time_s: float) -> Float64:
        return np.full(clients.shape, np.inf)

    def next_available_s(self, clients: Int64, time_s: float) -> Float64:
        return np.full(clients.shape, time_s)
