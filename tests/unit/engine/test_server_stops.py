"""When a run ends: stops are exact, interrupted runs leave a prefix, stalled ones say so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedsim.engine.supply import Bounds
from fedsim.errors import StalledError

LOSSY = {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.2}
CONSTANT = {"compute": {"time": {"law": "constant", "mean": 1.0}}}
SYNC = {"policy": "sync", "cohort": 4}
TIERS = {"policy": "tiers", "tiers": 2, "cohort": 3}
POLICIES: list[dict[str, Any]] = [
    {"policy": "async", "concurrency": 4},
    {"policy": "buffered", "concurrency": 4, "buffer": 3},
    {"policy": "k-async", "concurrency": 4, "k": 3},
    {"policy": "window", "concurrency": 4, "window_s": 1.5},
    SYNC,
    TIERS,
]
POLICY_NAMES = [str(policy["policy"]) for policy in POLICIES]


def applied(result: Any) -> list[int]:
    """The versions that updates went into, in order."""
    outcome, version = result.rows.column("tasks", "outcome"), result.rows.column("tasks", "applied_version")
    return [int(v) for v in version[outcome == 0]]


@pytest.mark.parametrize("policy", POLICIES, ids=POLICY_NAMES)
@pytest.mark.parametrize("n", [1, 7])
def test_versions_are_exact(bench: Any, config: Any, policy: dict[str, Any], n: int) -> None:
    result = bench().run(config(schedule=policy, stop={"versions": n}))
    assert result.status == "done" and result.pulse.version == n
    assert result.rows.column("versions", "version").tolist() == list(range(1, n + 1))
    assert applied(result)[-1] == n, "nothing was consumed after the last version"
    merged = result.rows.column("versions", "n_updates").tolist()
    assert applied(result) == [v for v, count in enumerate(merged, 1) for _ in range(int(count))]


@pytest.mark.parametrize("policy", POLICIES, ids=POLICY_NAMES)
@pytest.mark.parametrize("n", [1, 5, 6, 14])
def test_updates_are_exact(bench: Any, config: Any, policy: dict[str, Any], n: int) -> None:
    result = bench().run(config(schedule=policy, stop={"updates": n}))
    assert result.status == "done" and result.pulse.n_updates == n == len(applied(result))
    merged = result.rows.column("versions", "n_updates").sum()
    assert merged <= n and result.pulse.version == len(result.rows.tables["versions"])


@pytest.mark.parametrize(("n", "n_versions"), [(3, 1), (4, 1), (5, 1), (6, 2), (7, 2)])
def test_updates_stop_inside_a_tiers_round(bench: Any, config: Any, n: int, n_versions: int) -> None:
    # Constant times: both tiers' rounds of three end at 1, one after the other. A round that the stop cuts short is no
    # version, one whose last update is the stop is.
    result = bench().run(config(schedule=TIERS, devices=CONSTANT, stop={"updates": n}))
    assert len(applied(result)) == n and result.pulse.version == n_versions
    assert result.rows.column("versions", "n_updates").tolist() == [3] * n_versions
    assert np.isclose(result.weights_P[0], n_versions)  # each version adds one to element 0


def test_virtual_seconds_are_exact(bench: Any, config: Any) -> None:
    # Rounds of one second: what arrives at 3 exactly belongs to the run, and its version is made.
    result = bench().run(config(schedule=SYNC, devices=CONSTANT, stop={"virtual_s": 3.0}))
    assert (result.status, result.pulse.version, result.pulse.n_updates) == ("done", 3, 12)
    result = bench().run(config(schedule=SYNC, devices=CONSTANT, stop={"virtual_s": 2.999}))
    assert (result.pulse.version, result.pulse.n_updates, result.pulse.virtual_s) == (2, 8, 2.999)


def test_the_first_stop_counts(bench: Any, config: Any) -> None:
    several = {"virtual_s": 100.0, "versions": 9, "updates": 6}
    result = bench().run(config(schedule=SYNC, devices=CONSTANT, stop=several))
    assert (result.pulse.version, result.pulse.n_updates) == (1, 6)


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("policy", POLICIES, ids=POLICY_NAMES)
def test_interrupted_runs_leave_a_prefix(bench: Any, config: Any, policy: dict[str, Any], n_workers: int) -> None:
    # The clock goes on by 0.1 ms whenever someone looks: the same run takes the same time again.
    whole = bench(n_workers=n_workers).run(config(schedule=policy, devices=LOSSY, stop={"updates": 120}))
    seen = set()
    for part_of_time in (0.2, 0.5, 0.8):
        stop = {"updates": 120, "wall_s": part_of_time * whole.pulse.wall_s}
        part = bench(n_workers=n_workers).run(config(schedule=policy, devices=LOSSY, stop=stop))
        assert part.status == "stopped"
        n, n_versions = len(part.rows.tables["tasks"]), len(part.rows.tables["versions"])
        assert 0 < n < len(whole.rows.tables["tasks"])
        assert part.rows.history() == whole.rows.history()[:n]
        of_both = [[row[:2] + row[3:] for row in run.rows.tables["versions"]] for run in (part, whole)]  # no wall time
        assert of_both[0] == of_both[1][:n_versions]
        seen.add(n)
    assert len(seen) == 3


def test_a_signal_ends_a_run_in_order(bench: Any, config: Any) -> None:
    whole = bench().run(config(stop={"versions": 50}))
    asked = iter([False] * 40 + [True] * 1000)
    part = bench(n_workers=2, stop_requested=lambda: next(asked)).run(config(stop={"versions": 50}))
    n = len(part.rows.tables["tasks"])
    assert part.status == "stopped" and 0 < n < 50
    assert part.rows.history() == whole.rows.history()[:n]
    assert part.rows.tables["evaluations"] == []  # in haste: what is not in yet is not waited for


def test_a_target_takes_effect_when_it_may_be_read(bench: Any, config: Any) -> None:
    # Version v scores v/100. Version 8 is the first evaluated (every 4) with .06 or more; it is read 3 versions later.
    for lag, last in ((0, 8), (1, 9), (3, 11), (4, 12)):
        for n_workers in (1, 3):
            result = bench(n_workers=n_workers).run(
                config(
                    evaluation={"every_versions": 4, "lag_versions": lag},
                    stop={"versions": 50, "target": {"metric": "accuracy", "value": 0.06}},
                )
            )
            assert (result.status, result.pulse.version) == ("done", last)
            assert [row[0] for row in result.rows.tables["evaluations"]] == sorted({0, 4, 8, last})


def test_a_target_for_the_loss_is_a_ceiling(bench: Any, config: Any) -> None:
    # The loss is 1/(1 + v): .2 at version 4.
    target = {"metric": "loss", "value": 0.2000001}
    evaluation = {"every_versions": 2, "lag_versions": 0}
    result = bench().run(config(evaluation=evaluation, stop={"versions": 50, "target": target}))
    assert result.pulse.version == 4


def test_nobody_ever_available_is_a_stall(bench: Any, config: Any, tmp_path: Any) -> None:
    trace = tmp_path / "windows.csv"
    trace.write_text("client,start_s,end_s\n" + "".join(f"{c},0.0,5.0\n" for c in range(12)))
    gone = CONSTANT | {"availability": {"kind": "trace", "path": str(trace)}}
    for policy in POLICIES:
        with pytest.raises(StalledError, match="no client ever becomes available again"):
            bench().run(config(schedule=policy, devices=gone, stop={"versions": 1000}))


def test_nothing_is_lost_track_of(bench: Any, config: Any) -> None:
    # Each ended task has one row; those without one are in flight, three besides the last that ended.
    result = bench(n_workers=3).run(config(devices=LOSSY, stop={"updates": 60}))
    tasks = result.rows.column("tasks", "task").tolist()
    assert len(set(tasks)) == len(tasks) and len(set(range(max(tasks))) - set(tasks)) <= 3


def test_rows_say_how_tasks_ended(bench: Any, config: Any) -> None:
    over = {"policy": "sync", "cohort": 3, "over_selection": 2.0}
    rows = bench().run(config(schedule=over, devices=LOSSY, stop={"versions": 30})).rows
    outcome = rows.column("tasks", "outcome")
    assert set(outcome.tolist()) == {0, 1, 2}
    untrained = outcome != 0
    for name in ("worker", "applied_version", "staleness"):
        assert set(rows.column("tasks", name)[untrained].tolist()) == {-1}
        assert (rows.column("tasks", name)[~untrained] >= 0).all()
    assert all(math.isnan(x) for x in rows.column("tasks", "weight")[untrained])
    parts = [rows.column("tasks", f"virtual_{name}_s") for name in ("dispatch", "download", "compute", "upload")]
    assert (rows.column("tasks", "virtual_arrival_s") == sum(parts[1:], parts[0])).all()


@pytest.mark.parametrize("policy", POLICIES, ids=POLICY_NAMES)
def test_the_same_bits_by_any_way(bench: Any, config: Any, policy: dict[str, Any]) -> None:
    one = config(schedule=policy, devices=LOSSY, stop={"updates": 80})
    first = bench().run(one)
    for n_workers, kind, bounds in (
        (2, "home", Bounds(1, 1, 1, 1, 1)),
        (3, "dynamic", Bounds(3, 2, 2, 3, 3)),
        (4, "balanced", Bounds(5, 3, 100, 100, 100)),
    ):
        other = bench(n_workers=n_workers, placement=kind, bounds=bounds, seed=n_workers).run(one)
        assert other.weights_P.tobytes() == first.weights_P.tobytes()
        assert other.rows.history() == first.rows.history()
