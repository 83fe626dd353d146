"""FedBuff whose buffer takes everybody at work is FedAvg, in whole runs, where all tasks take equally long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim

N_VERSIONS = 12


def _run(folder: Path, sizes: tuple[int, int], schedule: dict[str, Any], rule: dict[str, Any]) -> fedsim.Run:
    """Twelve versions of ten clients, of whom each has between `sizes` samples and needs a second for any task."""
    least, most = sizes
    config = {
        "name": folder.name,
        "seed": 11,
        "data": {
            "dataset": "synthetic-leaf",
            "clients": 10,
            "features": 6,
            "classes": 3,
            "min_samples": least,
            "max_samples": most,
        },
        "devices": {"compute": {"time": {"law": "constant", "mean": 1.0}, "per": "task"}},
        "model": {"kind": "mlp", "hidden": [5]},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "batch_size": 8, "epochs": 2},
        "schedule": schedule,
        "aggregation": rule,
        "evaluation": {"every_versions": 1},
        "stop": {"versions": N_VERSIONS},
    }
    run = fedsim.run(config, folder)
    assert run is not None and run.status == "done"
    return run


def _both(folder: Path, m: int, sizes: tuple[int, int], buffered: str, averaged: str) -> tuple[fedsim.Run, fedsim.Run]:
    """FedBuff of m tasks at work and a buffer of m, and FedAvg in rounds of m, each with its weighting."""
    schedule = {"policy": "buffered", "concurrency": m, "buffer": m}
    one = _run(folder / "fedbuff", sizes, schedule, {"rule": "fedbuff", "weighting": buffered})
    schedule = {"policy": "sync", "cohort": m}
    return one, _run(folder / "fedavg", sizes, schedule, {"rule": "fedavg", "weighting": averaged})


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("m", [10, 4])
def test_the_same_bits(tmp_path: Path, m: int, weighting: str) -> None:
    """Task numbers choose clients and batches, and s(0) = 1: the same updates in the same order into the same sum."""
    fedbuff, fedavg = _both(tmp_path, m, (20, 60), weighting, weighting)
    assert len(fedbuff.tasks) == m * N_VERSIONS and fedbuff.tasks["n_samples"].nunique() > 1
    assert not fedbuff.tasks["staleness"].any()
    found, wanted = fedbuff.summary(), fedavg.summary()
    for fact in ("model_sha256", "history_sha256", "virtual_s", "metrics"):
        assert found[fact] == wanted[fact], fact
    assert fedbuff.evaluations.drop(columns="wall_s").equals(fedavg.evaluations.drop(columns="wall_s"))  # all versions


def test_clients_of_equal_size_need_no_weights(tmp_path: Path) -> None:
    """Both rules by default: the mean of all alike against the mean by samples."""
    fedbuff, fedavg = _both(tmp_path, 4, (23, 23), "uniform", "samples")
    assert fedbuff.tasks["n_samples"].nunique() == 1 and not fedbuff.tasks["staleness"].any()
    assert fedbuff.weights is not None and fedavg.weights is not None
    # sum(n D) / sum(n) rounds elsewhere than sum(D) / K: by 2^-53, which a cast to float32 seldom lets through, then
    # by one place in the last digit (6e-8 for weights below 1); twelve versions of training may make some of it
    np.testing.assert_allclose(fedbuff.weights, fedavg.weights, rtol=0.0, atol=1e-6)
    losses = fedbuff.evaluations.groupby("version")["loss"].mean()
    assert losses.iloc[-1] < losses.iloc[0] - 0.1  # they moved: there was something to differ in
