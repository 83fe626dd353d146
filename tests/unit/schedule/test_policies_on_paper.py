"""Hand-made arrival lists: each expected log was worked out on paper; the comments say how."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedsim.errors import StalledError
from fedsim.types import EventKind

FOREVER = 1e6
ASYNC = {"policy": "async", "concurrency": 2}


def test_async(given_devices: Any, drive: Any) -> None:
    # Two slots. Task 0 takes so long that versions 1 and 2 are made of tasks 1 and 2 meanwhile: staleness 2.
    # Task 3 starts from version 2 at 2, sees version 3 made of task 0 at 3: staleness 1.
    devices = given_devices([3, 1, 1, 2])
    assert drive(ASYNC, devices).until(4) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 start 2 from 1",
        "2 apply 2 stale 0",
        "2 version 2",
        "2 start 3 from 2",
        "3 apply 0 stale 2",
        "3 version 3",
        "3 start 4 from 3",
        "4 apply 3 stale 1",
        "4 version 4",
        "4 start 5 from 4",
    ]


def test_async_arrivals_of_one_instant(given_devices: Any, drive: Any) -> None:
    # 0, 1 and 2 arrive together: applied by number, the second meets the version of the first. Only then, from
    # version 3, three start. 3 is lost at 2, when 4 arrives: arrivals before losses, although 3 has the lower number.
    devices = given_devices([1, 1, 1, 1, 1], lost=[3])
    assert drive({"policy": "async", "concurrency": 3}, devices).until(2) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 version 1",
        "1 apply 1 stale 1",
        "1 version 2",
        "1 apply 2 stale 2",
        "1 version 3",
        "1 start 3 from 3",
        "1 start 4 from 3",
        "1 start 5 from 3",
        "2 apply 4 stale 0",
        "2 version 4",
        "2 lost 3",
        "2 start 6 from 4",
        "2 start 7 from 4",
    ]


def test_async_without_time(given_devices: Any, drive: Any) -> None:
    # Tasks that take no time: what starts at 0 arrives at 0, after what was there, and all of it before the next start.
    devices = given_devices([0, 0, 0, 5])
    assert drive(ASYNC, devices).until(0) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 apply 0 stale 0",
        "0 version 1",
        "0 apply 1 stale 1",
        "0 version 2",
        "0 start 2 from 2",
        "0 start 3 from 2",
        "0 apply 2 stale 0",
        "0 version 3",
        "0 start 4 from 3",
    ]


def test_buffered(given_devices: Any, drive: Any) -> None:
    # Two arrivals a version, slots restart at once: 3 starts at 1, still from version 0, and arrives at 2 with 1.
    # 1 fills the buffer (version 1), 3 meets version 1. At 3 likewise: 2 makes version 2, 4 meets it.
    devices = given_devices([1, 2, 3, 1, 1, 5])
    assert drive({"policy": "buffered", "concurrency": 3, "buffer": 2}, devices).until(3) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 start 3 from 0",
        "2 apply 1 stale 0",
        "2 version 1",
        "2 apply 3 stale 1",
        "2 start 4 from 1",
        "2 start 5 from 1",
        "3 apply 2 stale 1",
        "3 version 2",
        "3 apply 4 stale 1",
        "3 start 6 from 2",
        "3 start 7 from 2",
    ]


def test_buffered_loss_frees_its_slot(given_devices: Any, drive: Any) -> None:
    # The lost task counts for nothing in the buffer; its slot starts again at the time at which it would have arrived.
    devices = given_devices([1, 4, 1, 9], lost=[0])
    assert drive({"policy": "buffered", "concurrency": 2, "buffer": 2}, devices).until(4) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 lost 0",
        "1 start 2 from 0",
        "2 apply 2 stale 0",
        "2 start 3 from 0",
        "4 apply 1 stale 0",
        "4 version 1",
        "4 start 4 from 1",
    ]


def test_k_async(given_devices: Any, drive: Any) -> None:
    # k = 2 of 3. The finisher of time 1 waits: nothing starts until 1 makes version 1 at 2. Task 4 is lost at 2.5: a
    # replacement starts at once, from version 1, although no version was made. 2 saw two versions.
    devices = given_devices([1, 2, 5, 1, 0.5, 1], lost=[4])
    assert drive({"policy": "k-async", "concurrency": 3, "k": 2}, devices).until(5) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "2 apply 1 stale 0",
        "2 version 1",
        "2 start 3 from 1",
        "2 start 4 from 1",
        "2.5 lost 4",
        "2.5 start 5 from 1",
        "3 apply 3 stale 0",
        "3.5 apply 5 stale 0",
        "3.5 version 2",
        "3.5 start 6 from 2",
        "3.5 start 7 from 2",
        "5 apply 2 stale 2",
    ]


def test_k_async_more_than_k_at_one_instant(given_devices: Any, drive: Any) -> None:
    # Three arrive at 1 and k = 2: 0 and 1 make version 1, 2 meets it and waits for the next. Only two slots restart.
    devices = given_devices([1, 1, 1, 1])
    assert drive({"policy": "k-async", "concurrency": 3, "k": 2}, devices).until(2) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 apply 2 stale 1",
        "1 start 3 from 1",
        "1 start 4 from 1",
        "2 apply 3 stale 0",
        "2 version 2",
        "2 start 5 from 2",
        "2 start 6 from 2",
    ]


def test_window(given_devices: Any, drive: Any) -> None:
    # Windows of 2 s. 0 waits from 0.5 to the end at 2. 2 arrives at 4, exactly at the end, and counts in the window
    # that ends then. 3 is lost at 4.5 and replaced at once. At 6 and 8 nothing had arrived: no version.
    devices = given_devices([0.5, 3, 2, 0.5, 5, 5], lost=[3])
    assert drive({"policy": "window", "concurrency": 2, "window_s": 2.0}, devices).until(10) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0.5 apply 0 stale 0",
        "2 version 1",
        "2 start 2 from 1",
        "3 apply 1 stale 1",
        "4 apply 2 stale 0",
        "4 version 2",
        "4 start 3 from 2",
        "4 start 4 from 2",
        "4.5 lost 3",
        "4.5 start 5 from 2",
        "9 apply 4 stale 0",
        "9.5 apply 5 stale 0",
        "10 version 3",
        "10 start 6 from 3",
        "10 start 7 from 3",
    ]


def test_windows_count_from_the_first_dispatch(given_devices: Any, drive: Any) -> None:
    # The only client comes at 25: the first window of 10 s ends at 35, not in the past.
    devices = given_devices([4, 50], windows={0: [(25.0, math.inf)]})
    assert drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1).until(40) == [
        "25 start 0 from 0",
        "29 apply 0 stale 0",
        "35 version 1",
        "35 start 1 from 1",
    ]


def test_windows_keep_their_grid_over_a_pause(given_devices: Any, drive: Any) -> None:
    # Version 1 at 10; nobody is there from 6 to 47. The next window that ends is the grid's: 50, though 47 + 10 = 57.
    # At 60 the client is away again, for ever: one last window has nothing in it, then there are no events.
    devices = given_devices([1, 1], windows={0: [(0.0, 6.0), (47.0, 48.5)]})
    run = drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1)
    assert run.until(FOREVER) == [
        "0 start 0 from 0",
        "1 apply 0 stale 0",
        "10 version 1",
        "47 start 1 from 1",
        "48 apply 1 stale 0",
        "50 version 2",
    ]
    assert run.schedule.peek() is None and run.schedule.now_s == 60.0


def test_window_dispatch_at_an_end_belongs_to_the_next(given_devices: Any, drive: Any) -> None:
    # The client is back exactly at 20, an end of the grid: its window ends at 30.
    devices = given_devices([1, 1, 50], windows={0: [(0.0, 6.0), (20.0, math.inf)]})
    run = drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1)
    assert run.until(30)[3:] == ["20 start 1 from 1", "21 apply 1 stale 0", "30 version 2", "30 start 2 from 2"]


def test_sync_over_selection(given_devices: Any, drive: Any) -> None:
    # Cohort 2, 1.5 times as many dispatched. Round 1 ends with its second arrival, at 2; 0 is aborted there, one second
    # before it would have come. In round 2 all three tie: the two lowest numbers win.
    devices = given_devices([3, 1, 2, 1, 1, 1])
    run = drive({"policy": "sync", "cohort": 2, "over_selection": 1.5}, devices)
    assert run.until(5) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 1 stale 0",
        "2 apply 2 stale 0",
        "2 aborted 0",
        "2 version 1",
        "2 start 3 from 1",
        "2 start 4 from 1",
        "2 start 5 from 1",
        "3 apply 3 stale 0",
        "3 apply 4 stale 0",
        "3 aborted 5",
        "3 version 2",
        "3 start 6 from 2",
        "3 start 7 from 2",
        "3 start 8 from 2",
    ]
    # What is aborted is known at dispatch, and not trained.
    assert [task.wanted for task in run.tasks[:6]] == [False, True, True, True, True, False]


def test_sync_lost_tasks_do_not_count_for_the_cohort(given_devices: Any, drive: Any) -> None:
    # 1 would have been first, and is lost: 0 and 2 are the cohort. A loss at the very end of the round is never seen as
    # one: at 3 the arrival of 2 ends the round and aborts 3, which is lost at 3.
    devices = given_devices([2, 1, 3, 3], lost=[1, 3])
    run = drive({"policy": "sync", "cohort": 2, "over_selection": 2.0}, devices)
    assert run.until(3)[4:9] == ["1 lost 1", "2 apply 0 stale 0", "3 apply 2 stale 0", "3 aborted 3", "3 version 1"]
    assert [task.wanted for task in run.tasks[:4]] == [True, False, True, False]


def test_sync_deadline(given_devices: Any, drive: Any) -> None:
    # Deadline 2 s, cohort 3. 1 arrives exactly at the deadline and counts; 2 is aborted there: a version of two.
    # Round 2, from 2: 3, 4 and 5 are all lost, the last at 3.5: no version, and round 3 starts then.
    # Round 3: nobody is in by its deadline 5.5: all aborted, no version, round 4 starts.
    devices = given_devices([1, 2, 5, 1, 1.5, 0.5, 7, 7, 7], lost=[3, 4, 5])
    run = drive({"policy": "sync", "cohort": 3, "deadline_s": 2.0}, devices)
    assert run.until(5.5) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "2 apply 1 stale 0",
        "2 aborted 2",
        "2 version 1",
        "2 start 3 from 1",
        "2 start 4 from 1",
        "2 start 5 from 1",
        "2.5 lost 5",
        "3 lost 3",
        "3.5 lost 4",
        "3.5 start 6 from 1",
        "3.5 start 7 from 1",
        "3.5 start 8 from 1",
        "5.5 aborted 6",
        "5.5 aborted 7",
        "5.5 aborted 8",
        "5.5 start 9 from 1",
        "5.5 start 10 from 1",
        "5.5 start 11 from 1",
    ]
    assert [task.task for task in run.tasks if task.wanted] == [0, 1]


def test_sync_deadline_of_a_former_round_means_nothing(given_devices: Any, drive: Any) -> None:
    # Round 1 is over at 1; its deadline, 2, falls into round 2, whose own is 3.
    devices = given_devices([1, 1.5, 9])
    assert drive({"policy": "sync", "cohort": 1, "deadline_s": 2.0}, devices).until(2.5) == [
        "0 start 0 from 0",
        "1 apply 0 stale 0",
        "1 version 1",
        "1 start 1 from 1",
        "2.5 apply 1 stale 0",
        "2.5 version 2",
        "2.5 start 2 from 2",
    ]


def test_sync_with_too_few_there(given_devices: Any, drive: Any) -> None:
    # Three wanted, one there: a round of one. Its end, at 1, finds two there.
    devices = given_devices([1, 1, 3], windows={1: [(0.5, 9.0)], 2: [(5.0, 9.0)]})
    assert drive({"policy": "sync", "cohort": 3}, devices, n_clients=3).until(4) == [
        "0 start 0 from 0",
        "1 apply 0 stale 0",
        "1 version 1",
        "1 start 1 from 1",
        "1 start 2 from 1",
        "2 apply 1 stale 0",
        "4 apply 2 stale 0",
        "4 version 2",
        "4 start 3 from 2",
        "4 start 4 from 2",
    ]


def test_tiers(given_devices: Any, drive: Any) -> None:
    # Tier A: clients 0 to 4, tier B: 5 to 9, two a round. A's first round is over at 2, with task 1; both updates are
    # consumed then. B's first ends at 4, with 3, and so does A's second, with 4 and 5. By number 3 comes first: B's
    # round makes version 2 (base 0 met version 1: staleness 1), then A's makes version 3 (base 1 met 2: staleness 1).
    # Then A starts before B. 6 is lost at 5 and 7 comes at 5.5: a round of one. 8 and 9 are lost: B makes nothing.
    devices = given_devices([1, 2, 3, 4, 2, 2, 1, 1.5, 2, 3], lost=[6, 8, 9])
    policy = {"policy": "tiers", "tiers": 2, "cohort": 2}
    run = drive(policy, devices, domains=[range(5), range(5, 10)])
    assert run.until(7) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "0 start 3 from 0",
        "2 apply 0 stale 0",
        "2 apply 1 stale 0",
        "2 version 1",
        "2 start 4 from 1",
        "2 start 5 from 1",
        "4 apply 2 stale 1",
        "4 apply 3 stale 1",
        "4 version 2",
        "4 apply 4 stale 1",
        "4 apply 5 stale 1",
        "4 version 3",
        "4 start 6 from 3",
        "4 start 7 from 3",
        "4 start 8 from 3",
        "4 start 9 from 3",
        "5 lost 6",
        "5.5 apply 7 stale 0",
        "5.5 version 4",
        "5.5 start 10 from 4",
        "5.5 start 11 from 4",
        "6 lost 8",
        "7 lost 9",
        "7 start 12 from 4",
        "7 start 13 from 4",
    ]
    # An update is due at the end of its round, a lost one included.
    assert [task.due_s for task in run.tasks[:10]] == [2, 2, 4, 4, 4, 4, 5.5, 5.5, 7, 7]
    assert {task.client for task in run.tasks if task.task in (0, 1, 4, 5, 6, 7)} <= set(range(5))
    assert {task.client for task in run.tasks if task.task in (2, 3, 8, 9)} <= set(range(5, 10))


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
