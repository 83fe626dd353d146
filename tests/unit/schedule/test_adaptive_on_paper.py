"""Policies that decide by what they saw, on paper: lag bounds, Pisces' pace, SAFA's rounds, FedCompass' groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.config import BufferedSchedule, CompassSchedule
from fedsim.schedule.building import build_policy, pace_and_learners
from fedsim.schedule.schedule import Schedule
from fedsim.schedule.selection import AlwaysThere, Domain, Selection
from fedsim.types import Event, EventKind


def test_a_version_waits_for_who_would_fall_too_far_behind(given_devices: Any, drive: Any) -> None:
    # Task 0 takes 10. Versions 1 and 2 leave it 2 behind; a third would leave it 3: tasks 3 and on wait for it.
    policy = {"policy": "buffered", "concurrency": 2, "buffer": 1, "max_lag": 2}
    assert drive(policy, given_devices([10, 1, 1, 1, 8])).until(10) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 start 2 from 1",
        "2 apply 2 stale 0",
        "2 version 2",
        "2 start 3 from 2",
        "3 apply 3 stale 0",
        "3 start 4 from 2",
        "10 apply 0 stale 2",
        "10 version 3",
        "10 start 5 from 3",
    ]


def test_a_version_does_not_wait_for_the_lost(given_devices: Any, drive: Any) -> None:
    policy = {"policy": "buffered", "concurrency": 2, "buffer": 1, "max_lag": 1}
    assert drive(policy, given_devices([10, 1, 1], lost=[0])).until(10)[-4:] == [
        "2 start 3 from 1",
        "10 lost 0",
        "10 version 2",
        "10 start 4 from 2",
    ]


def test_a_version_waits_in_a_run_that_goes_on_from_a_later_one(work: Any) -> None:
    """As on the wall clock after a resume. Task 1 stays: 6 leaves it one behind, 7 would leave it two."""
    policy = build_policy(BufferedSchedule(policy="buffered", concurrency=2, buffer=1, max_lag=1), 9)
    schedule = Schedule(policy, [Domain(9)], Selection("uniform", 3, AlwaysThere(), None), work(), None)
    schedule.begin_after(5, 0, {}, 0.0)
    versions = []
    for number in (0, 2, 3, 1):
        assert schedule.dispatch(0.0)
        schedule.step(Event(0.0, EventKind.ARRIVAL, number))
        versions.append(schedule.version)
    assert versions == [6, 6, 6, 7]


def test_pisces_waits_a_part_of_the_longest_latency(given_devices: Any, drive: Any) -> None:
    # Nobody's latency is known at 1 and 2: each arrival makes a version. At 4 client 0's is 4, client 1's 1, and
    # only client 1 is at work, later nobody. At 5 client 1 is at work, latency 2: 4 + 2/2 = 5 is due. At 5.25 the
    # next is due at 5 + 2/2 = 6: a timer makes it.
    policy = {"policy": "pisces", "concurrency": 2, "bound": 2.0}
    assert drive(policy, given_devices([4, 1, 1, 2, 1, 10, 0.25, 9])).until(6) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 start 2 from 1",
        "2 apply 2 stale 0",
        "2 version 2",
        "2 start 3 from 2",
        "4 apply 0 stale 2",
        "4 version 3",
        "4 apply 3 stale 1",
        "4 version 4",
        "4 start 4 from 4",
        "4 start 5 from 4",
        "5 apply 4 stale 0",
        "5 version 5",
        "5 start 6 from 5",
        "5.25 apply 6 stale 0",
        "5.25 start 7 from 5",
        "6 version 6",
    ]


def test_pisces_waits_no_longer_once_the_slowest_is_back(given_devices: Any, drive: Any) -> None:
    # Latencies at 8: client 0 has 8, client 1 has 4, client 2 has 8. At 8.5 client 2 is back: 8 + 8/2 = 12 is due.
    # At 9 client 0 is back, and client 1 is the slowest: 8 + 4/2 = 10. The timer of 12 then finds nothing to do.
    policy = {"policy": "pisces", "concurrency": 3, "bound": 2.0}
    run = drive(policy, given_devices([8, 4, 8, 4, 1, 9, 0.5]), n_clients=3)
    assert run.until(16)[-7:] == [
        "8 start 5 from 3",
        "8 start 6 from 3",
        "8.5 apply 6 stale 0",
        "8.5 start 7 from 3",
        "9 apply 4 stale 0",
        "9 start 8 from 3",
        "10 version 4",
    ]
    assert run.schedule.peek().kind is EventKind.ARRIVAL, "no timer is left"


def test_safa_aborts_who_is_too_far_behind(given_devices: Any, drive: Any) -> None:
    # Three clients, quota 1, tolerance 1. Version 2 leaves task 0 two behind; task 3 is one behind and counts.
    policy = {"policy": "safa", "quota": 1, "lag_tolerance": 1}
    assert drive(policy, given_devices([3, 1, 2, 1]), n_clients=3).until(2)[3:] == [
        "1 apply 1 stale 0",
        "1 version 1",
        "1 start 3 from 1",
        "2 apply 2 stale 1",
        "2 aborted 0",
        "2 version 2",
        "2 apply 3 stale 1",
        "2 version 3",
        "2 start 4 from 3",
        "2 start 5 from 3",
        "2 start 6 from 3",
    ]


def test_safa_prefers_who_was_not_picked(given_devices: Any, drive: Any) -> None:
    # Client 0 makes version 1, and is back at 2: it has to wait for client 1, and comes after it.
    policy = {"policy": "safa", "quota": 1, "lag_tolerance": 5}
    assert drive(policy, given_devices([1, 5, 1]), n_clients=2).until(5)[2:] == [
        "1 apply 0 stale 0",
        "1 version 1",
        "1 start 2 from 1",
        "5 apply 1 stale 1",
        "5 apply 2 stale 0",
        "5 version 2",
        "5 start 3 from 2",
        "5 start 4 from 2",
    ]


def test_safa_with_everybody_picked_before(given_devices: Any, drive: Any) -> None:
    policy = {"policy": "safa", "quota": 2, "lag_tolerance": 5}
    log = drive(policy, given_devices([1, 1, 1, 2]), n_clients=2).until(3)
    assert log[-5:-2] == ["3 apply 2 stale 0", "3 apply 3 stale 0", "3 version 2"]


@pytest.fixture
def compass(drive: Any, given_devices: Any, work: Any) -> Any:
    """`compass(durations, lost=())`: two clients, 2 to 10 steps; the durations say how fast they turn out to be."""

    def made(durations: Any, lost: Any = ()) -> Any:
        run = drive({"policy": "async", "concurrency": 2}, given_devices(durations, lost), n_clients=2)
        policy = build_policy(CompassSchedule(policy="compass", min_steps=2, max_steps=10), 2)
        pace, _ = pace_and_learners(policy, run.schedule._selection, False)
        how = work(n_processed_in=lambda n, steps: steps)
        devices = run.schedule._devices
        run.schedule = Schedule(policy, [Domain(2)], run.schedule._selection, how, devices, pace)
        return run

    return made


def test_compass_lets_groups_arrive_together(compass: Any) -> None:
    # First tasks: 10 steps in 10 s and in 20 s: 1 and 2 s a step, a version each. At 20 client 0 founds a group for 30,
    # which client 1 reaches with 5 steps. It is there at 29.5 and waits. For 40 it again takes 5 (1.91 s a step), but
    # comes at 43: the group is closed at 42 without it, and its update is merged with the next version.
    run = compass([10, 20, 10, 10, 9.5, 10, 13, 10, 9])
    assert run.until(52) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "10 apply 0 stale 0",
        "10 version 1",
        "10 start 2 from 1",
        "20 apply 1 stale 1",
        "20 version 2",
        "20 apply 2 stale 1",
        "20 version 3",
        "20 start 3 from 3",
        "20 start 4 from 3",
        "30 apply 4 stale 0",
        "30 apply 3 stale 0",
        "30 version 4",
        "30 start 5 from 4",
        "30 start 6 from 4",
        "42 apply 5 stale 0",
        "42 version 5",
        "42 start 7 from 5",
        "43 apply 6 stale 1",
        "43 start 8 from 5",
        "52 apply 7 stale 0",
        "52 apply 8 stale 0",
        "52 version 6",
        "52 start 9 from 6",
        "52 start 10 from 6",
    ]
    assert [task.n_steps for task in run.tasks[:9]] == [10, 10, 10, 10, 5, 10, 5, 10, 3]


def test_compass_aims_at_the_next_arrival_of_a_group_out_of_reach(compass: Any) -> None:
    # 1 and 9 s a step. At 90 client 0 (its ninth task just ended) founds a group for 100; in 10 s client 1 takes one
    # step, which is too few. Founding aims at 102 + 10 x 1 = 112: 22 / 9 = 2 steps.
    run = compass([10, 90, *[10] * 20])
    run.until(90)
    assert [(task.client, task.n_steps) for task in run.tasks[-2:]] == [(0, 10), (1, 2)]


def test_compass_loses_a_member(compass: Any) -> None:
    # As above up to 30, but task 4 is lost at 29.5: task 3 makes its version alone.
    run = compass([10, 20, 10, 10, 9.5], lost=[4])
    log = run.until(30)
    assert log[11:15] == ["29.5 lost 4", "29.5 start 5 from 3", "30 apply 3 stale 0", "30 version 4"]


def test_clients_that_wait_for_their_group_are_busy(compass: Any) -> None:
    run = compass([10, 20, 10, 10, 9.5, 10, 13])
    run.until(29.5)
    assert run.schedule.n_in_flight == 1 and len(run.schedule.unconsumed()) == 2
    assert np.array_equal(run.schedule._domains[0].idle(), [])
