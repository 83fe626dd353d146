"""Long runs go through the fast lane, and leave the bits of the general path on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim import configfile
from fedsim.engine import lane
from fedsim.engine.plan import plan

SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")
# Too little room for all that can be unconsumed: what closes the lane, and changes nothing else.
WITHOUT_LANE = ("memory.server_updates_bytes=0",)
SCHEDULES: dict[str, dict[str, Any]] = {
    "fedasync": {"schedule": {"policy": "async", "concurrency": 90}, "aggregation": {"rule": "fedasync"}},
    "fedbuff": {
        "schedule": {"policy": "buffered", "concurrency": 90, "buffer": 32},
        "aggregation": {"rule": "fedbuff"},
    },
    "fedavg": {"schedule": {"policy": "sync", "cohort": 90}, "aggregation": {"rule": "fedavg"}},
    "fedyogi": {"schedule": {"policy": "k-async", "concurrency": 90, "k": 7}, "aggregation": {"rule": "fedyogi"}},
}


def config(name: str) -> dict[str, Any]:
    """A federation of two-layer networks of few parameters, for 4,500 updates."""
    return {
        "name": name,
        "seed": 5,
        "data": {"dataset": "synthetic-images", "clients": 200, "classes": 6, "shape": [12], "samples": 12},
        "model": {"kind": "mlp", "hidden": [6]},
        "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 6, "epochs": 1},
        "evaluation": {"every_versions": 50},
        "stop": {"updates": 4500},
        "device": "cpu",
        **SCHEDULES[name],
    }


@pytest.mark.parametrize(
    ("name", "n", "sets"),
    [
        ("fedasync", 3, ("placement=dynamic",)),
        ("fedbuff", 4, ("placement=home", "training.group_size=5")),
        ("fedavg", 3, ("placement=dynamic",)),
        ("fedyogi", 3, ("placement=home",)),
    ],
)
def test_the_lane_on_several_ranks(
    name: str, n: int, sets: tuple[str, ...], ran: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(name)), encoding="utf-8")
    assert lane._why_not(plan(configfile.load(path, ()), tmp_path)) is None
    assert lane._why_not(plan(configfile.load(path, WITHOUT_LANE), tmp_path)) == "there is no room for all"
    expected = ran(1, tmp_path / "without", str(path), *WITHOUT_LANE)
    found = ran(n, tmp_path / "with", str(path), *sets)
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
