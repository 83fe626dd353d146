"""Killed at any moment, and gone on from the last checkpoint: the rows and the model of a run that nobody disturbed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.engine.replay import History
from fedsim.engine.supply import Bounds

LOSSY = {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.2}
CONSTANT = {"compute": {"time": {"law": "constant", "mean": 1.0}}}
ABSENT = {
    **LOSSY,
    "availability": {"kind": "periodic", "period_s": 5.0, "on_fraction": 0.5},
}
TARGET = {
    "evaluation": {"every_versions": 3, "lag_versions": 4},
    "stop": {"versions": 60, "target": {"metric": "accuracy", "value": 0.16}},
}
UPDATES: dict[str, Any] = {"stop": {"updates": 61}, "evaluation": {"every_versions": 2, "lag_versions": 3}}
CASES: dict[str, dict[str, Any]] = {
    "async": {"schedule": {"policy": "async", "concurrency": 4}, "devices": LOSSY},
    "async-target": {"schedule": {"policy": "async", "concurrency": 4}, "devices": LOSSY, **TARGET},
    "async-mixing": {
        "schedule": {"policy": "async", "concurrency": 4},
        "devices": ABSENT,
        "aggregation": {"rule": "fedasync", "alpha": 0.4, "staleness": {"kind": "polynomial", "a": 0.5}},
    },
    "buffered": {"schedule": {"policy": "buffered", "concurrency": 6, "buffer": 4}, "devices": LOSSY},
    "buffered-absent": {"schedule": {"policy": "buffered", "concurrency": 4, "buffer": 3}, "devices": ABSENT},
    "k-async": {"schedule": {"policy": "k-async", "concurrency": 5, "k": 3}, "devices": LOSSY},
    "k-async-target": {"schedule": {"policy": "k-async", "concurrency": 5, "k": 3}, "devices": ABSENT, **TARGET},
    "window": {"schedule": {"policy": "window", "concurrency": 4, "window_s": 0.7}, "devices": ABSENT},
    "sync": {"schedule": {"policy": "sync", "cohort": 4}, "devices": CONSTANT},
    "sync-deadline": {
        "schedule": {"policy": "sync", "cohort": 3, "over_selection": 2.0, "deadline_s": 1.1},
        "devices": ABSENT,
    },
    "sync-target": {"schedule": {"policy": "sync", "cohort": 3, "over_selection": 1.4}, "devices": LOSSY, **TARGET},
    "tiers": {"schedule": {"policy": "tiers", "tiers": 2, "cohort": 3}, "devices": LOSSY},
    "tiers-target": {"schedule": {"policy": "tiers", "tiers": 3, "cohort": 2}, "devices": ABSENT, **TARGET},
}


def without_wall(rows: Any) -> list[Any]:
    """What of a run's tables must be the same again: all but wall times and who trained."""
    plain = lambda row: [None if x != x else x for x in row]  # noqa: E731  NaN equals nothing
    return [
        [plain([*row[:2], *row[3:12], *row[15:]]) for row in rows.tables["tasks"]],
        [plain([*row[:2], *row[3:]]) for row in rows.tables["versions"]],
        [plain([*row[:2], *row[3:]]) for row in rows.tables["evaluations"]],
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_ends_as_if_nothing_had_been(
    bench: Any, config: Any, killing: Any, tmp_path: Path, name: str, seed: int
) -> None:
    draws = random.Random(f"{name} {seed}")
    of = config(**(UPDATES | {"seed": seed} | CASES[name]))
    counting = killing(tmp_path, (), -1)
    whole = bench().run(of, counting)
    assert whole.status == "done" and counting.n_moments > 20

    kept, result = None, None
    for life in range(5):
        keep_at = [draws.randint(1, counting.n_moments) for _ in range(3)]
        keeper = killing(tmp_path, keep_at, draws.randint(1, counting.n_moments) if life < 4 else -1)
        tight = Bounds(2, 2, draws.choice((1, 50)), draws.choice((2, 50)), draws.choice((2, 50)))
        room = bench(n_workers=draws.choice((1, 2, 3)), seed=seed, bounds=tight)
        try:
            result = room.run(of, keeper, kept)
            break
        except keeper.Killed:
            kept = keeper.last or kept
    assert result is not None and result.status == "done"
    assert without_wall(result.rows) == without_wall(whole.rows)
    assert np.array_equal(result.weights_P, whole.weights_P)


WALL = {
    "async": {"policy": "async", "concurrency": 4},
    "buffered": {"policy": "buffered", "concurrency": 6, "buffer": 4},
    "k-async": {"policy": "k-async", "concurrency": 5, "k": 3},
    "sync": {"policy": "sync", "cohort": 3, "over_selection": 2.0},
    "window": {"policy": "window", "concurrency": 4, "window_s": 0.004},
}


@pytest.mark.parametrize("name", WALL)
@pytest.mark.parametrize("seed", range(2))
def test_on_the_wall_clock_the_replay_of_its_record_is_the_same(
    bench: Any, config: Any, killing: Any, tmp_path: Path, name: str, seed: int
) -> None:
    draws = random.Random(f"{name} {seed}")
    rest = UPDATES | {"training": {"order": "continued", "optimizer": {"kind": "sgd", "learning_rate": 0.1}}}
    rest["training"] |= {"batch_size": 4, "steps": 3}
    of = config(clock="wall", seed=seed, schedule=WALL[name], **rest)
    slow = 2 if name in ("sync", "window") else 1  # moments between two versions
    kept, result, before, n_tails, n_cut = None, None, [], 0, 0
    for life in range(7):
        in_tail = life in (1, 2)
        kill_at = -1 if life == 6 or in_tail else draws.randint(12, 40) * slow
        keeper = killing(tmp_path, draws.sample(range(1, 12), 2) if life > 0 else (), kill_at)
        room = bench(n_workers=draws.choice((1, 2, 3)), seed=seed + life)
        if in_tail:
            room.stop_requested = keeper.later(draws.randint(2, 8))
        try:
            result = room.run(of, keeper, kept)
            break
        except keeper.Killed:
            kept = keeper.last or kept or keeper.Kept.nothing()
            tail, kept = kept.recorded, kept.killed_at(keeper.rows)
            n_cut += tail is not None and kept.recorded is tail
            n_tails += kept.recorded is not None
            if kept.recorded is not tail:
                n_whole = 0 if kept.recorded is None else kept.recorded.history.task.size
                before = keeper.rows.history()[:n_whole]
    assert result is not None and result.status == "done" and n_tails > 0 and n_cut > 0
    assert result.rows.history()[: len(before)] == before
    tasks = result.rows.column("tasks", "task").tolist()
    assert len(set(tasks)) == len(tasks)
    versions = result.rows.column("versions", "version").tolist()
    assert versions == list(range(1, len(versions) + 1))
    times = result.rows.column("versions", "virtual_s")
    assert (np.diff(times) >= 0).all()
    again = bench(n_workers=2, seed=seed).replay(of, History.of(result.rows))
    assert np.array_equal(again.weights_P, result.weights_P)
    assert again.rows.history() == result.rows.history()
