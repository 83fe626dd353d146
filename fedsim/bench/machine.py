"""The machine that a benchmark runs on, as far as it explains the figures; loads no library to ask for its version."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import fedsim
from fedsim.affinity import allowed
from fedsim.bench.figures import Machine

_CPUINFO = "/proc/cpuinfo"


def this_machine(mpi: str = "") -> Machine:
    """The machine now; `mpi` is the name of the MPI library that the runs will use."""
    cores = os.cpu_count() or 1
    usable = len(allowed()) or cores
    return Machine(
        cpu=cpu_name(),
        cores=cores,
        usable_cores=usable,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        fedsim=fedsim.__version__,
        torch=_version("torch"),
        numpy=_version("numpy"),
        mpi=mpi,
    )


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        with open(_CPUINFO, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
