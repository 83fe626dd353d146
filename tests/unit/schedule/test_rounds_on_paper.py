"""Rounds by hand, synchronous and in tiers: each expected log was worked out on paper; the comments say how."""

from __future__ import annotations

from typing import Any


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
