"""Kills at random moments, and whether anything was lost by them: `fedsim bench chaos`, and what tests/chaos runs.

Each kill is a SIGKILL to a rank of a real run under mpirun, when the run has come to a version that a seed has drawn,
and a little later. After each run: the model and history of the run that nobody disturbed (on the wall clock, those of
the replay of its own record), every version, task and evaluation in the joined record once, and an end in time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import yamltree
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import SESSIONS, Launcher, environment, tail
from fedsim.errors import EXIT_LOST, FedsimError, LaunchError
from fedsim.record.reader import Run, open_run
from fedsim.seeding import Purpose, generator

MARK = "FEDSIM_CHAOS"
TIMEOUT_S = 240.0  # of one process set
N_VERSIONS = 160
N_RANKS = 4
KINDS = ("virtual", "wall", "states")
_TOLERANT = ("--with-ft", "ulfm")
_SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s")
_LATEST = 0.9  # of the versions: what is killed later may be over before

Strike = Callable[[dict[int, int]], Sequence[int]]
"""From the processes of the living ranks to those that are killed."""


def config(kind: str) -> dict[str, Any]:
    """Four hospitals, with evaluations and checkpoints often, so that kills meet them. Of one of the `KINDS`.

    `virtual` and `wall` are asynchronous, on that clock. In `states`, on the virtual one, clients keep a state.
    """
    rounds = kind == "states"
    devices = {"compute": {"time": {"law": "lognormal", "mean": 1.0, "sigma": 0.7}}}
    return {
        "name": f"chaos-{kind}",
        "clock": "wall" if kind == "wall" else "virtual",
        "data": {"dataset": "heart"},
        **({} if kind == "wall" else {"devices": devices}),
        "model": {"kind": "logistic"},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.01}, "batch_size": 4, "steps": 20},
        "schedule": {"policy": "sync", "cohort": 3} if rounds else {"policy": "async", "concurrency": 4},
        "aggregation": {"rule": "scaffold" if rounds else "fedasync"},
        "evaluation": {"every_versions": 4},
        "checkpoint": {"every_versions": 5},
        "record": {"flush_s": 0.1},
        "stop": {"versions": N_VERSIONS},
        "device": "cpu",
    }


@dataclass
class Tally:
    """What was done to runs of one kind, and what was found; `slowest_s` is of one process set."""

    what: str
    n_kills: int = 0
    n_runs: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)


class Chaos:
    """Runs, kills and looks, in a folder of its own."""

    def __init__(self, folder: Path, mpirun: Sequence[str], seed: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._mpirun = mpirun
        self._seed = seed
        self._say = say
        self._n_started = 0
        self._undisturbed: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            (folder / f"{kind}.yaml").write_text(yamltree.dump(config(kind)), encoding="utf-8")

    def draws(self, number: int) -> np.random.Generator:
        """The random numbers of one run of the seed."""
        return generator(self._seed, Purpose.INJECTION, client=number)

    # ------------------------------------------------------------------------------------------ one run

    def start(self, run: Path, kind: str, n_ranks: int, inject: str = "sleep:0.01", sets: Sequence[str] = ()) -> Going:
        """A run from its beginning, or, where its folder has a record, from its last checkpoint."""
        resumes = any(run.glob("record-*.h5"))
        begins = ["run", str(self.folder / f"{kind}.yaml"), "--out", str(run)]
        words = ["resume", str(run)] if resumes else begins
        options = [] if resumes else [word for value in sets for word in ("--set", value)]
        program = [sys.executable, "-m", "fedsim", *words, "--quiet", *options]
        self._n_started += 1
        mark = f"{os.getpid()}-{self._n_started}"
        own = Path(tempfile.mkdtemp(prefix="fedsim-chaos-"))
        extra = {MARK: mark, "FEDSIM_INJECT": inject, SESSIONS: str(own)}
        with self.log(run).open("ab") as log:
            process = subprocess.Popen(
                [*self._mpirun, *_TOLERANT, "-n", str(n_ranks), *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(os.environ, extra),
                start_new_session=True,
            )
        return Going(process, mark, run, own)

    def log(self, run: Path) -> Path:
        """What a run's processes print, all attempts in one file."""
        return self.folder / f"{run.name}.log"

    def kill_workers(
        self, tally: Tally, run: Path, kind: str, moments: Sequence[tuple[int, float]], n_each: int
    ) -> None:
        """One run, at each of whose moments (version, seconds after it) `n_each` of its workers are killed."""
        draws = self.draws(1_000_000 + tally.n_runs)

        def strike(ranks: dict[int, int]) -> Sequence[int]:
            workers = sorted(rank for rank in ranks if rank > 0)
            n = min(n_each, len(workers) - 1)
            return [ranks[int(rank)] for rank in draws.choice(workers, n, replace=False)]

        going = self.start(run, kind, N_RANKS)
        tally.n_kills += going.struck(moments, strike)
        self._ended(tally, going)
        if kind == "states" and going.process.returncode == EXIT_LOST:  # killed while the others began again
            self._ended(tally, self.start(run, kind, N_RANKS))
        self.check(tally, run, kind)

    def kill_jobs(self, tally: Tally, run: Path, kind: str, moments: Sequence[tuple[int, float]]) -> None:
        """One run, all of whose ranks are killed at each moment, and which then goes on, on another number of ranks."""
        draws = self.draws(2_000_000 + tally.n_runs)
        for moment in moments:
            going = self.start(run, kind, int(draws.integers(2, N_RANKS + 1)))
            tally.n_kills += bool(going.struck([moment], lambda ranks: list(ranks.values())))
            going.end()
        going = self.start(run, kind, int(draws.integers(2, N_RANKS + 1)))
        self._ended(tally, going)
        self.check(tally, run, kind)

    def _ended(self, tally: Tally, going: Going) -> None:
        tally.n_runs += 1
        try:
            took_s = going.wait()
            tally.slowest_s = max(tally.slowest_s, took_s)
        except subprocess.TimeoutExpired:
            tally.problems.append(f"{going.run.name}: still at work after {TIMEOUT_S:.0f} s")
        finally:
            going.end()

    # ------------------------------------------------------------------------------------------ looking

    def undisturbed(self, kind: str) -> dict[str, Any]:
        """The summary of the run on the virtual clock that nobody disturbs, made once, in one process."""
        if kind not in self._undisturbed:
            self._undisturbed[kind] = self.alone(self.folder / f"undisturbed-{kind}", kind)
        return self._undisturbed[kind]

    def alone(self, run: Path, kind: str, sets: Sequence[str] = ()) -> dict[str, Any]:
        """The summary of a run in one process."""
        options = [word for value in sets for word in ("--set", value)]
        self._fedsim("run", str(self.folder / f"{kind}.yaml"), "--out", str(run), "--quiet", *options)
        return open_run(run).summary()

    def check(self, tally: Tally, run: Path, kind: str) -> None:
        """Notes what is wrong with a run that should have got over everything."""
        try:
            summary = open_run(run).summary()
            found = problems(open_run(run), summary)
            wanted = self._replayed(run) if kind == "wall" else self.undisturbed(kind)
            names = ("model_sha256", "history_sha256") if kind == "wall" else _SAME
            found += [
                f"{name} is {summary[name]}, not {wanted[name]}" for name in names if summary[name] != wanted[name]
            ]
        except FedsimError as error:
            found = [str(error)]
        tally.problems += [f"{run.name}: {problem}" for problem in found]
        if found and self.log(run).exists():
            tally.problems[-1] += f"; it printed: {tail(self.log(run))}"  # no problem more
        self._say(f"{tally.what}: {tally.n_kills} kills, {tally.n_runs} runs, {len(tally.problems)} problems")

    def _replayed(self, run: Path) -> dict[str, Any]:
        """The summary of the replay of a run's own record."""
        again = run.with_name(f"{run.name}-replay")
        self._fedsim("replay", str(run), "--out", str(again), "--quiet")
        return open_run(again).summary()

    def _fedsim(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fedsim", *words],
            env=environment(os.environ, {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise LaunchError(f"fedsim {words[0]}: exit code {done.returncode}: {done.stderr[-500:]}")


class Going:
    """A process set at work."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str, run: Path, folder: Path | None = None) -> None:
        """`folder`, if there is one, is where its mpirun keeps its files; it is removed at the end."""
        self.process = process
        self.run = run
        self._folder = folder
        self._mark = f"{MARK}={mark}".encode()
        self._start_s = time.monotonic()

    def ranks(self) -> dict[int, int]:
        """The processes of the living ranks, by rank."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            with contextlib.suppress(OSError, ValueError):
                words = (folder / "environ").read_bytes().split(b"\0")
                ranks = [word for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if self._mark in words and ranks and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found[int(ranks[0].partition(b"=")[2])] = int(folder.name)
        return found

    def version(self) -> int:
        """The last version in the record; -1 without one."""
        with contextlib.suppress(FedsimError, OSError):
            versions = Run(self.run, joined=False).column("versions", "version")
            return int(versions[-1]) if len(versions) else 0
        return -1

    def struck(self, moments: Sequence[tuple[int, float]], strike: Strike) -> int:
        """How many processes were killed: those that `strike` names, at each moment; none once the run is over."""
        n_killed = 0
        for version, later_s in sorted(moments):
            while self.process.poll() is None and self.version() < version:
                if time.monotonic() - self._start_s > TIMEOUT_S:
                    return n_killed
                time.sleep(0.02)
            time.sleep(later_s)
            n_killed += self.kill(strike)
        return n_killed

    def kill(self, strike: Strike) -> int:
        """How many processes were killed, of those that `strike` names."""
        if self.process.poll() is not None or not (ranks := self.ranks()):
            return 0
        pids = strike(ranks)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def wait(self) -> float:
        """The seconds that it took from its start to its end. Raises TimeoutExpired."""
        self.process.wait(max(1.0, TIMEOUT_S - (time.monotonic() - self._start_s)))
        self._clear()
        return time.monotonic() - self._start_s

    def end(self) -> None:
        """Kills what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.ranks().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._clear()

    def _clear(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def problems(run: Run, summary: Mapping[str, Any]) -> list[str]:
    """Gaps and doubles in a joined record, and an end that is none."""
    found = [] if summary["status"] == "done" else [f"its status is {summary['status']}"]
    versions = run.column("versions", "version")
    if not np.array_equal(versions, np.arange(1, N_VERSIONS + 1)):
        found.append(f"table versions does not count from 1 to {N_VERSIONS}")
    tasks = run.column("tasks", "task")
    if len(np.unique(tasks)) != len(tasks):
        found.append("table tasks names a task twice")
    evaluated = run.columns("evaluations", ["version", "client"])
    pairs = Counter(zip(evaluated["version"].tolist(), evaluated["client"].tolist(), strict=True))
    if any(n > 1 for n in pairs.values()):
        found.append("table evaluations has a version twice for one test set")
    if set(evaluated["version"].tolist()) != set(range(0, N_VERSIONS + 1, 4)):
        found.append("table evaluations lacks a version")
    return found


def moments(draws: np.random.Generator, n: int) -> list[tuple[int, float]]:
    """Random moments of a run: a version each, and up to 50 ms."""
    return [(int(draws.integers(1, int(_LATEST * N_VERSIONS))), float(draws.uniform(0.0, 0.05))) for _ in range(n)]


def worker_kills(chaos: Chaos, kind: str, n_kills: int) -> Tally:
    """Runs in which one worker after the other is killed, so many in all, one being left."""
    tally = Tally(f"worker kills, {kind} runs")
    while tally.n_kills < n_kills and tally.n_runs < 2 * n_kills:  # a kill may come too late
        n = min(N_RANKS - 2, n_kills - tally.n_kills)
        run = chaos.folder / f"workers-{kind}-{tally.n_runs}"
        chaos.kill_workers(tally, run, kind, moments(chaos.draws(tally.n_runs), n), 1)
    return tally


def job_kills(chaos: Chaos, kind: str, n_kills: int, n_each: int = 3) -> Tally:
    """Runs that are killed whole, several times each, and go on."""
    tally = Tally(f"job kills, {kind} runs")
    while tally.n_kills < n_kills and tally.n_runs < 2 * n_kills:
        n = min(n_each, n_kills - tally.n_kills)
        run = chaos.folder / f"jobs-{kind}-{tally.n_runs}"
        chaos.kill_jobs(tally, run, kind, sorted(moments(chaos.draws(10_000 + tally.n_runs), n)))
    return tally


def measure(launcher: Launcher, n_workers: int, n_jobs: int, seed: int) -> Report:
    """A third of the kills for each kind of run."""
    chaos = Chaos(launcher.folder, launcher.mpirun, seed, launcher.say)
    tallies = [worker_kills(chaos, kind, n) for kind, n in _shares(n_workers) if n]
    tallies += [job_kills(chaos, kind, n) for kind, n in _shares(n_jobs) if n]
    figures = []
    for tally in tallies:
        figures.append(Figure.of(f"{tally.what}: kills", [float(tally.n_kills)], "1"))
        figures.append(Figure.of(f"{tally.what}: problems", [float(len(tally.problems))], "1", Target(most=0.0)))
        figures.append(Figure.of(f"{tally.what}: slowest run", [tally.slowest_s], "s"))
        for problem in tally.problems:
            launcher.say(problem)
    runs = [{"what": t.what, "kills": t.n_kills, "runs": t.n_runs, "problems": list(t.problems)} for t in tallies]
    settings = {"worker_kills": n_workers, "job_kills": n_jobs, "seed": seed, "ranks": N_RANKS}
    return Report("chaos", launcher.machine, "kills at random moments", settings, figures, runs)


def _shares(n: int) -> list[tuple[str, int]]:
    return [(kind, (n + i) // len(KINDS)) for i, kind in enumerate(reversed(KINDS))][::-1]
