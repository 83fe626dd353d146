"""`run` and `replay`: alone, under mpirun, stopped by signals, and when a rank fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedsim.bench.launch import SESSIONS
from fedsim.cli import cli

FEDSIM = (sys.executable, "-m", "fedsim")
CONFIG = """\
name: tiny
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.01}, batch_size: 4, steps: 2}
schedule: {policy: async, concurrency: 2}
aggregation: {rule: fedasync}
stop: {versions: 3}
"""
ENDLESS = ("--set", "stop.versions=1000000000")


def mpirun() -> list[str]:
    """The launcher of the MPI that the tests' Python uses, or a skip."""
    beside = Path(sys.executable).with_name("mpirun")
    found = os.environ.get("FEDSIM_TEST_MPIRUN") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("no mpirun beside this Python, and FEDSIM_TEST_MPIRUN is not set")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, env=environment()).stdout
    is_open = any(name in version for name in ("Open MPI", "OpenRTE", "PRRTE"))
    return [found, *(["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"] if is_open else [])]


def environment() -> dict[str, str]:
    launchers = ("OMPI_", "PMI", "PRTE", "SLURM")
    clean = {name: value for name, value in os.environ.items() if name == SESSIONS or not name.startswith(launchers)}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**clean, **root, "OMP_NUM_THREADS": "1"}


