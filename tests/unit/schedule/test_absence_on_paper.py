"""Who is there and who is not, by hand: busy clients, absent ones, nobody at all, nothing that ever arrives."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.errors import StalledError
from fedsim.types import EventKind

FOREVER = 1e6
ASYNC = {"policy": "async", "concurrency": 2}


def test_clients_are_busy_until_their_task_ends(given_devices: Any, drive: Any) -> None:
    # Three clients, two slots, the lowest idle one starts. Client 1 (task 1) is back at 1, client 2 is still free then
    # but 1 is lower; and so on.
    run = drive(ASYNC, given_devices([3, 1, 3, 3]), n_clients=3)
    run.until(4)
    assert [task.client for task in run.tasks] == [0, 1, 1, 0, 1]


def test_more_slots_than_clients(given_devices: Any, drive: Any) -> None:
    run = drive({"policy": "async", "concurrency": 5}, given_devices([1, 2]), n_clients=2)
    assert run.until(1) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 apply 0 stale 0",
        "1 version 1",
        "1 start 2 from 1",
    ]


def test_the_clock_goes_to_the_next_window(given_devices: Any, drive: Any) -> None:
    # Nobody is there at 0; 1 comes at 3, 0 at 5. At 4 client 1 is done and gone: the second slot's wait goes on to 5.
    devices = given_devices([1, 2], windows={0: [(5.0, 9.0)], 1: [(3.0, 3.5)]})
    run = drive(ASYNC, devices, n_clients=2)
    assert run.until(8) == [
        "3 start 0 from 0",
        "4 apply 0 stale 0",
        "4 version 1",
        "5 start 1 from 1",
        "7 apply 1 stale 0",
        "7 version 2",
        "7 start 2 from 2",
    ]
    assert [task.client for task in run.tasks] == [1, 0, 0]


def test_a_window_that_opens_earlier_is_not_missed(given_devices: Any, drive: Any) -> None:
    # At 0 client 0 is dispatched, and the free slot waits for client 1, at 10. Client 0, done and gone at 2, comes
    # back at 6: the slots must wake at 6, not at 10.
    devices = given_devices([2, 1], windows={0: [(0.0, 1.0), (6.0, 9.0)], 1: [(10.0, 99.0)]})
    assert drive(ASYNC, devices, n_clients=2).until(10) == [
        "0 start 0 from 0",
        "2 apply 0 stale 0",
        "2 version 1",
        "6 start 1 from 1",
        "7 apply 1 stale 0",
        "7 version 2",
        "7 start 2 from 2",
        "10 start 3 from 2",
    ]


@pytest.mark.parametrize(
    "policy",
    [
        ASYNC,
        {"policy": "buffered", "concurrency": 2, "buffer": 2},
        {"policy": "k-async", "concurrency": 2, "k": 1},
        {"policy": "window", "concurrency": 2, "window_s": 1.0},
        {"policy": "sync", "cohort": 2},
        {"policy": "sync", "cohort": 2, "deadline_s": 50.0},
        {"policy": "tiers", "tiers": 1, "cohort": 2},
    ],
    ids=lambda policy: policy["policy"],
)
def test_nobody_ever_again(given_devices: Any, drive: Any, policy: dict[str, Any]) -> None:
    # Both clients are there until 2 only: once what is in flight is in, no event is left.
    gone = {0: [(0.0, 2.0)], 1: [(0.0, 2.0)]}
    run = drive(policy, given_devices([1] * 20, windows=gone), n_clients=2)
    run.until(FOREVER)
    assert run.schedule.peek() is None and run.schedule.n_in_flight == 0
    assert run.schedule.now_s <= 52.0 and run.schedule.version >= 1


def test_nobody_at_all(given_devices: Any, drive: Any) -> None:
    run = drive(ASYNC, given_devices([], windows={0: []}), n_clients=1)
    assert run.until(FOREVER) == [] and run.schedule.peek() is None


@pytest.mark.parametrize("policy", [ASYNC, {"policy": "sync", "cohort": 2, "deadline_s": 0.5}], ids=["lost", "late"])
def test_nothing_ever_arrives(given_devices: Any, drive: Any, policy: dict[str, Any]) -> None:
    # Endless losses, or a deadline that nobody meets: an error that says so, not a loop without end.
    run = drive(policy, given_devices([1] * 50_000, lost=range(50_000)), n_clients=2)
    with pytest.raises(StalledError, match=r"the last \d+ tasks were all lost or aborted"):
        run.until(FOREVER)


def test_events_are_ordered_by_time_kind_and_number(given_devices: Any, drive: Any) -> None:
    # At 2: the arrivals of 2 and 3, the loss of 1, the deadline of the round and client 9's return, in this order.
    devices = given_devices([9, 2, 2, 2, 9], lost=[1], windows={4: [(2.0, 9.0)]})
    run = drive({"policy": "sync", "cohort": 5, "deadline_s": 2.0}, devices, n_clients=5)
    schedule, seen = run.schedule, []
    schedule.dispatch(0.0)
    while (event := schedule.peek()) is not None and event.time_s <= 2.0:
        seen.append((event.kind, event.number))
        schedule.step(event)
    assert seen == [
        (EventKind.ARRIVAL, 2),
        (EventKind.ARRIVAL, 3),
        (EventKind.LOSS, 1),
        (EventKind.TIMER, 1),
        (EventKind.AVAILABILITY, 0),
    ]
