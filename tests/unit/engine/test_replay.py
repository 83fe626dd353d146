"""A history trained again: the same model bits, whoever made it; and histories that nobody can have made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsim.engine.replay import History, ReplaySchedule
from fedsim.engine.supply import Bounds
from fedsim.errors import RecordError
from fedsim.schedule.schedule import Work

LOSSY = {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.2}
POLICIES = [
    {"policy": "async", "concurrency": 4},
    {"policy": "buffered", "concurrency": 4, "buffer": 3},
    {"policy": "k-async", "concurrency": 4, "k": 3},
    {"policy": "window", "concurrency": 4, "window_s": 1.5},
    {"policy": "sync", "cohort": 3, "over_selection": 2.0},
    {"policy": "sync", "cohort": 4, "deadline_s": 1.0},
    {"policy": "tiers", "tiers": 2, "cohort": 3},
]
WALL_POLICIES = [policy for policy in POLICIES if policy["policy"] != "tiers"]


def name_of(policy: dict[str, Any]) -> str:
    return str(policy["policy"]) + ("-deadline" if "deadline_s" in policy else "")


def history_of(result: Any) -> History:
    return History.of(result.rows)


def assert_same(replayed: Any, first: Any) -> None:
    assert replayed.weights_P.tobytes() == first.weights_P.tobytes()
    assert replayed.rows.history() == first.rows.history()
    for name in ("version", "n_updates", "weight_sum", "staleness_mean", "staleness_max", "virtual_s"):
        np.testing.assert_array_equal(replayed.rows.column("versions", name), first.rows.column("versions", name))


# ------------------------------------------------------------------------------------------- the same again


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_virtual_histories(bench: Any, config: Any, policy: dict[str, Any]) -> None:
    one = config(schedule=policy, devices=LOSSY, stop={"updates": 70})
    first = bench().run(one)
    assert len(first.rows.tables["versions"]) > 5
    assert_same(bench().replay(one, history_of(first)), first)
    smallest = Bounds(1, 1, 1, 1, 1)
    assert_same(bench(n_workers=3, placement="dynamic", bounds=smallest).replay(one, history_of(first)), first)


@pytest.mark.parametrize("policy", WALL_POLICIES, ids=name_of)
def test_wall_histories(bench: Any, config: Any, ticks: Any, policy: dict[str, Any]) -> None:
    # Three workers that answer in a random order. Every reading of the clock is 0.05 s later than the last: windows and
    # deadlines of about a second come now before, now after what they wait for.
    one = config(clock="wall", schedule=policy, stop={"updates": 70})
    first = bench(n_workers=3, seed=5, clock=ticks(0.05)).run(one)
    assert first.pulse.n_updates == 70
    if policy["policy"] == "sync":
        assert (first.rows.column("tasks", "outcome") == 2).any()
    else:
        assert first.rows.column("tasks", "staleness").max() > 0
    for n_workers in (1, 2):
        again = bench(n_workers=n_workers).replay(one, history_of(first))
        assert again.weights_P.tobytes() == first.weights_P.tobytes()
        assert again.rows.history() == first.rows.history()


def test_orders_of_arrival_differ(bench: Any, config: Any, ticks: Any) -> None:
    # Else the test above would not show much.
    one = config(clock="wall", stop={"updates": 70})
    orders = [bench(n_workers=3, seed=seed, clock=ticks()).run(one).weights_P.tobytes() for seed in range(4)]
    assert len(set(orders)) == 4


def test_an_interrupted_history_ends_in_the_middle_of_a_buffer(bench: Any, config: Any) -> None:
    one = config(schedule={"policy": "buffered", "concurrency": 4, "buffer": 5}, stop={"updates": 13})
    first = bench().run(one)
    assert (first.pulse.version, first.pulse.n_updates) == (2, 13)
    again = bench().replay(one, history_of(first))
    assert_same(again, first)
    assert (again.status, again.pulse.version, again.pulse.n_updates) == ("done", 2, 13)


def test_an_empty_history(bench: Any, config: Any) -> None:
    none = np.zeros(0, dtype=np.int64)
    empty = History(none, none, none, none, none, none, none, [np.zeros(0)] * 5, none, np.zeros(0), none)
    result = bench().replay(config(), empty)
    assert (result.status, result.pulse.version, len(result.rows.tables["tasks"])) == ("done", 0, 0)


# ------------------------------------------------------------------------------------ what cannot have been


def small_history(**changes: Any) -> History:
    """Four updates of four clients in two versions, and a lost task; all from version 0 but the last applied."""
    ints: dict[str, list[int]] = {
        "task": [1, 0, 2, 3, 4],
        "client": [5, 1, 2, 3, 4],
        "outcome": [0, 0, 1, 0, 0],
        "base_version": [0, 0, 0, 0, 1],
        "applied_version": [1, 1, -1, 2, 2],
        "n_samples": [2, 2, 2, 2, 2],
        "n_steps": [3, 3, 3, 3, 3],
        "version": [1, 2],
        "version_updates": [2, 2],
    }
    plain = {name: np.array(values, dtype=np.int64) for name, values in ints.items()}
    times = [np.arange(5.0)] * 5
    given = {name: np.array(value) for name, value in changes.items() if name != "times_s"}
    return replace(History(**plain, times_s=times, version_s=np.array([1.0, 2.0])), **given)  # type: ignore[arg-type]


def work() -> Work:
    return Work(lambda clients: clients, lambda n: 3, lambda n: 3, lambda version: 1.0, True)


def test_the_small_history_is_sound() -> None:
    schedule = ReplaySchedule(small_history(), work(), 6)
    assert schedule.n_versions == 2 and schedule.n_in_flight == 7  # five rows, two versions
    assert [task.task for task in schedule.dispatch(0.0)] == [0, 1, 2, 3] and schedule.dispatch(0.0) == []
    merges = []
    while (event := schedule.peek()) is not None:
        merges.append(schedule.step(event).merge)
    assert merges == [False, False, True, False, False, False, True] and schedule.version == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": [1, 3]}, "does not count 1, 2, 3"),
        ({"version": [2, 1]}, "does not count 1, 2, 3"),
        ({"version_s": [1.0]}, "columns of table versions differ in length"),
        ({"version_updates": [2, 3]}, "do not agree on what was merged"),
        ({"version_updates": [2, -1]}, "do not agree on what was merged"),
        ({"applied_version": [1, 1, -1, 1, 2]}, "do not agree on what was merged"),
        ({"applied_version": [1, 1, -1, 2, 4]}, "do not agree on what was merged"),
        ({"applied_version": [1, 1, -1, 2, 2**60]}, "do not agree on what was merged"),
        ({"applied_version": [1, 1, -1, 2, -1]}, "do not agree on what was merged"),
        ({"applied_version": [1, 2, -1, 1, 2]}, "not applied in the order of the versions"),
        ({"base_version": [0, 1, 0, 0, 1]}, "applied before its base version existed"),
        ({"base_version": [0, 0, 0, 0, 2]}, "applied before its base version existed"),
        ({"base_version": [0, -1, 0, 0, 1]}, "negative base_version"),
        ({"task": [1, 1, 2, 3, 4]}, "names a task twice"),
        ({"task": [1, -2, 2, 3, 4]}, "negative task"),
        ({"task": [1, 2, 3, 4]}, "columns of table tasks differ in length"),
        ({"n_steps": [3, 3, 3, 3, -1]}, "negative n_steps"),
        ({"n_samples": [3, 3, -3, 3, 1]}, "negative n_samples"),
        ({"outcome": [0, 0, 7, 0, 0]}, "unknown outcome"),
        ({"client": [5, 1, 2, 3, 6]}, "a client is not one of the 6"),
        ({"client": [5, 1, -1, 3, 4]}, "a client is not one of the 6"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecordError, match=f"cannot be replayed: .*{problem}"):
        ReplaySchedule(small_history(**changes), work(), 6)


def test_a_version_of_nothing_is_refused() -> None:
    history = small_history(version=[1, 2, 3], version_s=[1.0, 2.0, 3.0], version_updates=[2, 2, 0])
    with pytest.raises(RecordError, match="do not agree on what was merged"):
        ReplaySchedule(history, work(), 6)


def test_steps_given_before_are_counted_by_task_numbers() -> None:
    # Tasks 0, 2 and 4 of client 1, of which 2 was lost: 0, 3 and 6 steps before them.
    history = small_history(task=[1, 0, 2, 3, 4], client=[2, 1, 1, 2, 1], outcome=[0, 0, 1, 0, 0])
    schedule = ReplaySchedule(history, work(), 6)
    tasks = {task.task: task for version in (0, 1) for task in schedule._by_base[version]}
    assert [tasks[number].first_step for number in range(5)] == [0, 0, 3, 3, 6]
