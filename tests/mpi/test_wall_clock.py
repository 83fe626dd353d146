"""On the wall clock updates are applied as they come; a replay trains what happened again and reaches the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ran = Callable[..., dict[str, Any]]

CONFIG = """\
name: wall
seed: 5
clock: wall
data: {dataset: heart}
model: {kind: logistic}
training:
  optimizer: {kind: sgd, learning_rate: 0.01, momentum: 0.5}
  batch_size: 4
  steps: 20
  order: continued
  decay: {factor: 0.9, every_versions: 5}
schedule: {policy: async, concurrency: 4}
aggregation: {rule: fedasync}
evaluation: {every_versions: 10}
stop: {versions: 60}
"""
POLICIES = {
    "async": ("schedule={policy: async, concurrency: 4}", "aggregation={rule: fedasync}"),
    "buffered": ("schedule={policy: buffered, concurrency: 4, buffer: 3}", "aggregation={rule: fedbuff}"),
    "k-async": ("schedule={policy: k-async, concurrency: 4, k: 2}", "aggregation={rule: k-async}"),
    "window": ("schedule={policy: window, concurrency: 4, window_s: 0.05}", "aggregation={rule: fedavg}"),
    "sync": ("schedule={policy: sync, cohort: 2, over_selection: 2.0, deadline_s: 5.0}", "aggregation={rule: fedavg}"),
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "wall.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def _replayed(n: int, start: Any, summary: Any, source: Path, out: Path) -> dict[str, Any]:
    done = start(n, "replay", str(source), "--out", str(out), "--quiet")
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    shown: dict[str, Any] = summary(out)
    return shown


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replay_reaches_the_same_bits(
    policy: str, ran: Ran, start: Any, summary: Any, config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    versions = "60" if policy in ("async", "buffered") else "20"
    live = ran(4, run, config, *POLICIES[policy], f"stop.versions={versions}", env={"FEDSIM_INJECT": "sleep:0.01"})
    assert live["status"] == "done"
    if policy in ("async", "buffered"):
        assert live["staleness"]["mean"] > 0
    for n in (1, 3):
        again = _replayed(n, start, summary, run, tmp_path / f"replay-{n}")
        for key in ("model_sha256", "history_sha256", "versions", "updates", "metrics"):
            assert again[key] == live[key], key


def test_a_stop_by_wall_seconds_ends_as_stopped(
    ran: Ran, start: Any, summary: Any, config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    live = ran(3, run, config, "stop.versions=1000000", "stop.wall_s=2.0", "training.group_size=2")
    assert live["status"] == "stopped"
    assert live["wall_s"] < 60
    again = _replayed(1, start, summary, run, tmp_path / "replay")
    assert (again["model_sha256"], again["history_sha256"]) == (live["model_sha256"], live["history_sha256"])


def test_a_replay_of_a_virtual_run(ran: Ran, start: Any, summary: Any, tmp_path: Path) -> None:
    first = ran(1, tmp_path / "run", "configs/digits-buffered.yaml", "stop.versions=15")
    again = _replayed(3, start, summary, tmp_path / "run", tmp_path / "replay")
    for key in ("model_sha256", "history_sha256", "metrics"):
        assert again[key] == first[key], key
