"""Jobs of the private cluster, from `fedsim submit` to the record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.record.reader import open_run


def submitted(cluster: Any, out: Path, config: str, *words: str) -> str:
    """The number of a job."""
    said = cluster.call(
        *(sys.executable, "-m", "fedsim", "submit", config, "--machine", "private-cluster", "--out", str(out), *words)
    )
    return str(said.split()[1].rstrip(":"))


def printed(out: Path) -> str:
    """What the jobs of a run printed."""
    return "\n".join(path.read_text() for path in out.parent.glob(f"{out.name}-*.out"))


@pytest.fixture(scope="session")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`inline(config, *overrides)`: the summary of a run in one process."""
    import subprocess

    def runner(config: str, *overrides: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("inline") / "run"
        words = [word for override in overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "fedsim", "run", config, "--out", str(out), "--quiet", *words]
        subprocess.run(command, check=True, timeout=120)
        return open_run(out).summary()

    return runner


def bits(summary: dict[str, Any]) -> tuple[str, str]:
    return summary["model_sha256"], summary["history_sha256"]


def test_a_submitted_job_runs_on_both_nodes(cluster: Any, tmp_path: Path, inline: Any) -> None:
    out = tmp_path / "run"
    sets = ("--set", "stop.versions=40")
    job = submitted(cluster, out, "configs/quickstart.yaml", *sets)
    assert cluster.ended(job, 120) == "COMPLETED", printed(out)
    run = open_run(out)
    assert run.attributes["slurm_job_id"] == job
    assert run.attributes["slurm_job_num_nodes"] == "2"
    assert bits(run.summary()) == bits(inline("configs/quickstart.yaml", "stop.versions=40"))
    if cluster.mode == "namespaces":
        assert json.loads(str(run.attributes["hosts"])) == ["n1", "n2"]