def finished(command: list[str], folder: Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """The ended process; one that hangs is killed with its children, and fails the test."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def own_lines(text: str) -> list[str]:
    """What fedsim printed, without the launcher's own words."""
    return [line for line in text.splitlines() if line.startswith(("fedsim:", "###"))]


def stopped(process: subprocess.Popen[str], get_ready: Callable[[], object]) -> tuple[float, str]:
    """How long the ranks of a process take to end by SIGUSR2, sent once all is ready, and what they say.

    What does not end is killed with its children, and fails the test.
    """
    try:
        get_ready()
        start_s = time.monotonic()
        process.send_signal(signal.SIGUSR2)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return time.monotonic() - start_s, err


def summary(folder: Path) -> dict[str, object]:
    result = CliRunner().invoke(cli, ["show", str(folder), "--json"])
    found: dict[str, object] = json.loads(result.stdout)
    return found


def fedsim_says(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="fedsim")


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_prints_results_and_leaves_a_record(config_path: Path, in_folder: Path) -> None:
    result = fedsim_says("run", config_path, "--set", "stop.versions=4")
    assert result.exit_code == 0 and result.stderr == ""
    assert "runs/tiny" in result.stdout and "done" in result.stdout and "cleveland" in result.stdout
    assert summary(in_folder / "runs" / "tiny")["versions"] == 4


def test_quiet_says_nothing(config_path: Path, in_folder: Path) -> None:
    result = fedsim_says("run", config_path, "--out", in_folder / "here", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert summary(in_folder / "here")["status"] == "done"


def test_a_folder_that_exists_is_refused(config_path: Path, in_folder: Path) -> None:
    (in_folder / "here").mkdir()
    result = fedsim_says("run", config_path, "--out", "here")
    assert result.exit_code == 2 and result.stderr.startswith("fedsim: here: exists already") and result.stdout == ""
    assert not list((in_folder / "here").iterdir())


def test_a_stalled_run_has_a_record_and_ends_with_76(config_path: Path, in_folder: Path) -> None:
    (in_folder / "windows.csv").write_text("client,start_s,end_s\n0,0,5\n1,0,5\n")
    devices = "devices={availability: {kind: trace, path: windows.csv}, compute: {time: {law: constant, mean: 1.0}}}"
    result = fedsim_says("run", config_path, "--set", devices, *ENDLESS)
    assert result.exit_code == 76, result.stderr
    assert own_lines(result.stderr)[0].startswith("fedsim: stalled at ")
    assert summary(in_folder / "runs" / "tiny")["status"] == "stalled"


def test_replay_reaches_the_same_model(config_path: Path, in_folder: Path) -> None:
    assert fedsim_says("run", config_path, "--out", "a", "--quiet").exit_code == 0
    result = fedsim_says("replay", "a")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"the same model: {summary(in_folder / 'a')['model_sha256']}\nrecord: a-replay\n"


def test_a_replay_that_differs_is_told(config_path: Path, in_folder: Path) -> None:
    import h5py

    assert fedsim_says("run", config_path, "--out", "a", "--quiet").exit_code == 0
    with h5py.File(in_folder / "a" / "record.h5", "r+") as file:
        file["model/weights"][0] += 1.0
    result = fedsim_says("replay", "a", "--out", "b")
    assert result.exit_code == 70 and result.stdout == ""
    assert result.stderr.startswith("fedsim: the models differ: a has ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGINT"])
def test_a_signal_ends_a_run_in_order(config_path: Path, tmp_path: Path, name: str) -> None:
    process = subprocess.Popen(
        [*FEDSIM, "run", str(config_path), *ENDLESS, "--quiet"],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for_rows(tmp_path / "runs" / "tiny", process)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    assert err == f"fedsim: stopped by {name}, with a checkpoint; go on: fedsim resume runs/tiny\n"
    assert summary(tmp_path / "runs" / "tiny")["status"] == "stopped"


def wait_for_rows(folder: Path, process: subprocess.Popen[str]) -> None:
    """Returns when the run has begun to train."""
    give_up_s = time.monotonic() + 60
    while not list(folder.glob("record-*.h5")):
        assert process.poll() is None and time.monotonic() < give_up_s
        time.sleep(0.05)


def test_a_stop_by_the_wall_clock_is_no_failure(config_path: Path, in_folder: Path) -> None:
    result = fedsim_says("run", config_path, *ENDLESS, "--set", "stop.wall_s=0.3", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    assert summary(in_folder / "runs" / "tiny")["status"] == "stopped"


# ---------------------------------------------------------------------------------------------- under MPI


@pytest.mark.mpi
def test_ranks_print_once_and_reach_the_same_bits(config_path: Path, tmp_path: Path) -> None:
    done = finished([*mpirun(), "-n", "3", *FEDSIM, "run", str(config_path), "--out", "three"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Evaluation of version 3") == 1 and "\x1b" not in done.stdout
    assert fedsim_says("run", config_path, "--out", tmp_path / "one", "--quiet").exit_code == 0
    one, three = summary(tmp_path / "one"), summary(tmp_path / "three")
    assert three["ranks"] == 3
    assert [three[name] for name in ("model_sha256", "history_sha256")] == [
        one[name] for name in ("model_sha256", "history_sha256")
    ]


@pytest.mark.mpi
@pytest.mark.parametrize("words", [("run", "missing.yaml"), ("run", "tiny.yaml", "--out", "."), ("runn",)])
def test_expected_errors_are_told_once(config_path: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = finished([*mpirun(), "-n", "2", *FEDSIM, *words], tmp_path)
    assert done.returncode == 2
    assert len(own_lines(done.stderr)) == 1 and done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.mpi
def test_a_rank_that_is_late_is_heard_before_the_launcher_kills_it(tmp_path: Path) -> None:
    late = ["sh", "-c", 'sleep 1; exec "$@"', "sh", *FEDSIM, "runn"]
    done = finished([*mpirun(), "-n", "1", *late, ":", "-n", "1", *FEDSIM, "runn"], tmp_path)
    assert done.returncode == 2 and len(own_lines(done.stderr)) == 1, done.stderr


FAILING = """
import sys
from fedsim.cli import main
from fedsim.engine import leaving, run
from fedsim.errors import RecordError

def failing(path, overrides, out, caller):
    comm, rank = caller.world.comm, caller.world.rank
    if rank == {rank}:
        raise {error}
    comm.recv(source={rank}, tag=99)  # what never comes

run.run_file = failing
leaving.leave.__defaults__ = (1.0, leaving.os._exit)
main(["run", sys.argv[1]])
"""


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 2])
def test_a_bug_on_any_rank_ends_all(config_path: Path, tmp_path: Path, rank: int) -> None:
    code = FAILING.format(rank=rank, error="KeyError('unforeseen')")
    done = finished([*mpirun(), "-n", "3", sys.executable, "-c", code, str(config_path)], tmp_path)
    assert done.returncode == 70
    assert own_lines(done.stderr)[0].startswith(f"### rank {rank} of 3 on ")
    assert "KeyError: 'unforeseen'" in done.stderr


@pytest.mark.mpi
def test_an_error_on_rank_zero_alone_does_not_hang(config_path: Path, tmp_path: Path) -> None:
    code = FAILING.format(rank=0, error="RecordError('the disk is full')")
    done = finished([*mpirun(), "-n", "3", sys.executable, "-c", code, str(config_path)], tmp_path)
    assert done.returncode == 2
    assert own_lines(done.stderr) == ["fedsim: the disk is full"]


@pytest.mark.mpi
def test_a_signal_to_the_ranks_ends_the_job_in_order(config_path: Path, tmp_path: Path) -> None:
    """SIGUSR2, which mpirun hands on to all ranks."""
    command = [*mpirun(), "-n", "2", *FEDSIM, "run", str(config_path), *ENDLESS, "--quiet"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for_rows(tmp_path / "runs" / "tiny", process)
        process.send_signal(signal.SIGUSR2)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75
    assert own_lines(err) == ["fedsim: stopped by SIGUSR2, with a checkpoint; go on: fedsim resume runs/tiny"]
    assert summary(tmp_path / "runs" / "tiny")["status"] == "stopped"
    shutil.rmtree(tmp_path / "runs")


def test_a_folder_without_a_record_is_begun_again(config_path: Path, in_folder: Path) -> None:
    """What a start leaves that is killed before its record is there; also with a configuration that was cut short."""
    assert fedsim_says("run", config_path, "--out", "whole", "--quiet").exit_code == 0
    text = (in_folder / "whole" / "config.yaml").read_bytes()
    for name, left in (("killed", text), ("short", text[:40]), ("empty", b"")):
        folder = in_folder / name
        folder.mkdir()
        (folder / "config.yaml").write_bytes(left)
        (folder / "record-000.h5.123.part").write_bytes(b"half")
        (folder / "notes.txt").write_text("mine")
        result = fedsim_says("run", config_path, "--out", name, "--quiet")
        assert result.exit_code == 0, result.stderr
        assert summary(folder)["model_sha256"] == summary(in_folder / "whole")["model_sha256"]
        assert (folder / "config.yaml").read_bytes() == text and (folder / "notes.txt").read_text() == "mine"
        assert not list(folder.glob("*.part"))
        assert fedsim_says("run", config_path, "--out", name, "--quiet").exit_code == 2, "now it has a record"


def test_a_folder_with_another_configuration_is_left_alone(config_path: Path, in_folder: Path) -> None:
    own = config_path.read_bytes()  # as its user wrote it: not what a run leaves
    (in_folder / "own").mkdir()
    (in_folder / "own" / "config.yaml").write_bytes(own)
    result = fedsim_says("run", "own/config.yaml", "--out", "own")
    assert result.exit_code == 2 and result.stderr.startswith("fedsim: own: exists already")
    assert (in_folder / "own" / "config.yaml").read_bytes() == own and len(list((in_folder / "own").iterdir())) == 1


def test_a_folder_whose_record_found_no_room_is_begun_again(
    config_path: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr("fedsim.record.room.try_out", full)
        result = fedsim_says("run", config_path, "--out", "here")
        assert result.exit_code == 2 and "cannot create the record" in result.stderr
    assert [path.name for path in (in_folder / "here").iterdir()] == ["config.yaml"]
    assert fedsim_says("run", config_path, "--out", "here", "--quiet").exit_code == 0
