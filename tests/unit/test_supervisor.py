"""The supervisor without MPI: what it starts, how it judges, where it starts again, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim import configfile
from fedsim.errors import ConfigError
from fedsim.supervisor import (
    Host,
    Job,
    Launcher,
    Signals,
    await_death,
    failure_code,
    judge,
    living,
    n_ranks_on,
    parse_hosts,
    slurm_tasks,
    supervise,
)
from tests.unit.record.conftest import Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


JOB = Job(Path("c.yaml"), Path("runs/c"), 8, 5, ("--set", "seed=1", "--quiet"))


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_the_line_that_is_started() -> None:
    hosts = [Host("n1", 2), Host("n3", 4)]
    words = Launcher(["mpirun", "--bind-to", "none"], survives=True).line(JOB, hosts, resumes=False)
    assert words[:8] == ["mpirun", "--bind-to", "none", "--with-ft", "ulfm", "--host", "n1:2,n3:4", "-n"]
    assert words[8] == "6", "as many ranks as there is room for"
    assert words[10:] == ["-m", "fedsim", "run", "c.yaml", "--out", "runs/c", "--set", "seed=1", "--quiet"]
    again = Launcher(["mpiexec"], survives=False).line(JOB, [], resumes=True)
    assert again[:3] == ["mpiexec", "-n", "8"] and again[4:] == ["-m", "fedsim", "resume", "runs/c", "--quiet"]


def test_room_for_ranks() -> None:
    assert n_ranks_on(8, []) == 8
    assert n_ranks_on(8, [Host("a"), Host("b", 2)]) == 8
    assert n_ranks_on(8, [Host("a", 3), Host("b", 2)]) == 5
    assert n_ranks_on(4, [Host("a", 3), Host("b", 2)]) == 4


def test_hosts_as_mpirun_and_slurm_write_them() -> None:
    assert parse_hosts("n1:2,n2") == [Host("n1", 2), Host("n2")] and parse_hosts("") == []
    for wrong in ("n1:0", "n1:x", "-x", "n 1", "n1:2:3"):
        with pytest.raises(ConfigError, match="--hosts: got"):
            parse_hosts(wrong)
    assert slurm_tasks("2(x3),1") == [2, 2, 2, 1] and slurm_tasks("") == []


@pytest.mark.parametrize(
    ("status", "code", "asked", "verdict"),
    [
        ("done", 0, False, 0),
        ("done", 137, False, 0),
        ("done", 0, True, 0),
        ("stopped", 75, False, 75),
        ("stopped", 0, True, 75),
        ("stopped", 0, False, 0),  # stop.wall_s
        ("stalled", 0, False, 76),
        ("failed", 0, False, 70),
        ("failed", 2, False, 2),  # a full disk: no row of failures
        ("failed", 137, False, 70),
        ("lost", 77, False, None),
        ("lost", 0, False, None),
        ("running", 0, False, None),  # a lost node: mpirun says 0
        ("running", 137, False, None),
        ("running", 0, True, 75),
        ("running", 2, False, 2),  # nothing to go on with here: said once
        ("running", 70, False, 70),
        ("none", 2, False, 2),
        ("none", 1, False, None),
        ("none", 1, True, 75),
        ("unreadable", 2, False, 2),
    ],
)
def test_the_record_judges_and_not_the_launcher(status: str, code: int, asked: bool, verdict: int | None) -> None:
    assert judge(status, code, asked, lambda: 70) == verdict


def test_hosts_that_do_not_answer_are_left_out(tmp_path: Path) -> None:
    mpirun = put(tmp_path, "mpirun", 'case "$2" in n2:1) exit 1 ;; *) exit 0 ;; esac')
    hosts = [Host("n1", 2), Host("n2", 2), Host("n3", 4)]
    assert living(Launcher([str(mpirun)], survives=True), hosts) == [hosts[0], hosts[2]]


def test_no_launcher() -> None:
    with pytest.raises(ConfigError, match="no such launcher"):
        Launcher.of(["/nowhere/mpirun"])


CONFIG = """\
name: c
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.1}, batch_size: 4, steps: 1}
schedule: {policy: async, concurrency: 2}
aggregation: {rule: fedasync}
stop: {versions: 2}
"""


def supervisor(folder: Path, mpirun: Path, *words: str) -> subprocess.Popen[str]:
    (folder / "c.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "fedsim.supervisor", "-n", "2", "c.yaml", *words]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "FEDSIM_MPIRUN": str(mpirun), "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    until_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until_s, f"{path} does not appear"
        time.sleep(0.05)


def test_it_gives_up_after_so_many_attempts(tmp_path: Path) -> None:
    mpirun = put(tmp_path, "mpirun", f'case "$1" in --version) ;; *) echo x >> {tmp_path}/starts; exit 137 ;; esac')
    out, err = supervisor(tmp_path, mpirun, "--attempts", "3").communicate(timeout=60)
    assert (tmp_path / "starts").read_text().count("x") == 3
    assert err.count("attempt ") == 3 and "'none' (mpirun's exit code 137)" in err and out == ""


def test_a_wrong_configuration_is_told_once(tmp_path: Path) -> None:
    process = supervisor(tmp_path, put(tmp_path, "mpirun", "exit 0"), "--set", "stop.versions=0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert [line for line in err.splitlines() if line.startswith("fedsim: ")] == err.splitlines()


def supervised(folder: Path, script: str, n_attempts: int = 2) -> tuple[int, int]:
    """The exit code of a run that is gone on with, by a launcher that is this script, and how often that started."""
    mpirun = put(folder, "mpirun", f"echo x >> {folder}/starts\n{script}")
    job = Job(folder, folder, 2, n_attempts)
    return supervise(job, Launcher([str(mpirun)], True), is_fresh=False), (folder / "starts").read_text().count("x")


@pytest.mark.parametrize("former", ["stopped", "failed", "stalled", "lost", "running"])
def test_an_attempt_that_dies_without_a_record_is_not_judged_by_the_one_before(
    former: str, records: Records, tmp_path: Path
) -> None:
    records.begin(range(3)).close(former)
    assert supervised(tmp_path, "exit 1") == (77, 2)
    (tmp_path / "starts").unlink()
    assert supervised(tmp_path, "exit 2") == (2, 1)


def waited_s(folder: Path, signals: Signals, ends_after: int, end: Callable[[], None]) -> float:
    """How long the supervisor waits for a death, by a clock of its own; `end` happens after so many looks."""
    now_s, n_looks = 0.0, 0

    def sleep(for_s: float) -> None:
        nonlocal now_s, n_looks
        now_s, n_looks = now_s + for_s, n_looks + 1
        if n_looks == ends_after:
            end()

    await_death(folder, signals, lambda: now_s, sleep)
    return now_s


def test_it_waits_until_the_former_attempt_is_seen_to_be_dead(records: Records, tmp_path: Path) -> None:
    writer, signals = records.begin(range(3)), Signals()
    assert 110 < waited_s(tmp_path, signals, 10**6, lambda: None) < 130, "but not for ever"
    assert waited_s(tmp_path, signals, 5, lambda: setattr(signals, "asked", True)) == 5
    assert waited_s(tmp_path, Signals(), 7, lambda: writer.close("lost")) == 7
    assert waited_s(tmp_path, Signals(), 1, lambda: None) == 0


HOLDS = """
import fcntl, sys, time
record = open(sys.argv[1])
fcntl.flock(record, fcntl.LOCK_SH)
open(sys.argv[2], "w").close()
time.sleep(2)
"""
ASKS = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_a_lock_that_outlives_its_holder_costs_no_attempt(records: Records, tmp_path: Path) -> None:
    """The first attempt leaves it behind for two seconds, and the second would give up for good."""
    records.begin(range(3)).close("running")
    record, up = tmp_path / "record-000.h5", tmp_path / "up"
    first = f"{sys.executable} -c '{HOLDS}' {record} {up} &\nuntil [ -e {up} ]; do sleep 0.05; done"
    second = f"{sys.executable} -c '{ASKS}' {record} || exit 2"
    assert supervised(tmp_path, f"if [ -e {up} ]; then\n{second}\nelse\n{first}\nfi\nexit 1") == (77, 2)


def test_an_older_row_of_failures_does_not_say_why_the_last_attempt_failed(records: Records, tmp_path: Path) -> None:
    with records.begin(range(3)) as writer:
        writer.append("failures", (0.5, 1, -1, -1, "LostError", "no worker is left"))
        writer.close("lost")
    records.begin(range(3, 5), attempt=1, start_rows={"tasks": 3, "versions": 3}).close("failed")
    assert failure_code(tmp_path) == 70
    with records.begin(range(3, 5), attempt=2, start_rows={"tasks": 3, "versions": 3}) as writer:
        writer.append("failures", (0.5, 1, -1, -1, "ClientError", "a loss that is no number"))
        writer.close("failed")
    assert failure_code(tmp_path) == 2


def test_a_run_that_is_done_stays_done(records: Records, tmp_path: Path) -> None:
    records.begin(range(3)).close("done")
    assert supervised(tmp_path, "exit 0") == (0, 1)


def test_signals_reach_the_launcher_as_usr2_and_twice_ctrl_c_ends_it(tmp_path: Path) -> None:
    note, up = tmp_path / "note", tmp_path / "up"
    script = f"""case "$1" in --version) exit 0 ;; esac
