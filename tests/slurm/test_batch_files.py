"""The shipped batch files and those that `fedsim submit` writes, before Slurm itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "slurm").glob("*.sbatch"))


def test_the_files_are_these() -> None:
    assert [path.stem for path in FILES] == ["array", "gpu", "mps", "multinode", "preemptible", "scale", "single"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_slurm_takes_the_file_unedited(path: Path, cluster: Any) -> None:
    done = cluster.script("shell", "sbatch", "--test-only", str(path.relative_to(ROOT)))
    assert done.returncode == 0 and re.search(r"Job \d+ to start at", done.stderr), done.stderr


def has_option(text: str, option: str) -> bool:
    return re.search(rf"^#SBATCH --{re.escape(option)}", text, re.MULTILINE) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_short_and_prepared_for_its_end(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 36
    for option in ("output=fedsim-%", "time=", "job-name="):
        assert has_option(text, option), option
    going_on = [has_option(text, option) for option in ("signal=B:USR2@", "requeue", "open-mode=append")]
    if (
        "fedsim scale" in text
    ):  # its folder is there already: a study cannot go on, and Slurm requeues unless told not to
        assert not any(going_on) and has_option(text, "no-requeue")
    else:
        assert all(going_on)
    assert "##SBATCH --account=" in text and "##SBATCH --partition=" in text
    assert subprocess.run(["bash", "-n", str(path)], timeout=20).returncode == 0


def test_slurm_takes_what_submit_writes(cluster: Any, tmp_path: Path) -> None:
    words = ("configs/quickstart.yaml", "--machine", "generic", "--nodes", "2", "--sbatch", "comment=two words")
    made = cluster.call(sys.executable, "-m", "fedsim", "submit", *words, "--sbatch", "gpus-per-node=2", "--dry-run")
    (tmp_path / "made.sbatch").write_text(made)
    done = cluster.script("shell", "sbatch", "--test-only", str(tmp_path / "made.sbatch"))
    assert done.returncode == 0 and "on nodes n[1-2]" in done.stderr, done.stderr


def test_slurm_refuses_what_it_does_not_know(cluster: Any, tmp_path: Path) -> None:
    done = cluster.script(
        *("shell", sys.executable, "-m", "fedsim", "submit", "configs/quickstart.yaml", "--partition", "moon"),
        *("--out", str(tmp_path / "run")),
    )
    assert done.returncode == 2 and "sbatch refuses" in done.stderr and "partition" in done.stderr
