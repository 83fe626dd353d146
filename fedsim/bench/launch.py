"""Runs simulations for a benchmark as a user would: `mpirun -n N ... fedsim run CONFIG`, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import yamltree
from fedsim.bench.figures import Machine
from fedsim.bench.machine import this_machine
from fedsim.bench.rank import PEAKS
from fedsim.engine.launching import announced
from fedsim.errors import LaunchError, RecordError
from fedsim.record.reader import Run, open_run

MPIRUN = "FEDSIM_MPIRUN"
# Where Open MPI's mpirun keeps its files, in a folder by its process number. One that was killed leaves that, and the
# next mpirun of the same number ends with 213 for it.
SESSIONS = "PRTE_MCA_prte_tmpdir_base"
TIMEOUT_S = 3600.0  # a run that takes longer than this hangs
_KILL_AFTER_S = 15.0
_OPEN_MPI = ("Open MPI", "OpenRTE", "PRRTE", "prterun")
_LOG_LINES = 8


@dataclass(frozen=True)
class Ran:
    """A finished run: its record, and the peak of each rank's resident memory over its whole life, by rank."""

    run: Run
    peak_bytes: Mapping[int, int]


@dataclass(frozen=True)
class Launcher:
    """Starts runs in `folder`. `mpirun` are the launcher's words, `overrides` `--set` options for every run."""

    folder: Path
    mpirun: Sequence[str]
    machine: Machine
    overrides: Sequence[str]
    say: Callable[[str], None]

    def run(self, name: str, config: Mapping[str, Any], n_workers: int, extra: Mapping[str, str] | None = None) -> Ran:
        """Runs a configuration with rank zero and so many workers; `name` is new, `extra` goes to the environment.

        Raises:
            LaunchError: it failed or hung.
        """
        out, peaks = self.folder / name, self.folder / f"{name}-peaks"
        peaks.mkdir()
        program = [sys.executable, "-m", "fedsim.bench.rank", "run", str(self.written(name, config))]
        words = [*self.mpirun, "-n", str(n_workers + 1), *program, "--out", str(out), "--quiet", *self._sets()]
        self.call(name, words, {PEAKS: str(peaks), **(extra or {})})
        run = open_run(out)
        if run.status != "done":
            raise LaunchError(f"{name}: the run ended as {run.status}, not as done")
        return Ran(run, _read_peaks(peaks))

    def program(self, name: str, words: Sequence[str], n_ranks: int) -> str:
        """What a program of ours, the Python's `words` and the path of a file, leaves in that file on so many ranks."""
        path = self.folder / f"{name}.out"
        self.call(name, [*self.mpirun, "-n", str(n_ranks), sys.executable, *words, str(path)], {})
        return path.read_text(encoding="utf-8")

    def check_s(self, name: str, config: Mapping[str, Any]) -> float:
        """Wall seconds that `fedsim check` takes, from its start to its end."""
        words = [sys.executable, "-m", "fedsim", "check", str(self.written(name, config)), *self._sets()]
        start_s = time.perf_counter()
        self.call(name, words, {})
        return time.perf_counter() - start_s

    def written(self, name: str, config: Mapping[str, Any]) -> Path:
        """The file of a configuration, which takes the name."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yamltree.dump({"name": name, **config}), encoding="utf-8")
        return path

    def _sets(self) -> list[str]:
        return [word for override in self.overrides for word in ("--set", override)]

    def call(self, name: str, words: Sequence[str], extra: Mapping[str, str]) -> None:
        """Returns when the command has ended well. It has a session of its own, so that all of it can be ended."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(os.environ, extra),
                start_new_session=True,
            )
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise LaunchError(f"{name}: still at work after {TIMEOUT_S:.0f} s: {shlex.join(words)}") from error
            finally:
                _end(process)
        if code != 0:
            raise LaunchError(f"{name}: exit code {code} of {shlex.join(words)}: {tail(log)}")


def launcher_in(folder: Path, overrides: Sequence[str], say: Callable[[str], None]) -> Launcher:
    """A launcher of runs in a folder.

    Raises:
        LaunchError: there is no mpirun, or this process is itself one of many ranks.
    """
    told = announced(os.environ)
    if told is not None and told.is_several:
        raise LaunchError(f"fedsim bench starts the ranks itself; the launcher announces {told}: start it without one")
    mpirun, library = find_mpirun(os.environ)
    return Launcher(folder, mpirun, this_machine(library), overrides, say)


def find_mpirun(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """The words that launch ranks, and the name of the MPI. Open MPI is told to place ranks wherever there is room,
    unless `FEDSIM_MPIRUN` brings options of its own.

    Raises:
        LaunchError: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    given = shlex.split(environ.get(MPIRUN, ""))
    if given:
        words = given
    elif beside.exists():
        words = [str(beside)]
    else:
        found = shutil.which("mpirun") or shutil.which("mpiexec")
        if found is None:
            raise LaunchError(f"no mpirun beside {sys.executable} or in PATH: name one in {MPIRUN}")
        words = [found]
    try:
        done = subprocess.run(
            [words[0], "--version"], capture_output=True, text=True, timeout=60, env=environment(environ, {})
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(f"{words[0]} --version fails: {error}; name another mpirun in {MPIRUN}") from error
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    if len(words) == 1 and any(name in line for line in lines for name in _OPEN_MPI):
        words += ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    return words, lines[0] if lines else words[0]


def environment(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: one thread a rank, and leave for Open MPI to run as root where we are root."""
    root = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") if os.geteuid() == 0 else ()
    return {**environ, "OMP_NUM_THREADS": "1", **dict.fromkeys(root, "1"), **extra}


@contextlib.contextmanager
def run_folder(keep: Path | None, option: str = "--keep") -> Iterator[Path]:
    """A folder for the runs: a new one that stays, which the user names by `option`, or a temporary one.

    Raises:
        RecordError: the folder to keep is there already, or cannot be made.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True)
    except FileExistsError as error:
        raise RecordError(f"{keep}: exists already; give {option} another folder") from error
    except OSError as error:
        raise RecordError(f"{keep}: cannot be made: {error.strerror}") from error
    yield keep


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a command: politely first, since an mpirun then ends its ranks."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_peaks(folder: Path) -> dict[int, int]:
    """The peak of each rank's memory, by rank."""
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return {note["rank"]: note["peak_bytes"] for note in notes}


def tail(log: Path) -> str:
    """The end of what a command printed, on one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip()) or "it printed nothing"
