"""Workers that die where MPI tolerates it: the others go on, and the bits are those of a run without deaths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

Ran = Callable[..., dict[str, Any]]
SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")
HEART = ("configs/heart-async.yaml", "stop.versions=150", "evaluation.every_versions=2")


def _same(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in SAME}


@pytest.fixture(scope="module")
def undisturbed(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _same(ran(1, tmp_path_factory.mktemp("undisturbed") / "run", *HEART))


def _failures(folder: Path) -> list[tuple[int, str]]:
    """Rank and kind of each failure in the record."""
    from fedsim.record.reader import open_run

    columns = open_run(folder).columns("failures", ["worker", "kind"])
    return [(int(rank), kind.decode()) for rank, kind in zip(columns["worker"], columns["kind"], strict=True)]


@pytest.mark.parametrize(
    ("inject", "dead", "placement"),
    [
        ("segv:3@1;exit:4@3", {1, 3}, "home"),
        ("kill:4@2;kill:4@3", {2, 3}, "dynamic"),
        ("kill-evaluating:2@2;kill-receiving:5@1", {1, 2}, "home"),
    ],
)
def test_the_others_go_on(
    inject: str, dead: set[int], placement: str, ran: Ran, start_tolerant: Any, undisturbed: Any, tmp_path: Path
) -> None:
    sets = (*HEART[1:], f"placement={placement}", "fault_tolerant=true")
    there = ran(4, tmp_path / "run", HEART[0], *sets, env={"FEDSIM_INJECT": inject}, how=start_tolerant)
    assert _same(there) == undisturbed
    assert sorted(_failures(tmp_path / "run")) == [(rank, "WorkerLost") for rank in sorted(dead)]


def test_results_held_by_a_worker_that_dies_are_trained_again(
    ran: Ran, start_tolerant: Any, undisturbed: Any, tmp_path: Path
) -> None:
    sets = (*HEART[1:], "memory.server_updates_bytes=0", "memory.worker_versions_bytes=0")
    env = {"FEDSIM_INJECT": "kill:6@3;segv:9@1"}
    assert _same(ran(4, tmp_path / "run", HEART[0], *sets, env=env, how=start_tolerant)) == undisturbed


def test_the_last_worker_s_death_ends_the_run_with_a_checkpoint(
    start: Any, start_tolerant: Any, summary: Any, undisturbed: Any, tmp_path: Path
) -> None:
    sets = [word for value in HEART[1:] for word in ("--set", value)]
    words = ("run", HEART[0], "--out", str(tmp_path / "run"), "--quiet", *sets)
    done = start_tolerant(3, *words, env={"FEDSIM_INJECT": "kill:3@1;kill:5@2"})
    assert done.returncode == 77, done.stderr
    assert "no worker is left" in done.stderr and "Traceback" not in done.stderr
    lost = summary(tmp_path / "run")
    assert lost["status"] == "lost" and (tmp_path / "run" / "checkpoint-000001.h5").exists()
    assert start(1, "resume", str(tmp_path / "run"), "--quiet").returncode == 0
    with h5py.File(tmp_path / "run" / "record-001.h5") as file:
        assert json.loads(file.attrs["start_rows"])["versions"] == lost["versions"], "nothing was lost"
    assert _same(summary(tmp_path / "run")) == undisturbed


def test_the_last_worker_s_death_in_the_last_evaluation_leaves_a_checkpoint(
    start: Any, start_tolerant: Any, summary: Any, ran: Ran, tmp_path: Path
) -> None:
    sets = ("stop.versions=20", "evaluation.every_versions=null")
    words = ("run", HEART[0], "--out", str(tmp_path / "run"), "--quiet", *(w for s in sets for w in ("--set", s)))
    done = start_tolerant(2, *words, env={"FEDSIM_INJECT": "kill-evaluating:1@1"})
    assert done.returncode == 77 and "Traceback" not in done.stderr, done.stderr
    assert summary(tmp_path / "run")["status"] == "lost" and (tmp_path / "run" / "checkpoint-000001.h5").exists()
    assert start(1, "resume", str(tmp_path / "run"), "--quiet").returncode == 0
    with h5py.File(tmp_path / "run" / "record-001.h5") as file:
        assert json.loads(file.attrs["start_rows"])["versions"] == 20, "nothing was lost"
    assert _same(summary(tmp_path / "run")) == _same(ran(1, tmp_path / "whole", HEART[0], *sets))


def test_without_fault_tolerance_a_death_ends_the_job(start: Any, summary: Any, tmp_path: Path) -> None:
    words = ("run", HEART[0], "--out", str(tmp_path / "run"), "--quiet")
    done = start(3, *words, env={"FEDSIM_INJECT": "kill:3@1"})
    assert done.returncode != 0
    assert summary(tmp_path / "run")["status"] == "running", "nobody was left to say more"


@pytest.mark.parametrize("mpi", ["start", "start_mpich"])
def test_tolerance_is_refused_where_mpi_has_none(mpi: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    words = ("run", HEART[0], "--out", str(tmp_path / "run"), "--quiet", "--set", "fault_tolerant=true")
    done = request.getfixturevalue(mpi)(2, *words)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("fedsim: ")]
    assert "fault_tolerant: true, but" in line and "mpirun --with-ft ulfm" in line
