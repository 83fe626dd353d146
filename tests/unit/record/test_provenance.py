"""Provenance: what is said of configuration, code and machine, and that looking it up never fails."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim.errors
from fedsim.record import provenance


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit; the package seems to lie outside of any."""
    if provenance._git(tmp_path, "--version") is None:
        pytest.skip("git is not on the PATH")
    package = tmp_path / "site-packages"
    package.mkdir()
    monkeypatch.setattr(fedsim.errors, "__file__", str(package / "errors.py"))
    (package / "errors.py").touch()
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "run.yaml").write_text("seed: 1\n")
    git(folder, "add", "run.yaml")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_repository_of_the_working_folder(repository: Path) -> None:
    expected = {
        "git_commit": git(repository, "rev-parse", "HEAD"),
        "git_repository": "working folder",
        "git_clean": True,
    }
    assert provenance.git_state(repository) == expected
    (repository / "runs.h5").write_text("a record, not tracked")
    assert provenance.git_state(repository) == expected


def test_a_changed_file_is_not_clean(repository: Path) -> None:
    (repository / "run.yaml").write_text("seed: 2\n")
    assert provenance.git_state(repository)["git_clean"] is False


def test_a_package_under_git_comes_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedsim.errors, "__file__", str(repository / "run.yaml"))
    assert provenance.git_state(repository.parent)["git_repository"] == "package"


def test_a_package_that_only_lies_in_a_repository_does_not_count(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "installed.py").touch()
    monkeypatch.setattr(fedsim.errors, "__file__", str(repository / "installed.py"))
    assert provenance.git_state(repository.parent / "site-packages") == {}


def test_without_git_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) == {}
    assert provenance.git_state(tmp_path / "nowhere") == {}


def test_slurm_ids_come_from_the_mapping_that_is_given() -> None:
    environment = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4", "SLURM_CONF": "/etc/x", "SECRET": "s"}
    assert provenance.slurm_ids(environment) == {"slurm_job_id": "12", "slurm_ntasks": "4"}


def test_everything_given_is_said(records: Any) -> None:
    facts = records.facts_of(attempt=2, parent="record-001.h5", mpi_library="Open MPI v5.0.7", allow_mixed=True)
    said = provenance.collect(facts, {}, Path("/")).attributes
    assert said["config_sha256"] == hashlib.sha256(facts.config_text.encode()).hexdigest()
    assert (said["seed"], said["ranks"], said["attempt"], said["parent"]) == (3, 2, 2, "record-001.h5")
    assert (said["hosts"], said["devices"]) == ('["node1", "node2"]', '["cpu", "cuda:0"]')
    assert (said["mpi_library"], said["allow_mixed"]) == ("Open MPI v5.0.7", True)
    assert said["numpy_version"] == np.__version__
    assert {"python_version", "h5py_version", "hdf5_version", "fedsim_version"} <= set(said)


def test_what_is_unknown_is_left_out(records: Any) -> None:
    said = provenance.collect(records.facts_of(), {}, Path("/")).attributes
    assert "parent" not in said and "mpi_library" not in said
    assert "" not in said.values()
