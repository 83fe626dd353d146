"""What cannot be summed at workers is refused before the run starts, and what a sum has no room for ends it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import ReduceConfig
from fedsim.configfile import from_mapping
from fedsim.engine.plan import plan
from fedsim.engine.summing import Summing
from fedsim.errors import ClientError, ConfigError
from fedsim.types import Task, TaskReport

PLAIN: dict[str, Any] = {
    "name": "sums",
    "data": {"dataset": "synthetic-images", "clients": 40, "shape": [4], "classes": 5, "samples": 10},
    "model": {"kind": "mlp", "hidden": [3]},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 10, "epochs": 1},
    "schedule": {"policy": "buffered", "concurrency": 8, "buffer": 4},
    "aggregation": {"rule": "fedbuff"},
    "stop": {"versions": 3},
    "reduce": {"at": "workers", "norm_bound": 2.0},
}
TASK = Task(3, 7, 2, 10, 1, 0, 0.1, *(math.nan,) * 6, False, True)


def planned(changes: dict[str, Any]) -> Any:
    return plan(from_mapping(PLAIN | changes), Path.cwd())


def test_check_says_what_a_version_costs() -> None:
    lines = dict(planned({}).lines())
    assert lines["sums"] == "made by workers: 280 bytes a worker and version to rank zero"
    assert "sums" not in dict(planned({"reduce": None}).lines())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": {"policy": "async", "concurrency": 8}, "aggregation": {"rule": "fedavg"}}, "each arrival is a"),
        ({"schedule": {"policy": "buffered", "concurrency": 8, "buffer": 1}}, "each arrival is a version"),
        ({"schedule": {"policy": "sync", "cohort": 4}, "aggregation": {"rule": "fednova"}}, "rule fednova makes no"),
        ({"clock": "wall"}, "reduce: the wall clock"),
        ({"on_client_error": "drop"}, "reduce: what is dropped"),
        ({"reduce": {"at": "workers"}}, "norm_bound"),
        ({"reduce": {"at": "workers", "norm_bound": 0}}, "norm_bound"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_summed_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(changes)


def test_norms_and_weights_have_bounds() -> None:
    summing = Summing(ReduceConfig(at="workers", norm_bound=2.0))
    summing.check(TASK, TaskReport(3, 1, 10, 1, 0.0, 0.0, 2.0, 0.0))
    with pytest.raises(ClientError, match=r"client 7, task 3, version 2: the norm of the update is 2.5, above"):
        summing.check(TASK, TaskReport(3, 1, 10, 1, 0.0, 0.0, 2.5, 0.0))
    total_P = np.array([2**40, -(2**34)])
    assert summing.real(total_P, 2.0**26, 1).tolist() == [2.0**40 / summing.scale, -(2.0**34) / summing.scale]
    with pytest.raises(ConfigError, match="the weights of version 9 sum to"):
        summing.real(total_P, 2.0**26 + 1, 9)
