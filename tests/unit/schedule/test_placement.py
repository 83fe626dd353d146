"""Where clients are hosted, tiers, and the wall clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.schedule.clock import WallClock
from fedsim.schedule.placement import ANY_WORKER, among, balanced_hosts, placement
from fedsim.schedule.tiers import tiers


def test_home_deals_by_number() -> None:
    host_of = placement("home", 3, None)
    assert [host_of(client) for client in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_dynamic_hosts_nobody() -> None:
    assert {placement("dynamic", 3, None)(client) for client in range(7)} == {ANY_WORKER}


def test_balanced_deals_the_largest_to_the_least_loaded() -> None:
    # 9 to worker 0, 8 to 1, 7 to 1 (15 in all), 5 to 0 (14), the first 4 to 0 (18), the second to 1 (19).
    hosts = balanced_hosts(np.array([4, 9, 5, 8, 7, 4]), 2)
    assert hosts.tolist() == [0, 0, 0, 1, 1, 1]
    host_of = placement("balanced", 2, np.array([4, 9, 5, 8, 7, 4]))
    assert [host_of(client) for client in range(6)] == hosts.tolist()


def test_balanced_equal_sizes_are_dealt_in_turn() -> None:
    assert balanced_hosts(np.full(6, 3), 3).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("n_workers", [1, 2, 5, 64])
def test_balanced_is_within_grahams_bound(n_workers: int) -> None:
    # LPT's makespan is at most 4/3 - 1/(3m) of the best, which is at least the mean load and the largest size.
    sizes = np.random.default_rng(4).integers(1, 100, 300)
    loads = np.bincount(balanced_hosts(sizes, n_workers), weights=sizes, minlength=n_workers)
    best = max(sizes.sum() / n_workers, sizes.max())
    assert loads.sum() == sizes.sum() and loads.max() <= (4 / 3 - 1 / (3 * n_workers)) * best + 1


def test_tiers_are_equal_parts_by_time() -> None:
    parts = tiers(np.array([5.0, 1.0, 3.0, 1.0, 9.0, 2.0, 2.0]), 3)
    assert [part.tolist() for part in parts] == [[1, 3, 5], [2, 6], [0, 4]]  # equal times by number
    assert all(part.dtype == np.int64 for part in parts)


def test_the_wall_clock_counts_from_its_start() -> None:
    readings = iter([100.0, 100.5, 103.0])
    clock = WallClock(offset_s=7.0, source=lambda: next(readings))
    assert clock() == 7.5 and clock() == 10.0


@pytest.mark.parametrize("kind", ["home", "balanced"])
def test_only_the_clients_of_the_dead_move(kind: Any) -> None:
    sizes = np.arange(1, 101)
    host_of = placement(kind, 4, sizes)
    moved = among([0, 3], 4, host_of)
    hosts = [(host_of(client), moved(client)) for client in range(100)]
    assert all(after == before for before, after in hosts if before in (0, 3))
    new = [after for before, after in hosts if before not in (0, 3)]
    assert set(new) == {0, 3} and 0.3 < new.count(0) / len(new) < 0.7
    assert [among([0, 3], 4, host_of)(client) for client in range(100)] == [after for _, after in hosts]


def test_nobody_hosts_among_the_living_either() -> None:
    assert among([1], 3, placement("dynamic", 3, None))(5) == ANY_WORKER
