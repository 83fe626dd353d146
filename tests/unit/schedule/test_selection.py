"""Domains, and the choices that need no statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.schedule.selection import AlwaysThere, Domain, Selection, SelectionKind
from fedsim.types import Float64, Int64


class Present:
    """The clients that are there at every time, the time for which they stay, and how often each way was asked."""

    always_available = False

    def __init__(self, is_there: Callable[[Int64], NDArray[np.bool_]], stays_s: float = 1.0) -> None:
        self._is_there, self._stays_s = is_there, stays_s
        self.n_single = self.n_bulk = 0

    def is_available(self, client: int, time_s: float) -> bool:
        self.n_single += 1
        return bool(self._is_there(np.array([client]))[0])

    def available(self, clients: Int64, time_s: float) -> NDArray[np.bool_]:
        self.n_bulk += 1
        return self._is_there(clients)

    def remaining_s(self, clients: Int64, time_s: float) -> Float64:
        return np.where(self._is_there(clients), self._stays_s, 0.0)

    def next_available_s(self, clients: Int64, time_s: float) -> Float64:
        return np.where(self._is_there(clients), time_s, time_s + 1.0 + clients)


def test_a_domain_of_everyone() -> None:
    domain = Domain(5)
    domain.take(3)
    domain.take(0)
    assert (domain.size, domain.n_idle) == (5, 3)
    assert domain.idle().tolist() == [1, 2, 4] == [domain.kth_idle(k) for k in range(3)]
    assert [domain.is_busy(p) for p in range(5)] == [True, False, False, True, False]
    domain.release(3)
    assert domain.idle().tolist() == [1, 2, 3, 4]


def test_a_domain_of_members() -> None:
    domain = Domain(100, np.array([3, 7, 50]))
    assert domain.size == 3 and domain.clients(np.array([2, 0])).tolist() == [50, 3]
    assert [domain.position(domain.client(p)) for p in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("n", [3, 2000])
@pytest.mark.parametrize("kind", ["uniform", "size", "availability"])
def test_nobody_idle_and_nobody_there(kind: SelectionKind, n: int) -> None:
    sizes = np.full(n, 4)
    absent = Selection(kind, 1, Present(lambda clients: clients < 0), sizes)
    assert absent.choose(Domain(n), 0, 0.0) is None
    domain = Domain(n)
    for position in range(n):
        domain.take(position)
    assert Selection(kind, 1, AlwaysThere(), sizes).choose(domain, 0, 0.0) is None


@pytest.mark.parametrize("n", [3, 2000])
@pytest.mark.parametrize("kind", ["uniform", "size", "availability"])
def test_the_last_idle_one_that_is_there_is_found(kind: SelectionKind, n: int) -> None:
    # All busy but 0 and n - 1, of which 0 is absent. Sizes differ, so that a busy one is the likeliest by size.
    sizes = np.arange(1, n + 1)
    selection = Selection(kind, 1, Present(lambda clients: clients > 0), sizes)
    domain = Domain(n)
    for position in range(1, n - 1):
        domain.take(position)
    assert {selection.choose(domain, task, 0.0) for task in range(20)} == {n - 1}


def test_rejection_and_enumeration_are_both_reached() -> None:
    # Half of 2,000 there: drawn at once. One of 2,000 there: 64 draws fail (.9995^64 = .97), then all are looked at.
    many, few = Present(lambda clients: clients % 2 == 0), Present(lambda clients: clients == 1234)
    often = [Selection("uniform", 1, many, None).choose(Domain(2000), task, 0.0) for task in range(50)]
    assert all(position is not None and position % 2 == 0 for position in often)
    assert many.n_bulk == 0 and 50 < many.n_single < 200
    rare = [Selection("uniform", 1, few, None).choose(Domain(2000), task, 0.0) for task in range(20)]
    assert rare == [1234] * 20
    assert few.n_bulk >= 15 and few.n_single > 15 * 64
    small = Present(lambda clients: clients % 2 == 0)
    Selection("uniform", 1, small, None).choose(Domain(1024), 0, 0.0)
    assert (small.n_single, small.n_bulk) == (0, 1)


def test_a_choice_depends_on_the_task_and_the_state_alone() -> None:
    there = Present(lambda clients: clients % 3 > 0)
    forward = [Selection("uniform", 9, there, None).choose(Domain(5000), task, 0.0) for task in range(30)]
    one = Selection("uniform", 9, there, None)
    assert [one.choose(Domain(5000), task, 0.0) for task in reversed(range(30))] == forward[::-1]
    assert len(set(forward)) > 25
    assert [Selection("uniform", 8, there, None).choose(Domain(5000), task, 0.0) for task in range(30)] != forward


def test_blocks_of_draws_join() -> None:
    # Draws are made 1,024 tasks at a time; a block's borders must not be seen.
    domain, once = Domain(10**6), Selection("uniform", 9, AlwaysThere(), None)
    tasks = [1022, 1023, 1024, 1025, 2**33]
    assert [once.choose(domain, task, 0.0) for task in tasks] == [
        Selection("uniform", 9, AlwaysThere(), None).choose(domain, task, 0.0) for task in tasks
    ]


def test_clients_without_samples_are_never_chosen_by_size() -> None:
    sizes = np.array([0, 5, 0, 5, 0])
    selection = Selection("size", 2, AlwaysThere(), sizes)
    assert {selection.choose(Domain(5), task, 0.0) for task in range(50)} == {1, 3}
    large = np.zeros(3000, dtype=np.int64)
    large[[7, 2999]] = 3
    selection = Selection("size", 2, AlwaysThere(), large)
    assert {selection.choose(Domain(3000), task, 0.0) for task in range(50)} == {7, 2999}


def test_clients_without_samples_are_not_waited_for_by_size() -> None:
    # Client 1 is busy, 0 and 2 are there but have no samples: nothing is to be waited for. Client 3 comes at 4.
    selection = Selection("size", 2, Present(lambda clients: clients < 3), np.array([0, 5, 0]))
    domain = Domain(3)
    domain.take(1)
    assert selection.choose(domain, 0, 0.0) is None
    assert selection.next_available_s(domain, 0.0) == math.inf
    later = Selection("size", 2, Present(lambda clients: clients < 3), np.array([0, 5, 0, 6]))
    domain = Domain(4)
    domain.take(1)
    assert later.next_available_s(domain, 0.0) == 4.0


def test_next_available() -> None:
    there = Present(lambda clients: clients < 0)
    domain = Domain(10, np.array([4, 6, 8]))
    domain.take(0)
    assert Selection("uniform", 1, there, None).next_available_s(domain, 2.0) == 2.0 + 1.0 + 6.0
    assert Selection("uniform", 1, there, None).next_available_s(Domain(0), 2.0) == math.inf


def test_who_stays_for_ever_is_preferred_by_availability() -> None:
    class Mixed(Present):
        def remaining_s(self, clients: Int64, time_s: float) -> Float64:
            return np.where(clients >= 8, np.inf, 1e9)

    for n in (10, 2000):
        selection = Selection("availability", 1, Mixed(lambda clients: clients >= 0), None)
        chosen = {selection.choose(Domain(n), task, 0.0) for task in range(60)}
        assert None not in chosen and min(c for c in chosen if c is not None) >= 8
        assert len(chosen) > 1
