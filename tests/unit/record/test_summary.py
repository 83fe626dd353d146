"""The summary for scripts: its numbers by hand, its hashes by definition, and that it is JSON."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from fedsim.record.reader import open_run
from fedsim.record.summary import columns_sha256

PROMISED = {
    *("status", "versions", "updates", "virtual_s", "wall_s", "updates_per_s", "model_sha256", "history_sha256"),
    *("metrics", "ranks", "training_path", "group_size"),
}


def test_it_has_what_scripts_were_promised(records: Any) -> None:
    summary = open_run(records.finished()).summary()
    assert set(summary) >= PROMISED
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["status"], summary["versions"], summary["updates"]) == ("done", 12, 8)
    assert (summary["virtual_s"], summary["wall_s"], summary["updates_per_s"]) == (12.0, 4.0, 2.0)
    assert (summary["ranks"], summary["training_path"], summary["group_size"]) == (2, "loop", 1)
    assert (summary["name"], summary["seed"], summary["rule"]) == ("made-up-3", 3, "fedasync")
    assert summary["outcomes"] == {"applied": 8, "lost": 4, "aborted": 0, "failed": 0}


def test_the_model_hash_is_of_the_flat_little_endian_floats(records: Any) -> None:
    data = b"".join(struct.pack("<f", value) for value in range(6))
    assert open_run(records.finished()).summary()["model_sha256"] == hashlib.sha256(data).hexdigest()


def test_the_history_hash_is_of_whole_columns_one_after_another(records: Any) -> None:
    tasks = range(12)
    applied = [task % 3 != 2 for task in tasks]
    columns: list[tuple[str, list[float]]] = [
        ("q", list(tasks)),
        ("q", [task % 4 for task in tasks]),
        ("q", [0 if ok else 1 for ok in applied]),
        ("q", [task // 2 for task in tasks]),
        ("q", [task if ok else -1 for task, ok in zip(tasks, applied, strict=True)]),
        ("d", [task * 1.0 for task in tasks]),
        ("d", [task + 1.0 for task in tasks]),
        ("d", [1.0 + task / 8 if ok else math.nan for task, ok in zip(tasks, applied, strict=True)]),
    ]
    data = b"".join(struct.pack(f"<12{kind}", *values) for kind, values in columns)
    assert open_run(records.finished()).summary()["history_sha256"] == hashlib.sha256(data).hexdigest()


def test_every_nan_counts_as_the_same() -> None:
    def history(bits: int) -> list[np.ndarray[Any, Any]]:
        odd = np.array([bits], np.uint64).view(np.float64)
        return [np.array([1])] * 5 + [odd] * 3

    assert columns_sha256(history(0x7FF8000000000000)) == columns_sha256(history(0xFFF8000000000123))
    assert columns_sha256(history(0x7FF8000000000000)) != columns_sha256(history(0x3FF0000000000000))


def test_metrics_are_those_of_the_last_version_by_client(records: Any) -> None:
    metrics = open_run(records.finished()).summary()["metrics"]
    assert metrics == {
        "version": 12,
        "loss": 0.875,  # the unweighted mean, there being no pooled test set
        "accuracy": 0.5,
        "clients": {
            "north": {"loss": 0.625, "accuracy": 0.75, "n_samples": 20},
            "south": {"loss": 1.125, "accuracy": 0.25, "n_samples": 20},
        },
    }


def test_a_pooled_test_set_is_the_top_level(records: Any) -> None:
    writer = records.begin(range(3))
    for row in (
        records.evaluation(3, 5, 1.0, 0.5),
        records.evaluation(3, -1, 0.25, 0.75),
        records.evaluation(0, -1, 9, 0),
    ):
        writer.append("evaluations", row)
    writer.close("done")
    metrics = open_run(records.folder).summary()["metrics"]
    assert (metrics["version"], metrics["loss"], metrics["accuracy"], metrics["n_samples"]) == (3, 0.25, 0.75, 20)
    assert metrics["clients"] == {"5": {"loss": 1.0, "accuracy": 0.5, "n_samples": 20}}


def test_what_is_not_there_is_null(records: Any) -> None:
    writer = records.begin()
    writer.append("evaluations", records.evaluation(0, -1, math.nan, math.inf))
    writer.flush()
    summary = open_run(records.folder).summary()
    writer.close("failed")
    assert (summary["status"], summary["versions"], summary["updates"]) == ("running", 0, 0)
    assert [summary[name] for name in ("model_sha256", "virtual_s", "updates_per_s", "staleness")] == [None] * 4
    assert (summary["metrics"]["loss"], summary["metrics"]["accuracy"]) == (None, None)
    json.dumps(summary, allow_nan=False)


def test_a_run_without_its_end_is_counted(records: Any) -> None:
    writer = records.begin(range(10))
    summary = open_run(records.folder).summary()
    writer.close("failed")
    assert (summary["versions"], summary["updates"], summary["virtual_s"]) == (10, 7, 10.0)
    assert summary["wall_s"] == pytest.approx(1.0)


def test_wall_time_is_that_of_all_attempts(records: Any) -> None:
    records.finish(records.begin(range(4)), 4, wall_s=4.0, status="stopped")
    records.finish(records.begin(range(4, 6), attempt=1, start_rows={"tasks": 4, "versions": 4}), 6, wall_s=2.5)
    summary = open_run(records.folder).summary()
    assert (summary["wall_s"], summary["updates"]) == (6.5, 4)


def test_staleness_is_that_of_applied_updates(records: Any) -> None:
    # Tasks 0, 1, 3, 4, 6, 7, 9, 10 are applied, with staleness 0, 1, 2, 2, 3, 4, 5, 5.
    staleness = open_run(records.finished()).summary()["staleness"]
    assert (staleness["mean"], staleness["p50"], staleness["max"]) == (2.75, 2.5, 5)
