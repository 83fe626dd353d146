"""Large versions reach a node once: fewer bytes, the same bits, also where the worker that receives them dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ran = Callable[..., dict[str, Any]]
SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")
N_PARAMETERS = 512 * 520 + 520 + 520 * 10 + 10  # more than travel in bundles
N_VERSIONS = 6
CONFIG = f"""
name: nodes
data: {{dataset: synthetic-images, clients: 24, samples: 8, test_samples: 20, shape: [512], classes: 10}}
model: {{kind: mlp, hidden: [520]}}
devices: {{compute: {{time: {{law: exponential, mean: 1.0}}}}}}
training: {{optimizer: {{kind: sgd, learning_rate: 0.05}}, batch_size: 4, epochs: 1, group_size: 2}}
schedule: {{policy: sync, cohort: 12}}
aggregation: {{rule: fedavg}}
evaluation: {{every_versions: 2}}
record: {{flush_s: 0.05}}
stop: {{versions: {N_VERSIONS}}}
"""
BUFFERED = (
    "schedule={policy: buffered, concurrency: 9, buffer: 3}",
    "aggregation={rule: fedbuff, server_learning_rate: 1.0}",
    "stop.versions=12",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("nodes") / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def same(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in SAME}


def received(folder: Path) -> dict[int, float]:
    """Bytes of versions that each worker was sent."""
    from fedsim.record.reader import open_run

    columns = open_run(folder).columns("workers", ["worker", "received_bytes"])
    ranks, n_bytes = columns["worker"].tolist(), columns["received_bytes"].tolist()
    return {rank: max(n for r, n in zip(ranks, n_bytes, strict=True) if r == rank) for rank in set(ranks) if rank > 0}


def test_a_node_is_sent_each_version_once(ran: Ran, start_mpich: Any, config: str, tmp_path: Path) -> None:
    alone = same(ran(1, tmp_path / "alone", config))
    assert same(ran(3, tmp_path / "shared", config)) == alone
    assert same(ran(3, tmp_path / "mpich", config, how=start_mpich)) == alone
    n_bytes = 4 * N_PARAMETERS
    for name in ("shared", "mpich"):
        assert sum(received(tmp_path / name).values()) == pytest.approx((N_VERSIONS + 1) * n_bytes, abs=n_bytes)
    env = {"FEDSIM_NODE_CACHE": "off"}
    assert same(ran(3, tmp_path / "private", config, env=env)) == alone
    assert sum(received(tmp_path / "private").values()) >= 2 * N_VERSIONS * n_bytes


def test_others_do_not_wait_for_what_a_dead_worker_was_to_receive(
    ran: Ran, start_tolerant: Any, config: str, tmp_path: Path
) -> None:
    sets, env = (*BUFFERED, "fault_tolerant=true"), {"FEDSIM_INJECT": "kill-receiving:4@1;segv:3@2"}
    there = ran(4, tmp_path / "run", config, *sets, env=env, how=start_tolerant)
    assert same(there) == same(ran(1, tmp_path / "alone", config, *BUFFERED))
