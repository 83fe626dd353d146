"""A rank that waits is woken by the one that rings, on one machine; nothing depends on it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fedsim.comm.bell import Bell

PROGRAM = """
import time
from mpi4py import MPI
from fedsim.comm.bell import Bell

comm = MPI.COMM_WORLD
bell = Bell.open(comm)
others = (0,) if comm.rank else range(1, comm.size)
assert bell.reaches(others), comm.rank
assert not bell.reaches([comm.size])


def waited(seconds):
    start_s = time.monotonic()
    bell.wait(seconds)
    return time.monotonic() - start_s


assert waited(0.05) > 0.04  # nobody rings
comm.Barrier()
if comm.rank == 0:
    assert waited(60.0) < 30.0  # whoever rings first
    comm.Barrier()
    bell.wait(0.0)  # what was rung before counts once, however often
    assert waited(0.05) > 0.04
    for rank in others:
        bell.ring(rank)
else:
    time.sleep(0.1 * comm.rank)
    bell.ring(0, gives_way=True)
    comm.Barrier()
    assert waited(60.0) < 30.0
bell.ring(comm.size)  # nobody is there
print("rung", comm.rank)
"""


def test_ranks_of_one_machine_wake_each_other(start_program: Callable[..., Any]) -> None:
    done = start_program(3, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["0", "1", "2", "rung", "rung", "rung"]


def test_without_bells_a_rank_just_sleeps() -> None:
    bell = Bell()
    assert not bell.reaches([0]) and bell.reaches([]) is False
    start_s = time.monotonic()
    bell.wait(0.03)
    bell.ring(0)
    assert time.monotonic() - start_s >= 0.03


def test_a_ring_before_the_wait_is_not_lost() -> None:
    mine, theirs = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    here, there = Bell(mine, {1: theirs}), Bell(theirs, {0: mine})
    there.ring(0)
    start_s = time.monotonic()
    here.wait(60.0)
    threading.Timer(0.1, there.ring, (0,)).start()
    here.wait(60.0)
    assert time.monotonic() - start_s < 30.0
    os.close(mine)
    os.close(theirs)
    here.ring(1)  # the other one is gone
