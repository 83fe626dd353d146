"""Jobs of the private cluster, from `fedsim submit` to the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import FedsimError
from fedsim.record.reader import open_run


def submitted(
    cluster: Any,
    out: Path,
    config: str,
    *words: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> str:
    """The number of a job; of the machine "private-cluster" unless the words name another."""
    machine = () if "--machine" in words else ("--machine", "private-cluster")
    said = cluster.call(python, "-m", "fedsim", "submit", config, *machine, "--out", str(out), *words, env=env)
    return str(said.split()[1].rstrip(":"))


def printed(out: Path) -> str:
    """What the jobs of a run printed."""
    return "\n".join(path.read_text() for path in out.parent.glob(f"{out.name}-*.out"))


@pytest.fixture(scope="session")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`inline(config, *overrides)`: the summary of a run in one process."""

    def runner(config: str, *overrides: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("inline") / "run"
        words = [word for override in overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "fedsim", "run", config, "--out", str(out), "--quiet", *words]
        subprocess.run(command, check=True, timeout=120)
        return open_run(out).summary()

    return runner


def bits(summary: dict[str, Any]) -> tuple[str, str]:
    return summary["model_sha256"], summary["history_sha256"]


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
SHORT = ("--set", "stop.versions=15")


def test_the_bits_are_those_of_any_mpi_and_any_placement(cluster: Any, tmp_path: Path, inline: Any) -> None:
    """Open MPI by mpirun and MPICH by srun, on one node and on two: four jobs at once."""
    mpich = os.environ.get("FEDSIM_TEST_MPICH_PYTHON")
    if not mpich:
        pytest.skip("FEDSIM_TEST_MPICH_PYTHON is not set: launch/test sets it")
    # Not UCX: configs/machines/private-cluster.yaml says why.
    machine = "{name: srun, launcher: srun, mpi: pmi2, warn_s: 60, environment: {MPIR_CVAR_CH4_NETMOD: ofi}}"
    (tmp_path / "srun.yaml").write_text(machine + "\n")
    srun = ("--machine", str(tmp_path / "srun.yaml"), "--ranks", "4")
    jobs = {}
    for nodes in (1, 2):
        words = ("--nodes", str(nodes), *SHORT)
        open_mpi, other = tmp_path / f"open-{nodes}", tmp_path / f"mpich-{nodes}"
        jobs[open_mpi] = submitted(cluster, open_mpi, "configs/quickstart.yaml", "--ranks", "4", *words)
        jobs[other] = submitted(cluster, other, "configs/quickstart.yaml", *srun, *words, python=mpich)
    wanted = bits(inline("configs/quickstart.yaml", *SHORT[1:]))
    for out, job in jobs.items():
        assert cluster.ended(job, 300) == "COMPLETED", printed(out)
        run = open_run(out)
        assert bits(run.summary()) == wanted
        assert run.attributes["slurm_job_id"] == job and run.attributes["ranks"] == 4
        library = "Open MPI" if out.name.startswith("open") else "MPICH"
        assert str(run.attributes["mpi_library"]).startswith(library)
        assert run.attributes["slurm_job_num_nodes"] == out.name[-1]
        if cluster.mode == "namespaces":
            assert len(json.loads(str(run.attributes["hosts"]))) == int(out.name[-1])


LESS = "stop.versions=32"  # enough to be interrupted in the middle
SLOW = {"FEDSIM_INJECT": "sleep:0.1"}  # before each group: long enough to be interrupted, with the same bits


def rows(out: Path, table: str) -> int:
    """Rows of a table of a run that may be going on; 0 before there is one."""
    try:
        return open_run(out).n_rows(table)
    except FedsimError:
        return 0


def test_a_job_that_is_preempted_goes_on_to_the_same_bits(cluster: Any, tmp_path: Path, inline: Any) -> None:
    """Pre-empted by a job of another partition: USR2, a checkpoint, exit code 75, requeued, and on from there."""
    out, config = tmp_path / "run", "configs/digits-buffered.yaml"
    job = submitted(cluster, out, config, "--set", LESS, env=SLOW)
    cluster.until("some versions", lambda: rows(out, "versions") >= 8, 180)
    urgent = cluster.call(
        "sbatch", *f"--parsable -N2 --exclusive -p urgent -o {tmp_path}/urgent.out --wrap".split(), "true"
    )
    cluster.until("pre-emption", lambda: cluster.job(job).get("Restarts") == "1", 120)
    assert cluster.ended(urgent.strip(), 120) == "COMPLETED"
    assert cluster.ended(job, 240) == "COMPLETED", printed(out)
    run = open_run(out)
    assert [attempt["status"] for attempt in run.attempts] == ["stopped", "done"], printed(out)
    assert run.attributes["slurm_restart_count"] == "1"
    assert run.attempts[0]["rows"]["versions"] >= 8, "it went on, and did not start again"
    assert bits(run.summary()) == bits(inline(config, LESS))


def test_a_job_by_srun_that_gets_its_signal_is_requeued_and_goes_on_to_the_same_bits(
    cluster: Any, tmp_path: Path, inline: Any
) -> None:
    """USR2 to the batch script, as before a time limit: whichever rank leaves first, and whatever srun makes of it."""
    mpich = os.environ.get("FEDSIM_TEST_MPICH_PYTHON")
    if not mpich:
        pytest.skip("FEDSIM_TEST_MPICH_PYTHON is not set: launch/test sets it")
    machine = "{name: srun, launcher: srun, mpi: pmi2, warn_s: 60, environment: {MPIR_CVAR_CH4_NETMOD: ofi}}"
    (tmp_path / "srun.yaml").write_text(machine + "\n")
    out, config = tmp_path / "run", "configs/digits-buffered.yaml"
    words = ("--machine", str(tmp_path / "srun.yaml"), "--ranks", "4", "--nodes", "2", "--set", LESS)
    job = submitted(cluster, out, config, *words, python=mpich, env=SLOW)
    for restarts in ("1", "2"):
        before = rows(out, "versions")
        cluster.until("some versions", lambda before=before: rows(out, "versions") >= before + 4, 180)  # type: ignore[misc]
        cluster.call("scancel", "--signal=USR2", "--batch", job)
        cluster.until("its requeue", lambda n=restarts: cluster.job(job).get("Restarts") == n, 120)  # type: ignore[misc]
    assert cluster.ended(job, 240) == "COMPLETED", printed(out)
    run = open_run(out)
    assert [attempt["status"] for attempt in run.attempts] == ["stopped", "stopped", "done"], printed(out)
    assert bits(run.summary()) == bits(inline(config, LESS))


def test_a_job_that_loses_a_node_goes_on_with_the_other_to_the_same_bits(
    make_cluster: Any, tmp_path: Path, inline: Any
) -> None:
    """The second node's power goes in the middle: the supervisor starts again from the last checkpoint on the first."""
    cluster = make_cluster()  # of its own: it ends with a node less
    if cluster.mode != "namespaces":
        pytest.skip("a node cannot be taken away where both are processes of one host")
    out, config = tmp_path / "run", "configs/digits-buffered.yaml"
    job = submitted(cluster, out, config, "--set", "checkpoint.every_versions=4", "--set", LESS, env=SLOW)
    cluster.until("a checkpoint", lambda: len(list(out.glob("checkpoint-*.h5"))) >= 2, 240)
    assert cluster.script("node", "off", "n2").returncode == 0
    assert cluster.ended(job, 300) == "COMPLETED", printed(out)
    run = open_run(out)
    assert [json.loads(str(attempt["hosts"])) for attempt in run.attempts] == [["n1", "n2"], ["n1"]], printed(out)
    assert run.attempts[0]["rows"]["versions"] >= 4, "it went on, and did not start again"
    assert bits(run.summary()) == bits(inline(config, LESS))


def test_an_array_is_whole_after_an_element_was_killed_and_the_array_submitted_again(
    cluster: Any, tmp_path: Path, inline: Any
) -> None:
    out, config = tmp_path / "sweep", "configs/digits-buffered.yaml"
    words = ("--vary", "seed=[1,2]", "--set", "stop.versions=20", "--nodes", "1", "--ranks", "3")
    array = submitted(cluster, out, config, *words, env=SLOW)
    killed = f"{array}_1"
    cluster.until("the second point", lambda: rows(out / "point-00001", "versions") >= 3, 240)
    cluster.call("scancel", "--signal=KILL", "--full", killed)
    cluster.until("its end", lambda: cluster.job(killed)["JobState"] in ENDED, 120)
    assert cluster.job(killed)["JobState"] != "COMPLETED"
    assert cluster.ended(f"{array}_0", 240) == "COMPLETED", printed(out)
    first = (out / "point-00000" / "record.h5").stat().st_mtime_ns

    assert cluster.job(killed)["JobState"] == "CANCELLED", "who cancels a job does not want it back"
    again = submitted(cluster, out, config, *words)
    for element in (0, 1):
        assert cluster.ended(f"{again}_{element}", 300) == "COMPLETED", printed(out)
    assert (out / "point-00000" / "record.h5").stat().st_mtime_ns == first, "what was done is not run again"
    for number in (0, 1):
        run = open_run(out / f"point-0000{number}")
        assert run.status == "done" and len(run.attempts) == number + 1
        assert run.attributes["slurm_array_task_id"] == str(number)
        assert bits(run.summary()) == bits(inline(config, "stop.versions=20", f"seed={number + 1}"))


def test_a_scaling_study_runs_on_one_node_and_on_two(cluster: Any, tmp_path: Path) -> None:
    out, log = tmp_path / "scale", tmp_path / "log"
    batch = f"--parsable --ntasks-per-node=3 -o {log} slurm/scale.sbatch configs/quickstart.yaml".split()
    study = f"--workers 2 --repeat 1 --set stop.versions=15 --out {out}".split()
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # the file calls the python that is found
    job = cluster.call("sbatch", *batch, *study, env=here).strip()
    assert cluster.ended(job, 240) == "COMPLETED", log.read_text()
    runs = json.loads((out / "scale.json").read_text())["runs"]
    assert [(run["workers"], run["nodes"]) for run in runs] == [(1, 1), (2, 1), (2, 2)]
    assert len({run["model_sha256"] for run in runs}) == 1
    if cluster.mode == "namespaces":
        assert [len(run["hosts"]) for run in runs] == [1, 1, 2]
