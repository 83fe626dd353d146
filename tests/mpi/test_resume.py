"""A job that died whole goes on under MPI: on another number of ranks, with another library, to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEART = ("configs/heart-async.yaml", "stop.versions=80", "checkpoint.every_versions=10", "record.flush_s=0.1")
SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")


@pytest.fixture(scope="module")
def undisturbed(ran: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ran(1, tmp_path_factory.mktemp("undisturbed") / "run", *HEART)


@pytest.fixture(scope="module")
def killed(start: Any, summary: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three ranks that the death of one of them has ended, past its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    sets = [word for value in HEART[1:] for word in ("--set", value)]
    done = start(3, "run", HEART[0], "--out", str(folder), "--quiet", *sets, env={"FEDSIM_INJECT": "kill:25@1"})
    assert done.returncode != 0 and summary(folder)["status"] == "running"
    assert list(folder.glob("checkpoint-*.h5")), "it died before its first checkpoint"
    return folder


@pytest.mark.parametrize(("mpi", "n"), [("start", 2), ("start_mpich", 3)])
def test_on_other_ranks(
    mpi: str, n: int, killed: Path, undisturbed: Any, summary: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    done = request.getfixturevalue(mpi)(n, "resume", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 0, done.stderr
    there = summary(tmp_path / "run")
    assert {key: there[key] for key in SAME} == {key: undisturbed[key] for key in SAME}
    assert (there["attempts"], there["ranks"]) == (2, n)