trap 'echo usr2 >> {note}' USR2
trap 'echo term >> {note}; exit 1' TERM
trap 'echo int >> {note}' INT
echo up > {up}
while true; do sleep 0.1; done"""
    process = supervisor(tmp_path, put(tmp_path, "mpirun", script))
    wait_for(up)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C: to the whole foreground group
    wait_for(note)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert note.read_text().split() == ["usr2", "term"], err
    assert process.returncode == 75 and "asked to stop" in err


def test_a_folder_without_a_record_is_begun_again(tmp_path: Path) -> None:
    """What an attempt leaves that is killed before its record is there: the next job begins where it lies."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    left = tmp_path / "runs" / "c"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text(configfile.resolved_text(configfile.load(tmp_path / "c.yaml")))
    mpirun = put(
        tmp_path, "mpirun", f'case "$1" in --version) ;; *) echo : "$@" >> {tmp_path}/starts; exit 137 ;; esac'
    )
    _, err = supervisor(tmp_path, mpirun, "--attempts", "2").communicate(timeout=60)
    starts = (tmp_path / "starts").read_text().splitlines()
    assert len(starts) == 2 and all(" run c.yaml --out runs/c" in line for line in starts), err
    (left / "record-000.h5").touch()
    process = supervisor(tmp_path, mpirun)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "runs/c: exists already" in err
