"""The fast lane leaves the record and model of the general path, wherever a run goes from one to the other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.engine import evaluations, following, rows
from fedsim.engine.compiled import dealt
from fedsim.engine.lane import Lane
from fedsim.engine.supply import Bounds

EXPONENTIAL = {"compute": {"time": {"law": "exponential", "mean": 1.0}}}
EQUAL = {"compute": {"time": {"law": "constant", "mean": 1.0}}}  # many arrivals at one instant
SPREAD = {
    "compute": {"time": {"law": "lognormal", "mean": 1.0, "sigma": 2.0}},
    "upload": {"latency_s": {"law": "constant", "mean": 0.5}},
}
POLICIES: dict[str, dict[str, Any]] = {
    "async": {"policy": "async", "concurrency": 5},
    "buffered": {"policy": "buffered", "concurrency": 6, "buffer": 4},
    "k-async": {"policy": "k-async", "concurrency": 5, "k": 3},
    "sync": {"policy": "sync", "cohort": 4},
}
MIXING = {"rule": "fedasync", "alpha": 0.4, "staleness": {"kind": "polynomial", "a": 0.5}}
STOPS: dict[str, dict[str, Any]] = {
    "updates": {"updates": 103},
    "versions": {"versions": 40},
    "virtual_s": {"virtual_s": 21.0},
}
ROOM = Bounds(2, 2, 90, 90, 90)


def of(config: Any, policy: str, devices: Any, stop: str, **more: Any) -> Any:
    rule = {"aggregation": MIXING} if policy == "async" else {}
    return config(
        schedule=POLICIES[policy],
        devices=devices,
        stop=STOPS[stop],
        **({"evaluation": {"every_versions": 2, "lag_versions": 3}} | rule | more),
    )


def without_wall(rows: Any) -> list[Any]:
    """What of a run's tables must be the same: all but wall times and who trained."""
    plain = lambda row: [None if x != x else x for x in row]  # noqa: E731  NaN equals nothing
    return [
        [plain([*row[:2], *row[3:12], *row[15:]]) for row in rows.tables["tasks"]],
        [plain([*row[:2], *row[3:]]) for row in rows.tables["versions"]],
        [plain([*row[:2], *row[3:]]) for row in rows.tables["evaluations"]],
    ]


def check_same(result: Any, whole: Any) -> None:
    assert result.status == whole.status == "done"
    assert without_wall(result.rows) == without_wall(whole.rows)
    assert np.array_equal(result.weights_P, whole.weights_P)
    assert result.pulse.virtual_s == whole.pulse.virtual_s


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("devices", (EXPONENTIAL, EQUAL, SPREAD), ids=("exponential", "equal", "spread"))
@pytest.mark.parametrize("stop", STOPS)
def test_the_lane_leaves_the_same_record(bench: Any, config: Any, policy: str, devices: Any, stop: str) -> None:
    run = of(config, policy, devices, stop)
    whole = bench(bounds=ROOM).run(run)
    for n_workers, placement in ((1, "home"), (2, "dynamic"), (3, "home")):
        room = bench(n_workers=n_workers, bounds=ROOM, placement=placement, has_lane=True)
        check_same(room.run(run), whole)
        assert room.n_lane_updates > 20


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on_with_the_lane_and_without(
    bench: Any, config: Any, killing: Any, tmp_path: Path, policy: str, seed: int
) -> None:
    draws = random.Random(f"{policy} {seed}")
    run = of(config, policy, (EXPONENTIAL, EQUAL, SPREAD)[seed], "updates", seed=seed)
    whole = bench(bounds=ROOM).run(run)
    kept, result, n_lane = None, None, 0
    for life in range(6):
        keeper = killing(tmp_path, range(2, 40, 7), draws.randint(5, 40) if life < 5 else -1)
        room = bench(n_workers=draws.choice((1, 2, 3)), seed=life, bounds=ROOM, has_lane=draws.random() < 0.7)
        try:
            result = room.run(run, keeper, kept)
            break
        except keeper.Killed:
            kept = keeper.last or kept
        finally:
            n_lane += room.n_lane_updates
    assert result is not None and n_lane > 40
    check_same(result, whole)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_client_that_fails_once_is_tried_again_outside_the_lane(bench: Any, config: Any, policy: str) -> None:
    run = of(config, policy, EXPONENTIAL, "updates", on_client_error="retry")
    whole = bench(bounds=ROOM).run(run)
    room = bench(n_workers=2, bounds=ROOM, placement="dynamic", has_lane=True, inject="raise:8@1")
    check_same(room.run(run), whole)
    assert len(room.reports) == 1 and 10 < room.n_lane_updates < 103


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("end_s", (0.05, 0.3, 0.8, 1.5, 3.0))
def test_the_lane_does_not_open_past_the_end(
    bench: Any, config: Any, policy: str, end_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STOPS, "virtual_s", {"virtual_s": end_s})
    run = of(config, policy, EXPONENTIAL, "virtual_s")
    whole = bench(bounds=ROOM).run(run)
    check_same(bench(n_workers=2, bounds=ROOM, placement="dynamic", has_lane=True).run(run), whole)


