"""A run under supervision: `launch/run` starts mpirun, hands signals on in order, and starts again what died.

    python -m fedsim.supervisor -n 8 CONFIG.yaml        what launch/run does

What became of a run is read from its record, not from mpirun's exit code: that is 0 after a lost node (seen with Open
MPI 5). mpirun is kept out of the terminal's process group, since at Ctrl-C and SIGTERM it kills the ranks within a
quarter of a second; it gets SIGUSR2 instead, which it passes on to all ranks and which ends a run with a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fedsim import errors
from fedsim.cli import exit_code_of
from fedsim.errors import EXIT_BUG, EXIT_DONE, EXIT_LOST, EXIT_REQUEUE, EXIT_STALLED, EXIT_USAGE, ConfigError

MPIRUN = "FEDSIM_MPIRUN"
_POLL_S = 0.2
_PATIENCE_S = 60.0  # beyond stall_timeout_s, for a record to which nothing is written any more
_KILL_AFTER_S = 10.0
_PROBE_S = 30.0
_DEATH_S = 120.0  # for the lock of what died to go with it, on file systems where that takes its time
_LOOK_S = 1.0
_FINAL = (EXIT_USAGE, EXIT_BUG, EXIT_STALLED)  # would only happen again
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[1-9]\d*)?")


@dataclass(frozen=True)
class Host:
    """A node, and how many ranks may run there (None: unknown)."""

    name: str
    slots: int | None = None

    def __str__(self) -> str:
        return self.name if self.slots is None else f"{self.name}:{self.slots}"


@dataclass(frozen=True)
class Job:
    """What is to be run: `words` are those after `fedsim run CONFIG`; `hosts` is empty on one machine."""

    config: Path
    folder: Path
    n_ranks: int
    n_attempts: int
    words: Sequence[str] = ()
    hosts: Sequence[Host] = ()
    stall_timeout_s: float = 600.0


@dataclass
class Launcher:
    """mpirun, with the words that every launch needs; `survives`: it can go on after a rank's death."""

    mpirun: Sequence[str]
    survives: bool

    @classmethod
    def of(cls, words: Sequence[str]) -> Launcher:
        """The launcher as its version says. Raises ConfigError if it cannot be started."""
        try:
            done = subprocess.run([words[0], "--version"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            raise ConfigError(f"{words[0]}: no such launcher; {MPIRUN} names another") from None
        return cls(words, survives_deaths(done.stdout + done.stderr))

    def line(self, job: Job, hosts: Sequence[Host], resumes: bool) -> list[str]:
        """The words that start an attempt."""
        tolerance = ["--with-ft", "ulfm"] if self.survives else []
        where = ["--host", ",".join(map(str, hosts))] if hosts else []
        program = [sys.executable, "-m", "fedsim"]
        kept = [word for word in ("--quiet", "--allow-code") if word in job.words]
        if resumes:
            program += ["resume", str(job.folder), *kept]
        else:
            program += ["run", str(job.config), "--out", str(job.folder), *job.words]
        return [*self.mpirun, *tolerance, *where, "-n", str(n_ranks_on(job.n_ranks, hosts)), *program]


def survives_deaths(version: str) -> bool:
    """Whether a launcher's version is of an Open MPI that can go on after a rank's death.

    >>> [survives_deaths(version) for version in ("mpirun (Open MPI) 5.0.11", "mpirun (Open MPI) 4.1.4", "HYDRA 4")]
    [True, False, False]
    """
    found = re.search(r"\(Open MPI\) (\d+)\.", version)
    return found is not None and int(found[1]) >= 5


def n_ranks_on(n_ranks: int, hosts: Sequence[Host]) -> int:
    """As many ranks as were asked for, or as there is room for on these hosts where that is known."""
    slots = [host.slots for host in hosts]
    known = [n for n in slots if n is not None]
    return min(n_ranks, sum(known)) if known and len(known) == len(slots) else n_ranks


# ------------------------------------------------------------------------------------------------- hosts


def parse_hosts(text: str) -> list[Host]:
    """Hosts as mpirun writes them, `n1:2,n2:2`. Raises ConfigError if they are written otherwise."""
    hosts = []
    for part in filter(None, text.split(",")):
        if not _HOST.fullmatch(part):
            raise ConfigError(f"--hosts: got {part!r:.80}, allowed: NAME or NAME:RANKS, with commas between them")
        name, _, slots = part.partition(":")
        hosts.append(Host(name, int(slots) if slots else None))
    return hosts


def slurm_hosts(environ: Mapping[str, str]) -> list[Host]:
    """The nodes of the allocation that we are in, with their numbers of tasks; empty outside of one."""
    nodes = environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        return []
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    names = done.stdout.split()
    tasks = slurm_tasks(environ.get("SLURM_TASKS_PER_NODE", ""))
    return [Host(name, tasks[i] if i < len(tasks) else None) for i, name in enumerate(names)]


def slurm_tasks(text: str) -> list[int]:
    """Tasks a node as Slurm writes them.

    >>> slurm_tasks("4(x2),1")
    [4, 4, 1]
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(n) for n, times in found for _ in range(min(int(times or 1), 100_000))]


def living(launcher: Launcher, hosts: Sequence[Host]) -> list[Host]:
    """The hosts on which the launcher can start something."""

    def answers(host: Host) -> bool:
        words = [*launcher.mpirun, "--host", f"{host.name}:1", "-n", "1", "true"]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_PROBE_S, check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(max_workers=16) as pool:
        return [host for host, alive in zip(hosts, pool.map(answers, hosts), strict=True) if alive]


# ------------------------------------------------------------------------------------------------- signals


@dataclass
class Signals:
    """Hands on to mpirun what a terminal or a scheduler says. `asked`: an end in order was asked for."""

    process: subprocess.Popen[bytes] | None = None
    asked: bool = False
    n_interrupts: int = 0
    _former: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:  # every rank's stack
            self._tell(signal.SIGUSR1)
            return
        self.n_interrupts += number == signal.SIGINT
        if self.n_interrupts > 1:
            self._tell(signal.SIGTERM)
        elif not self.asked:
            note("asked to stop: every rank ends after a checkpoint (Ctrl-C again: at once)")
            self._tell(signal.SIGUSR2)
        self.asked = True

    def _tell(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def note(text: str) -> None:
    """A line on the error stream."""
    print(f"launch/run: {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ attempts


def supervise(job: Job, launcher: Launcher, is_fresh: bool) -> int:
    """Runs the job to its end, over several attempts if it must; the exit code that says how it ended."""
    hosts: Sequence[Host] = ()
    with Signals() as signals:
        for attempt in range(1, job.n_attempts + 1):
            resumes = not is_fresh or (attempt > 1 and newest_record(job.folder) >= 0)
            if attempt > 1 and job.hosts:
                hosts = living(launcher, job.hosts)
                if not hosts:
                    note("no host answers any more")
                    return EXIT_LOST
            if attempt > 1 and not resumes:
                with contextlib.suppress(OSError):
                    job.folder.rmdir()  # killed before it had anything in it
            if attempt > 1 and resumes:
                await_death(job.folder, signals)
            if attempt > 1 and signals.asked:
                return EXIT_REQUEUE
            before = newest_record(job.folder)
            code = attempt_once(launcher.line(job, hosts or _asked(job), resumes), job, signals)
            status = status_since(job.folder, before)
            verdict = judge(status, code, signals.asked, lambda: failure_code(job.folder))
            if verdict is not None:
                return verdict
            left = job.n_attempts - attempt
            note(f"attempt {attempt} ended as '{status}' (mpirun's exit code {code}); {left} attempts left")
    return EXIT_LOST


def await_death(
    folder: Path,
    signals: Signals,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until the last attempt is seen to be dead, for two minutes at most, or until an end is asked for.

    A resume refuses what may be alive, for good. But after a lost node that is only not seen yet: without locks a
    record has to be silent for a while, and a network file system can keep a lock longer than its holder lives.
    """
    until_s, told = clock() + _DEATH_S, False
    while clock() < until_s and not signals.asked:
        reason = _signs_of_life(folder)
        if not reason:
            return
        if not told:
            note(f"waiting for the last attempt's end: {reason}")
            told = True
        sleep(_LOOK_S)


def _signs_of_life(folder: Path) -> str:
    from fedsim.engine.resume import signs_of_life
    from fedsim.record.pieces import attempt_name

    try:
        return signs_of_life(folder / attempt_name(newest_record(folder)))
    except errors.FedsimError:
        return ""  # the resume says what is wrong


def _asked(job: Job) -> Sequence[Host]:
    """The hosts for the first attempt: in an allocation mpirun knows them itself."""
    return () if "SLURM_JOB_NODELIST" in os.environ else job.hosts


def attempt_once(words: Sequence[str], job: Job, signals: Signals) -> int:
    """The exit code of one mpirun; ended where nothing is written to the record for far too long."""
    note(shlex.join(words))
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    signals.process = process
    if signals.asked:
        process.send_signal(signal.SIGTERM)
    kill_s: float | None = None
    started_s = time.time()
    while process.poll() is None:
        time.sleep(_POLL_S)
        if kill_s is None and signals.n_interrupts > 1:
            kill_s = time.monotonic() + _KILL_AFTER_S
        if kill_s is None and job.n_ranks > 1 and _is_silent(job, started_s):
            note("nothing is written to the record any more: ending this attempt")
            process.send_signal(signal.SIGTERM)
            kill_s = time.monotonic() + _KILL_AFTER_S
        if kill_s is not None and time.monotonic() > kill_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    signals.process = None
    return process.returncode


def _is_silent(job: Job, started_s: float) -> bool:
    """Whether rank zero, which writes every few seconds, has not done so for longer than any stall may last."""
    written = [path.stat().st_mtime for path in job.folder.glob("record-*.h5")]
    last_s = max([started_s, *written]) if written else time.time()
    return time.time() - last_s > job.stall_timeout_s + _PATIENCE_S


# ------------------------------------------------------------------------------------------------ judging


def newest_record(folder: Path) -> int:
    """The number of the newest attempt that got as far as a record; -1 if none did."""
    from fedsim.record.pieces import attempt_numbers

    try:
        return max(attempt_numbers(folder), default=-1)
    except errors.RecordError:
        return -1


def status_of(folder: Path) -> str:
    """The status of a run's last attempt, `running` if it was killed; `none` without a record."""
    from fedsim.record.reader import Run

    if newest_record(folder) < 0:
        return "none"
    try:
        return Run(folder, joined=False).status
    except errors.FedsimError:
        return "unreadable"


def status_since(folder: Path, before: int) -> str:
    """The status of an attempt that began when `before` was the newest record; `none` if it made no record of its own.

    What an earlier attempt ended with says nothing of this one, unless it was `done`: then nothing is left to do.
    """
    status = status_of(folder)
    return status if newest_record(folder) > before or status == "done" else "none"


def failure_code(folder: Path) -> int:
    """The exit code of the error that ended a run's last attempt, by its last row of failures."""
    from fedsim.record.pieces import attempt_name
    from fedsim.record.reader import Run

    try:
        kinds = Run(folder / attempt_name(newest_record(folder))).column("failures", "kind")
    except errors.FedsimError:
        return EXIT_BUG
    name = bytes(kinds[-1]).decode(errors="replace") if len(kinds) else ""
    known = getattr(errors, name, None)
    is_ours = isinstance(known, type) and issubclass(known, errors.FedsimError)
    return int(known.exit_code) if is_ours and known is not None else EXIT_BUG


def judge(status: str, code: int, was_asked: bool, failure: Callable[[], int]) -> int | None:
    """The exit code for a run that ended with this status and this code of mpirun; None: try again."""
    match status:
        case "done":
            return EXIT_DONE
        case "stopped":
            return EXIT_REQUEUE if was_asked or code == EXIT_REQUEUE else EXIT_DONE
        case "stalled":
            return EXIT_STALLED
        case "failed":  # on a full disk the record has no row that says why
            return code if code in _FINAL else failure()
    if was_asked:
        return EXIT_REQUEUE
    return code if code in _FINAL else None


# ------------------------------------------------------------------------------------------- the command


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-n", "n_ranks", type=click.IntRange(1, 2**20), required=True, help="Ranks: the server and its workers.")
@click.option("--hosts", default="", metavar="H:N,...", help="Where, as n1:4,n2:4; a Slurm job's nodes are known.")
@click.option("--attempts", type=click.IntRange(1, 1000), default=5, show_default=True, help="At the most.")
@click.option("--dry-run", is_flag=True, help="Print the line that would be started, and do nothing.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="As for fedsim run.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="As for fedsim run.")
@click.option("--quiet", is_flag=True, help="As for fedsim run.")
@click.option("--allow-code", is_flag=True, help="As for fedsim run.")
def main(
    config: Path,
    n_ranks: int,
    hosts: str,
    attempts: int,
    dry_run: bool,
    overrides: tuple[str, ...],
    out: Path | None,
    quiet: bool,
    allow_code: bool,
) -> int:
    """Run CONFIG.yaml on N ranks, and start again what died; or go on with a run, where CONFIG is its folder.

    Workers that die are survived where MPI can (Open MPI 5 or later). After a lost node or a lost rank zero it goes on
    from the last checkpoint, on the nodes that are left. Ctrl-C, SIGTERM and SIGUSR2 end the run with a checkpoint, a
    second Ctrl-C at once; SIGUSR1 prints every rank's stack.

    Exit codes: 0 done; 2 usage, configuration or data; 70 a bug, or a run that failed; 75 stopped with a checkpoint, to
    be gone on with; 76 stalled; 77 lost, after so many attempts.
    """
    launcher = Launcher.of(shlex.split(os.environ.get(MPIRUN, "")) or [_mpirun()])
    words = [word for value in overrides for word in ("--set", value)]
    words += ["--quiet"] * quiet + ["--allow-code"] * allow_code
    job = job_of(config, overrides, out)
    where = parse_hosts(hosts) or slurm_hosts(os.environ)
    job = Job(job.config, job.folder, n_ranks, attempts, words, where, job.stall_timeout_s)
    is_fresh = not config.is_dir()
    if dry_run:
        click.echo(shlex.join(launcher.line(job, _asked(job), not is_fresh)))
        return EXIT_DONE
    return supervise(job, launcher, is_fresh)


def _mpirun() -> str:
    """The launcher beside this Python, whose MPI is the one that it loads; else the one in PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def job_of(config: Path, overrides: Sequence[str], out: Path | None) -> Job:
    """What the configuration, or the folder of a run, says. Raises FedsimError if it cannot be run."""
    from fedsim import configfile
    from fedsim.engine.folder import CONFIG_NAME, is_unbegun

    goes_on = config.is_dir()
    if goes_on and (overrides or out is not None):
        raise ConfigError(f"{config}: a run that goes on keeps its configuration and folder: no --set, no --out")
    loaded = configfile.load(config / CONFIG_NAME if goes_on else config, overrides)
    folder = config if goes_on else (out or Path("runs") / loaded.name)
    if not goes_on and folder.exists() and not is_unbegun(folder, loaded):
        raise errors.RecordError(f"{folder}: exists already; give --out another folder, or go on with it: {folder}")
    return Job(config, folder, 1, 1, stall_timeout_s=loaded.stall_timeout_s)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main.main(prog_name="launch/run", standalone_mode=False)))
