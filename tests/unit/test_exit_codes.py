"""The table of exit codes: each code in it is what some command really ends with, and no other code is known."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from fedsim import errors
from fedsim.cli import cli

ROOT = Path(__file__).parents[2]
CONFIG = """\
name: tiny
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.01}, batch_size: 4, steps: 2}
schedule: {policy: async, concurrency: 2}
aggregation: {rule: fedasync}
stop: {versions: 3}
"""


def code_of(folder: Path, *sets: str, inject: str = "") -> int:
    """What `fedsim run` ends with."""
    (folder / "tiny.yaml").write_text(CONFIG)
    words = ["run", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"]
    options = [word for value in sets for word in ("--set", value)]
    return CliRunner().invoke(cli, [*words, *options], env={"FEDSIM_INJECT": inject}).exit_code


def done(folder: Path) -> int:
    return code_of(folder)


def wrong_configuration(folder: Path) -> int:
    return code_of(folder, "training.batch_size=-1")


def exception_of_a_client(folder: Path) -> int:
    return code_of(folder, "stop.versions=1000", inject="client:0;client:1;client:2;client:3")


def signal_asks_for_an_end(folder: Path) -> int:
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.05):
            if (folder / "run" / "record-000.h5").exists():
                os.kill(os.getpid(), signal.SIGUSR2)

    former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # while the run has its own handler it is that one
    sender = threading.Thread(target=send)
    sender.start()
    try:
        return code_of(folder, "stop.versions=1000000000")
    finally:
        over.set()
        sender.join()
        time.sleep(0.1)
        signal.signal(signal.SIGUSR2, former)


def nobody_comes_back(folder: Path) -> int:
    (folder / "there.csv").write_text("client,start_s,end_s\n0,0,2.5\n")
    there = "{kind: trace, path: there.csv}"
    return code_of(folder, "stop.versions=1000", f"devices={{availability: {there}}}")


def run_without_workers(folder: Path) -> int:
    """`fedsim watch` of a run whose last worker died; that `run` ends so is in tests/mpi/test_dead_workers.py."""
    assert code_of(folder) == 0
    shutil.copy(folder / "run" / "record-000.h5", folder / "lost.h5")
    with h5py.File(folder / "lost.h5", "r+") as file:
        file["run/status"][()] = np.bytes_("lost")
    return CliRunner().invoke(cli, ["watch", str(folder / "lost.h5")]).exit_code


ENDS: dict[int, Callable[[Path], int]] = {
    0: done,
    2: wrong_configuration,
    70: exception_of_a_client,
    75: signal_asks_for_an_end,
    76: nobody_comes_back,
    77: run_without_workers,
}


@pytest.mark.parametrize("code", ENDS)
def test_each_code_is_what_something_ends_with(code: int, tmp_path: Path) -> None:
    assert ENDS[code](tmp_path) == code


def test_the_table_names_these_codes_and_no_other() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    table = page[page.index("| exit code |") :].split("\n\n")[0]
    told = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert told == sorted(known) == sorted(ENDS)
