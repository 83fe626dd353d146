"""How these tests start ranks: as a user would, in processes of their own, each under a hard timeout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli_running import environment

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("mpi")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in environment().items() if name != "FEDSIM_INJECT"}
    return clean | dict(extra)


def _open_mpi() -> str:
    """The launcher: what the test script says, else the one beside this Python, else the one in PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    found = os.environ.get("FEDSIM_TEST_MPIRUN") or (str(beside) if beside.exists() else shutil.which("mpirun"))
    assert found, "these tests need an mpirun: launch/test installs one"
    return found


def _parts(launcher: list[str], programs: Sequence[tuple[int, Sequence[str]]]) -> list[str]:
    """One command line for several programs in one world: mpirun -n 1 a : -n 2 b."""
    words = list(launcher)
    for i, (n, program) in enumerate(programs):
        words += [*([":"] if i else []), "-n", str(n), *program]
    return words


def _run(words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env=_environment(env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def start_program() -> Start:
    """`start_program(n, *words, tolerant=False)`: any program on n ranks of Open MPI."""

    def starter(n: int, *words: str, tolerant: bool = False) -> subprocess.CompletedProcess[str]:
        launcher = [_open_mpi(), *(["--with-ft", "ulfm"] if tolerant else [])]
        return _run(_parts([*launcher, "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"], [(n, words)]), {})

    return starter


@pytest.fixture(scope="session")
def start() -> Start:
    """`start(n, *words, env={})`: fedsim with these words on n ranks of Open MPI, or without MPI for n = 1."""

    def starter(n: int, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "fedsim", *words]
        if n > 1:
            program = _parts([_open_mpi(), "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"], [(n, program)])
        return _run(program, env or {})

    return starter


@pytest.fixture(scope="session")
def start_tolerant() -> Start:
    """Like `start`, where a rank's death does not end the others."""

    def starter(n: int, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        launcher = [_open_mpi(), "--with-ft", "ulfm", "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
        return _run(_parts(launcher, [(n, [sys.executable, "-m", "fedsim", *words])]), env or {})

    return starter


@pytest.fixture(scope="session")
def start_mixed() -> Start:
    """`start_mixed((n, words, env), ...)`: ranks of one world that were given different words or environments."""

    def starter(*programs: tuple[int, Sequence[str], Mapping[str, str]]) -> subprocess.CompletedProcess[str]:
        launcher = [_open_mpi(), "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
        lines = [
            (n, ["env", *(f"{k}={v}" for k, v in env.items()), sys.executable, "-m", "fedsim", *words])
            for n, words, env in programs
        ]
        return _run(_parts(launcher, lines), {})

    return starter


@pytest.fixture(scope="session")
def start_mpich() -> Start:
    """Like `start`, on MPICH, from the environment that `launch/test` makes beside the first."""
    python, mpiexec = os.environ.get("FEDSIM_TEST_MPICH_PYTHON"), os.environ.get("FEDSIM_TEST_MPICH_MPIEXEC")
    if not python or not mpiexec:
        pytest.skip("FEDSIM_TEST_MPICH_PYTHON and FEDSIM_TEST_MPICH_MPIEXEC are not set: launch/test sets them")

    def starter(n: int, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return _run(_parts([mpiexec], [(n, [python, "-m", "fedsim", *words])]), env or {})

    return starter


@pytest.fixture(scope="session")
def summary() -> Callable[[Path], dict[str, Any]]:
    """What `fedsim show --json` prints of a run."""

    def shown(folder: Path) -> dict[str, Any]:
        done = _run([sys.executable, "-m", "fedsim", "show", str(folder), "--json"], {})
        assert done.returncode == 0, done.stderr
        loaded: dict[str, Any] = json.loads(done.stdout)
        return loaded

    return shown


@pytest.fixture(scope="session")
def ran(start: Start, summary: Callable[[Path], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`ran(n, folder, config, *sets, env={}, how=start)`: runs to the end and returns the summary."""

    def runner(
        n: int, folder: Path, config: str, *sets: str, env: Mapping[str, str] | None = None, how: Start = start
    ) -> dict[str, Any]:
        options = [word for value in sets for word in ("--set", value)]
        done = how(n, "run", config, "--out", str(folder), "--quiet", *options, env=env)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return summary(folder)

    return runner
