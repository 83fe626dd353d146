"""What a task is given at dispatch, and the schedule on the wall clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter

from fedsim.config import ScheduleConfig
from fedsim.schedule.building import build_policy
from fedsim.schedule.schedule import Schedule
from fedsim.schedule.selection import AlwaysThere, Domain, Selection
from fedsim.types import Event, EventKind

FOREVER = 1e6


def on_wall(work: Any, n_clients: int = 100, **policy: Any) -> Schedule:
    config = TypeAdapter(ScheduleConfig).validate_python(policy)
    selection = Selection("uniform", 3, AlwaysThere(), None)
    return Schedule(build_policy(config, n_clients), [Domain(n_clients)], selection, work(), None)


def arrival(time_s: float, task: int) -> Event:
    return Event(time_s, EventKind.ARRIVAL, task)


def test_everything_is_fixed_at_dispatch(given_devices: Any, drive: Any, work: Any) -> None:
    devices = given_devices([2.5, 4.0], lost=[1])
    run = drive({"policy": "async", "concurrency": 2}, devices, work=work())
    run.until(0)
    first, second = run.tasks
    assert first[:8] == (0, 0, 0, 10, 2, 0, 0.5, 0.0)
    assert first[8:] == (0.0, 2.5, 0.0, 2.5, 2.5, False, True)
    assert second[8:] == (0.0, 4.0, 0.0, 4.0, 4.0, True, False)  # lost, so not worth training


def test_the_rate_is_that_of_the_base_version(given_devices: Any, drive: Any, work: Any) -> None:
    run = drive(
        {"policy": "async", "concurrency": 1}, given_devices([1, 1, 1]), work=work(learning_rate=lambda v: 0.5**v)
    )
    run.until(2)
    assert [task.learning_rate for task in run.tasks] == [1.0, 0.5, 0.25]


def test_steps_given_count_every_task_of_a_client(given_devices: Any, drive: Any, work: Any) -> None:
    # One client, five steps a task; the second task is lost, and its batches are used up all the same.
    counting = work(counts_steps=True, n_steps=lambda n: 5)
    run = drive({"policy": "async", "concurrency": 1}, given_devices([1, 1, 1], lost=[1]), n_clients=1, work=counting)
    run.until(3)
    assert [task.first_step for task in run.tasks] == [0, 5, 10, 15]


def test_counters(given_devices: Any, drive: Any) -> None:
    run = drive({"policy": "async", "concurrency": 3}, given_devices([1, 2, 3], lost=[1]))
    run.until(2)
    schedule = run.schedule
    assert (schedule.n_in_flight, schedule.n_dispatched, schedule.n_consumed, schedule.version) == (3, 5, 1, 1)
    assert [schedule.is_in_flight(task) for task in range(5)] == [False, False, True, True, True]


def test_time_that_goes_back_is_a_bug(given_devices: Any, drive: Any) -> None:
    run = drive({"policy": "async", "concurrency": 2}, given_devices([1, 2]))
    run.until(1)
    with pytest.raises(AssertionError, match="virtual time went back"):
        run.schedule.step(arrival(0.5, 1))


def test_wall_arrivals_are_the_engines(work: Any) -> None:
    schedule = on_wall(work, policy="async", concurrency=2)
    tasks = schedule.dispatch(0.25)
    assert all(math.isnan(task.arrival_s) and math.isnan(task.due_s) and task.wanted for task in tasks)
    assert schedule.peek() is None and schedule.instant_over()
    step = schedule.step(arrival(0.75, 1))
    assert step.merge and [task.task for task in step.consumed] == [1]
    assert [task.task for task in schedule.dispatch(0.8)] == [2]
    assert schedule.step(arrival(0.9, 0)).consumed[0].base_version == 0 and schedule.version == 2


def test_wall_timers_may_be_seen_late(work: Any) -> None:
    # The window ends at 1.5, half a second after the first dispatch at .5 and 1 s long; an arrival is handled at 1.6
    # before anyone looks at the timer. Time does not go back to 1.5.
    schedule = on_wall(work, policy="window", concurrency=2, window_s=1.0)
    schedule.dispatch(0.5)
    schedule.step(arrival(1.6, 0))
    timer = schedule.peek()
    assert timer is not None and timer.time_s == 1.5
    assert schedule.step(timer).merge and schedule.now_s == 1.6
    following = schedule.peek()
    assert following is not None and following.time_s == 2.5


def test_wall_round_aborts_the_late_at_its_deadline(work: Any) -> None:
    schedule = on_wall(work, policy="sync", cohort=3, deadline_s=1.0)
    assert [task.wanted for task in schedule.dispatch(0.0)] == [True] * 3
    schedule.step(arrival(0.5, 2))
    timer = schedule.peek()
    assert timer is not None
    step = schedule.step(timer)
    assert step.merge and [(task.task, int(outcome)) for task, outcome in step.ended] == [(0, 2), (1, 2)]
    assert not schedule.is_in_flight(0) and len(schedule.dispatch(1.0)) == 3


def test_wall_round_aborts_the_over_selected(work: Any) -> None:
    schedule = on_wall(work, policy="sync", cohort=2, over_selection=1.5)
    schedule.dispatch(0.0)
    assert not schedule.step(arrival(0.1, 2)).merge
    step = schedule.step(arrival(0.2, 0))
    assert step.merge and [task.task for task, _ in step.ended] == [1]


def test_events_of_aborted_tasks_do_not_pile_up(given_devices: Any, drive: Any) -> None:
    # Rounds of one arrival among ten tasks: nine are aborted long before the time at which they would have arrived.
    devices = given_devices(([1.0] + [1e9] * 9) * 300)
    run = drive({"policy": "sync", "cohort": 1, "over_selection": 10.0}, devices, n_clients=1000)
    run.until(250)
    assert run.schedule.version >= 250
    assert len(run.schedule._events) <= 1024 + 4 * 10 + 1  # of 2,250 that were aborted


def test_a_finisher_waits_though_there_are_fewer_clients_than_slots(given_devices: Any, drive: Any) -> None:
    # Four clients, sixteen slots, k = 2: tasks 0 to 3 start at 0. Task 0 arrives at 1 and waits for task 1; at 2
    # both start again from version 1. Were the empty slots open, client 0 would start from version 0 at 1.
    run = drive({"policy": "k-async", "concurrency": 16, "k": 2}, given_devices([1, 2, 5, 6, 9, 9]), n_clients=4)
    run.until(2)
    assert [(task.client, task.base_version, task.dispatch_s) for task in run.tasks] == [
        (0, 0, 0.0),
        (1, 0, 0.0),
        (2, 0, 0.0),
        (3, 0, 0.0),
        (0, 1, 2.0),
        (1, 1, 2.0),
    ]
