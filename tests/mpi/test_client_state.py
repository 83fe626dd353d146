"""What clients keep gives the same bits on any number of ranks: with losses, aborted tasks, little room, replayed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ran = Callable[..., dict[str, Any]]

SAME = ("model_sha256", "metrics", "versions", "updates", "status")
SMALLEST = tuple(
    f"memory.{name}=0"
    for name in ("server_updates_bytes", "server_versions_bytes", "worker_updates_bytes", "worker_versions_bytes")
)
CONFIG = """
name: states
seed: 5
data: {dataset: synthetic-leaf, clients: 12, features: 9, classes: 3, max_samples: 60}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.05}, batch_size: 8, steps: 5, order: continued}
devices:
  compute: {time: {law: exponential, mean: 1.0}}
  loss_probability: 0.2
schedule: {policy: sync, cohort: 4, over_selection: 1.5, deadline_s: 3.0}
aggregation: {rule: %s}
evaluation: {every_versions: 5}
stop: {versions: 20}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def written(rule: str) -> str:
        path = tmp_path / f"{rule}.yaml"
        path.write_text(CONFIG % rule)
        return str(path)

    return written


@pytest.mark.parametrize(
    ("rule", "n", "sets"),
    [("scaffold", 4, (*SMALLEST, "training.group_size=3")), ("feddyn", 2, ("placement=balanced",))],
)
def test_the_same_bits(
    rule: str, n: int, sets: tuple[str, ...], ran: Ran, config: Callable[[str], str], tmp_path: Path
) -> None:
    alone, there = ran(1, tmp_path / "1", config(rule)), ran(n, tmp_path / "n", config(rule), *sets)
    assert alone["status"] == "done" and there["ranks"] == n
    for key in (*SAME, "history_sha256"):
        assert there[key] == alone[key]


def test_a_replay(start: Callable[..., Any], ran: Ran, summary: Any, config: Any, tmp_path: Path) -> None:
    alone = ran(1, tmp_path / "1", config("scaffold"))
    done = start(2, "replay", str(tmp_path / "1"), "--out", str(tmp_path / "replay"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert {key: summary(tmp_path / "replay")[key] for key in SAME} == {key: alone[key] for key in SAME}


@pytest.mark.parametrize(
    ("inject", "n_attempts", "sets"),
    [
        ("kill:3@1", 2, ("checkpoint.every_versions=1000",)),  # before the first checkpoint: from the beginning
        ("kill:7@2;segv:12@3", 3, ("checkpoint.every_versions=3",)),
    ],
)
def test_workers_that_die_with_what_clients_kept_send_the_run_back(
    inject: str, n_attempts: int, sets: tuple[str, ...], ran: Ran, start_tolerant: Any, config: Any, tmp_path: Path
) -> None:
    from fedsim.record.reader import open_run

    alone = ran(1, tmp_path / "1", config("scaffold"))
    there = ran(4, tmp_path / "n", config("scaffold"), *sets, env={"FEDSIM_INJECT": inject}, how=start_tolerant)
    assert (there["attempts"], there["ranks"]) == (n_attempts, 5 - n_attempts)
    for key in (*SAME, "history_sha256"):
        assert there[key] == alone[key]
    run = open_run(tmp_path / "n")
    assert [attempt["status"] for attempt in run.attempts] == ["lost"] * (n_attempts - 1) + ["done"]
    assert run.failures.kind.tolist() == ["WorkerLost", "StateLostError"] * (n_attempts - 1)


@pytest.mark.parametrize(
    ("inject", "what"),
    [
        ("sleep:1000@1,2", "with a checkpoint"),  # groups that last for long: they are left
        ("hang:1@1", "before its last state could be kept"),  # a rank that does not answer
    ],
)
def test_a_signal_does_not_wait_for_training(
    inject: str, what: str, start: Any, ran: Ran, summary: Any, config: Any, tmp_path: Path
) -> None:
    """A run that died past its first checkpoint is resumed, stopped at once by a signal, and resumed again."""
    from tests.unit.test_cli_running import environment, mpirun, own_lines, stopped

    sets = ("checkpoint.every_versions=3", "checkpoint.stop_within_s=6")
    alone, folder = ran(1, tmp_path / "1", config("scaffold"), *sets), tmp_path / "n"
    words = [word for value in sets for word in ("--set", value)]
    died = start(3, "run", config("scaffold"), "--out", str(folder), *words, env={"FEDSIM_INJECT": "kill:9@2"})
    n_before = len(list(folder.glob("checkpoint-*.h5")))
    assert died.returncode != 0 and n_before, "it died before its first checkpoint"
    process = subprocess.Popen(
        [*mpirun(), "-n", "3", sys.executable, "-m", "fedsim", "resume", str(folder), "--quiet"],
        env={**environment(), "FEDSIM_INJECT": inject}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def get_ready() -> None:
        give_up_s = time.monotonic() + 90
        while not (folder / "record-001.h5").exists() and time.monotonic() < give_up_s:
            time.sleep(0.1)
        time.sleep(2.0)

    seconds, err = stopped(process, get_ready)
    assert process.returncode == 75 and seconds < 12.0, err  # the launcher takes its time, too
    assert own_lines(err) == [f"fedsim: stopped by SIGUSR2, {what}; go on: fedsim resume {folder}"]
    assert start(2, "resume", str(folder), "--quiet").returncode == 0
    there = summary(folder)
    assert there["attempts"] == 3 and {key: there[key] for key in SAME} == {key: alone[key] for key in SAME}
    assert there["history_sha256"] == alone["history_sha256"]


def test_states_need_a_home(start: Callable[..., Any], config: Any) -> None:
    done = start(1, "check", config("scaffold"), "--set", "placement=dynamic")
    assert done.returncode == 2 and "use home or balanced" in done.stderr
