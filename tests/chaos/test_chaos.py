"""Real ranks are killed at moments drawn from a seed; afterwards nothing may be missing, doubled, or another number.

`fedsim bench chaos` does the same for longer. Kills in an evaluation, and while rank zero sends, are in tests/mpi.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.bench import chaos
from fedsim.bench.chaos import MARK, Chaos, Going, Tally
from fedsim.bench.launch import environment, find_mpirun, tail

SEED = 20
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def mpirun() -> list[str]:
    given = os.environ.get("FEDSIM_TEST_MPIRUN", "")
    words, version = find_mpirun({**os.environ, "FEDSIM_MPIRUN": ""})
    plain = [given, *words[1:]] if given else words
    assert "Open MPI" in version, "these tests need Open MPI: launch/test installs it"
    return plain


@pytest.fixture(scope="module")
def trouble(mpirun: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    environ = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("OMPI_COMM", "PMIX", "SLURM"))]:
        del os.environ[name]
    os.environ["PYTHONPATH"] = str(ROOT)
    yield Chaos(tmp_path_factory.mktemp("chaos"), mpirun, SEED, print)
    os.environ.clear()
    os.environ.update(environ)


def assert_nothing_lost(tally: Tally, n_kills: int) -> None:
    assert tally.problems == []
    assert tally.n_kills >= n_kills


@pytest.mark.parametrize(("kind", "n_kills"), [("virtual", 4), ("wall", 4), ("states", 2)])
def test_workers_are_killed(kind: str, n_kills: int, trouble: Chaos) -> None:
    assert_nothing_lost(chaos.worker_kills(trouble, kind, n_kills), n_kills)


@pytest.mark.parametrize(("kind", "n_kills"), [("virtual", 1), ("wall", 1), ("states", 1)])
def test_whole_jobs_are_killed(kind: str, n_kills: int, trouble: Chaos) -> None:
    assert_nothing_lost(chaos.job_kills(trouble, kind, n_kills), n_kills)


def test_two_workers_are_killed_together(trouble: Chaos) -> None:
    tally = Tally("together")
    trouble.kill_workers(tally, trouble.folder / "together", "virtual", [(30, 0.01)], 2)
    assert_nothing_lost(tally, 2)


def test_a_worker_is_killed_during_a_checkpoint(trouble: Chaos) -> None:
    tally, run = Tally("checkpoint"), trouble.folder / "during-checkpoint"
    going = trouble.start(run, "virtual", chaos.N_RANKS, sets=("checkpoint.every_versions=1",))
    until_s = time.monotonic() + chaos.TIMEOUT_S
    while not any(run.glob("checkpoint-*.part")):  # one is being written
        assert going.process.poll() is None and time.monotonic() < until_s, tail(trouble.log(run))
        time.sleep(0.001)
    tally.n_kills += going.kill(lambda ranks: [ranks[2]])
    going.wait()
    trouble.check(tally, run, "virtual")
    assert_nothing_lost(tally, 1)


def test_the_supervisor_starts_again_without_rank_zero(trouble: Chaos, mpirun: list[str]) -> None:
    tally, run, mark = Tally("supervised"), trouble.folder / "supervised", f"{os.getpid()}-supervised"
    program = [sys.executable, "-m", "fedsim.supervisor", "-n", "2", str(trouble.folder / "virtual.yaml")]
    extra = {MARK: mark, "FEDSIM_INJECT": "sleep:0.01", "FEDSIM_MPIRUN": " ".join(mpirun)}
    process = subprocess.Popen(
        [*program, "--out", str(run), "--quiet"],
        env=environment(os.environ, extra),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    going = Going(process, mark, run)
    try:
        tally.n_kills += going.struck([(40, 0.0)], lambda ranks: [ranks[0]])
        _, err = process.communicate(timeout=chaos.TIMEOUT_S)
    finally:
        going.end()
    assert process.returncode == 0, err.decode()
    assert b"attempt 1 ended as 'running'" in err and b"fedsim resume" in err
    trouble.check(tally, run, "virtual")
    assert_nothing_lost(tally, 1)


def test_the_checks_see_what_they_look_for(trouble: Chaos) -> None:
    tally, run = Tally("cut short"), trouble.folder / "cut-short"
    trouble.alone(run, "virtual", ("stop.versions=100",))
    trouble.check(tally, run, "virtual")
    told = " ".join(tally.problems)
    for word in ("table versions", "evaluations lacks", "model_sha256", "history_sha256", "updates is"):
        assert word in told
