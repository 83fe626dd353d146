"""Runs without training: the history of the trained run, its record, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.engine.launching import World
from fedsim.engine.run import Caller, replay_run
from fedsim.errors import ConfigError, LaunchError, RecordError, StalledError
from fedsim.record.summary import history_sha256

BASE: dict[str, Any] = {
    "name": "alone",
    "seed": 3,
    "data": {"dataset": "synthetic-images", "clients": 30, "classes": 5, "shape": [4], "test_samples": 8},
    "model": {"kind": "logistic"},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "batch_size": 10, "epochs": 1, "path": "loop"},
    "devices": {
        "compute": {"time": {"law": "exponential", "mean": 1.0}, "per": "step"},
        "upload": {"latency_s": {"law": "lognormal", "mean": 0.2, "sigma": 1.0}},
        "loss_probability": 0.1,
    },
    "evaluation": {"every_versions": None},
    "stop": {"updates": 60},
}
POLICIES = [
    ({"policy": "async", "concurrency": 7}, {"rule": "fedasync", "staleness": {"kind": "polynomial", "a": 0.5}}),
    ({"policy": "buffered", "concurrency": 7, "buffer": 4}, {"rule": "fedbuff", "weighting": "samples"}),
    ({"policy": "k-async", "concurrency": 7, "k": 3}, {"rule": "k-async", "max_staleness": 1}),
    ({"policy": "sync", "cohort": 5, "over_selection": 1.5, "deadline_s": 4.0}, {"rule": "fedavg"}),
    ({"policy": "window", "concurrency": 6, "window_s": 2.0}, {"rule": "fedavg"}),
    ({"policy": "tiers", "tiers": 2, "cohort": 3}, {"rule": "fedbuff"}),
]


@pytest.mark.parametrize(("schedule", "rule"), POLICIES)
def test_the_history_is_that_of_the_trained_run(schedule: Any, rule: Any, tmp_path: Path) -> None:
    config = BASE | {"schedule": schedule, "aggregation": rule}
    trained = fedsim.run(config, tmp_path / "trained")
    alone = fedsim.run(config | {"training": config["training"] | {"path": "none"}}, tmp_path / "alone")
    assert trained is not None and alone is not None
    assert history_sha256(alone) == history_sha256(trained)
    for column in ("version", "virtual_s", "n_updates", "weight_sum", "staleness_mean", "staleness_max"):
        assert alone.versions[column].tolist() == trained.versions[column].tolist(), column
    for column in ("n_samples", "n_steps", "staleness", "virtual_compute_s", "virtual_upload_s"):
        assert alone.tasks[column].tolist() == trained.tasks[column].tolist(), column
    summary, other = alone.summary(), trained.summary()
    assert summary["training_path"] == "none" and summary["model_sha256"] is None and summary["metrics"] is None
    for key in ("status", "versions", "updates", "virtual_s", "outcomes", "staleness"):
        assert summary[key] == other[key]


def test_training_none_is_short_for_a_task_of_one_step(tmp_path: Path) -> None:
    config = BASE | {"schedule": POLICIES[0][0], "aggregation": POLICIES[0][1], "training": "none"}
    run = fedsim.run(config, tmp_path / "alone")
    assert run is not None and set(run.tasks.n_steps) == {1} and run.summary()["updates"] == 60
    with pytest.raises(RecordError, match="nothing was trained"):
        replay_run(tmp_path / "alone", None, Caller(World(0, 1, None)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clock": "wall", "devices": {}}, "needs clock: virtual"),
        ({"stop": {"updates": 5, "target": {"value": 0.5}}, "evaluation": {}}, "nothing is evaluated"),
    ],
)
def test_what_needs_results_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = BASE | {"schedule": POLICIES[0][0], "aggregation": POLICIES[0][1], "training": "none"} | changes
    with pytest.raises(ConfigError, match=words):
        fedsim.run(config, tmp_path / "alone")


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    class Two:
        def allgather(self, mine: Any) -> list[Any]:
            return [mine, mine]

    config = BASE | {"schedule": POLICIES[0][0], "aggregation": POLICIES[0][1], "training": "none"}
    with pytest.raises(LaunchError, match="got 2 ranks"):
        fedsim.run(config, tmp_path / "alone", world=World(0, 2, Two()))  # type: ignore[arg-type]


def test_a_stalled_schedule_says_so_and_leaves_its_record(tmp_path: Path) -> None:
    never = {"compute": {"time": {"law": "constant", "mean": 9.0}}}
    schedule = {"policy": "sync", "cohort": 2, "deadline_s": 1.0}
    config = BASE | {"schedule": schedule, "aggregation": {"rule": "fedavg"}, "training": "none", "devices": never}
    with pytest.raises(StalledError, match="were all lost or aborted"):
        fedsim.run(config, tmp_path / "alone")
    assert fedsim.open_run(tmp_path / "alone").status == "stalled"
