"""Workers that sum updates themselves: the same bits on any number of ranks, one message a worker and version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.record.reader import open_run

Ran = Callable[..., dict[str, Any]]
Start = Callable[..., "subprocess.CompletedProcess[str]"]
N_PARAMETERS = 16 * 8 + 8 + 8 * 5 + 5
BASE: dict[str, Any] = {
    "name": "sums",
    "data": {"dataset": "synthetic-images", "clients": 400, "shape": [16], "classes": 5, "samples": 10},
    "model": {"kind": "mlp", "hidden": [8]},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 10, "epochs": 1},
    "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.05},
    "evaluation": {"every_versions": 5},
    "reduce": {"at": "workers", "norm_bound": 4},
}
BUFFERED = {
    "schedule": {"policy": "buffered", "concurrency": 64, "buffer": 16},
    "aggregation": {"rule": "fedbuff"},
    "stop": {"updates": 325},  # the last version is not made
}
ROUNDS = {
    "schedule": {"policy": "sync", "cohort": 40, "over_selection": 1.25},
    "aggregation": {"rule": "fedavg"},
    "stop": {"versions": 8},
}
KEPT = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "status")
SMALL = ("memory.worker_updates_bytes=0", "memory.worker_versions_bytes=0", "training.group_size=3")


def written(folder: Path, *parts: dict[str, Any]) -> str:
    """A file with the configuration (JSON is YAML)."""
    whole = dict(BASE)
    for part in parts:
        whole |= part
    path = folder / "config.yaml"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return str(path)


def kept(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in KEPT}


@pytest.mark.parametrize("part", [BUFFERED, ROUNDS], ids=["buffered", "rounds"])
def test_the_same_bits_on_any_number_of_ranks(part: dict[str, Any], ran: Ran, tmp_path: Path) -> None:
    config = written(tmp_path, part)
    inline = ran(1, tmp_path / "1", config)
    assert inline["status"] == "done"
    for n, sets in ((2, ()), (3, ("placement=dynamic",)), (5, SMALL)):
        assert kept(ran(n, tmp_path / str(n), config, *sets)) == kept(inline), n
    assert kept(ran(1, tmp_path / "small", config, *SMALL)) == kept(inline)
    plain = ran(1, tmp_path / "plain", config, "reduce=null")
    assert plain["history_sha256"] == inline["history_sha256"]
    ours, theirs = (open_run(tmp_path / name).weights for name in ("1", "plain"))
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_a_version_costs_does_not_depend_on_the_cohort(ran: Ran, tmp_path: Path) -> None:
    sent = {}
    for cohort in (40, 320):
        config = written(tmp_path, ROUNDS, {"schedule": {"policy": "sync", "cohort": cohort}, "devices": {}})
        ran(3, tmp_path / str(cohort), config, "evaluation.every_versions=null")
        columns = open_run(tmp_path / str(cohort)).columns("workers", ["worker", "sent_bytes", "n_tasks"])
        last = [np.flatnonzero(columns["worker"] == rank)[-1] for rank in (1, 2)]
        assert columns["n_tasks"][last].sum() == 8 * cohort
        sent[cohort] = columns["sent_bytes"][last].sum()
    assert sent[40] >= 2 * 8 * 8 * N_PARAMETERS, "eight versions, two workers, eight bytes a parameter"
    assert sent[320] - sent[40] <= 128 * 8 * 280, "reports alone"


def test_a_sum_that_dies_with_its_worker_is_made_again(ran: Ran, start_tolerant: Start, tmp_path: Path) -> None:
    config = written(tmp_path, ROUNDS)
    inline = ran(1, tmp_path / "1", config)
    env = {"FEDSIM_INJECT": "kill:9@2"}
    assert kept(ran(4, tmp_path / "4", config, env=env, how=start_tolerant)) == kept(inline)


@pytest.mark.parametrize("n", [1, 3])
def test_an_overflow_ends_the_run_with_a_line(n: int, start: Start, tmp_path: Path) -> None:
    config = written(tmp_path, BUFFERED, {"reduce": {"at": "workers", "norm_bound": 1e-3}})
    done = start(n, "run", config, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "above reduce.norm_bound (0.001), so sums in 64 bits could overflow" in done.stderr
