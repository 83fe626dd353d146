"""A rank that waits is woken by the one that rings, on one machine; nothing depends on it."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from fedsim.comm import bell
from fedsim.comm.bell import Bell

PROGRAM = """
import os
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

comm.Barrier()
before = os.listdir("/proc/self/fd")
for _ in range(5):
    Bell.open(comm).close()
assert os.listdir("/proc/self/fd") == before
bell.close()
bell.close()
assert len(os.listdir("/proc/self/fd")) == len(before) - (comm.size if comm.rank == 0 else 2)
bell.ring(0)
assert waited(0.02) > 0.015 and not bell.reaches(others)
print("rung", comm.rank)
"""


def test_ranks_of_one_machine_wake_each_other(start_program: Callable[..., Any]) -> None:
    done = start_program(3, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["0", "1", "2", "rung", "rung", "rung"]


def test_without_bells_a_rank_just_sleeps() -> None:
    none = Bell()
    assert not none.reaches([0]) and none.reaches([]) is False
    start_s = time.monotonic()
    none.wait(0.03)
    none.ring(0)
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


def test_a_worker_takes_a_bell_from_its_own_user_only(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"\0fedsim-test-{os.getpid()}"
    with bell._bound(name) as door, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        assert isinstance(door, socket.socket)
        n_before = len(os.listdir("/proc/self/fd"))
        own, servers = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        rights = array("i", (own, servers))
        other.sendto(b"no descriptors", name)
        other.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights[:1])], 0, name)
        other.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, name)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert not bell._taken(door).reaches([0])
        monkeypatch.undo()
        assert len(os.listdir("/proc/self/fd")) == n_before + 2, "what was refused is closed"
        assert not bell._taken(door).reaches([0]), "nothing is left"
        other.sendto(b"no descriptors", name)
        other.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights[:1])], 0, name)
        other.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, name)
        taken = bell._taken(door)
        assert taken.reaches([0])
        os.eventfd_write(own, 1)
        start_s = time.monotonic()
        assert taken.wait(60.0) and time.monotonic() - start_s < 30.0
        taken.close()
        os.close(own)
        os.close(servers)


def test_no_bell_takes_the_last_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (8, 8))
    assert bell._made() is None
