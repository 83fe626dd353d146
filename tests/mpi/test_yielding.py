"""Ranks that poll and sleep must not give their core away inside MPI: see `fedsim.comm.openmpi`."""

from __future__ import annotations

import sys
from typing import Any

PROGRAM = """
from mpi4py import MPI
from fedsim.comm.mpi import Channels
from fedsim.comm.openmpi import stop_yielding
Channels.open(MPI.COMM_WORLD)
print("there is something to stop:", stop_yielding(), "Open MPI" in MPI.Get_library_version())
"""


def test_open_mpi_is_told_not_to_yield(start_program: Any) -> None:
    done = start_program(1, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "there is something to stop: True True" in done.stdout