@pytest.mark.parametrize("policy", ("async", "buffered", "sync"))
def test_a_run_that_is_resumed_near_its_end_has_the_same_end(
    bench: Any, config: Any, killing: Any, tmp_path: Path, policy: str
) -> None:
    run = of(config, policy, EXPONENTIAL, "virtual_s", evaluation={"every_versions": None})
    whole = bench(bounds=ROOM).run(run)
    n_resumed = 0
    for n_events in range(10, 125, 3):
        keeper = killing(tmp_path, [n_events], n_events + 1)
        try:
            bench(bounds=ROOM).run(run, keeper, None)
        except keeper.Killed:
            n_resumed += 1
            check_same(bench(bounds=ROOM, has_lane=True).run(run, None, keeper.last), whole)
    assert n_resumed > 5


@pytest.mark.parametrize("i", range(10, 26))
def test_rows_may_be_let_go_of_where_the_end_is_looked_for(
    bench: Any, config: Any, i: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_COPIED", 20)
    monkeypatch.setattr(following, "_RECORDED_TOGETHER", 1)
    monkeypatch.setitem(STOPS, "virtual_s", {"virtual_s": 30.0 + 0.43 * i})
    monkeypatch.setitem(POLICIES, "buffered", {"policy": "buffered", "concurrency": 3, "buffer": 12})
    run, room = of(config, "buffered", EXPONENTIAL, "virtual_s"), Bounds(12, 2, 190, 190, 190)
    whole = bench(bounds=room).run(run)
    check_same(bench(n_workers=1, bounds=room, has_lane=True).run(run), whole)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("seed", "number"), [(0, 3), (1, 5), (2, 8), (3, 10)])
def test_a_client_fails_while_evaluations_have_no_place(
    bench: Any, config: Any, policy: str, seed: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "_MOST_OUTSTANDING", 1)
    often = {"every_versions": 1, "lag_versions": 3}
    run = of(config, policy, EXPONENTIAL, "updates", on_client_error="retry", evaluation=often)
    whole = bench(bounds=ROOM).run(run)
    room = bench(n_workers=2, seed=seed, bounds=ROOM, placement="dynamic", has_lane=True, inject=f"raise:{number}@1")
    check_same(room.run(run), whole)
    assert len(room.reports) == 1


def test_groups_of_one_size_and_no_more_than_it_takes() -> None:
    assert [dealt(n, 2, 64) for n in (0, 1, 5, 100, 128, 256, 300)] == [0, 1, 3, 50, 64, 64, 50]


def test_a_server_that_waits_has_posted_what_it_can(bench: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n_skipped, pump = 0, Lane.pump

    def pumped(lane: Lane, is_waiting: bool) -> None:
        nonlocal n_skipped
        if lane._is_dealt:
            n_skipped += 1
            lane._is_dealt, before = False, lane.rows.stage.copy()
            pump(lane, is_waiting)
            assert np.array_equal(lane.rows.stage, before), "nothing more is posted when it deals again"
            lane._is_dealt = True
        pump(lane, is_waiting)

    monkeypatch.setattr(Lane, "pump", pumped)
    for policy in POLICIES:
        room = bench(n_workers=3, bounds=ROOM, placement="dynamic", has_lane=True)
        assert room.run(of(config, policy, EXPONENTIAL, "updates")).status == "done"
    assert n_skipped > 10
