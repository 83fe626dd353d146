"""How all ranks leave together, also when some of them died.

Rank zero hears from every other rank that it has come, and then tells all that they may go: no collective operation,
since one that a dead rank belongs to fails on some ranks and may hang on others. Where somebody died MPI is not
finalised either: that was seen to hang with several nodes (Open MPI's issue 11404).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedsim.comm.losses import is_death
from fedsim.comm.transport import Backoff
from fedsim.engine.launching import World, abort
from fedsim.errors import EXIT_LOST

TIMEOUT_S = 10.0
_GOODBYE_S = 2.0


def leave(world: World, code: int, timeout_s: float = TIMEOUT_S, exit_now: Callable[[int], Any] = os._exit) -> None:
    """Returns when every living rank has come here, so that MPI can end in order; where one died, ends the process.

    A rank that comes because of an error (`code` above zero) waits for `timeout_s`: others that do not come by then
    wait for something that will never be, and the job is aborted with the code.
    """
    if world.farewell is None:
        return
    until_s = time.monotonic() + timeout_s if code else None
    end = _last_of_all(world, code, until_s) if world.rank == 0 else _until_sent_home(world, code, until_s)
    if end is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        exit_now(end)


def _last_of_all(world: World, code: int, until_s: float | None) -> int | None:
    """Rank zero: waits for the others and sends them home. What to exit with at once if somebody died, else None."""
    comm, others = world.farewell, range(1, world.size)
    here = np.zeros((world.size, 1), np.uint8)
    coming = {rank: comm.Irecv(here[rank], source=rank) for rank in others}
    dead = _wait(world, coming, code, until_s)
    word = np.array([bool(dead)], np.uint8)
    going = {rank: comm.Isend(word, dest=rank) for rank in others if rank not in dead}
    _wait(world, going, 0, time.monotonic() + _GOODBYE_S)
    return code if dead else None


def _until_sent_home(world: World, code: int, until_s: float | None) -> int | None:
    """Another rank: says that it has come, and waits to be sent home. What it returns is as in `_last_of_all`."""
    comm, word = world.farewell, np.zeros(1, np.uint8)
    here = comm.Isend(np.zeros(1, np.uint8), dest=0)
    if _wait(world, {0: here}, code, until_s) or _wait(world, {0: comm.Irecv(word, source=0)}, code, until_s):
        return code or EXIT_LOST
    return code if word[0] else None


def _wait(world: World, requests: dict[int, Any], code: int, until_s: float | None) -> set[int]:
    """The ranks that died before their request was done. With a code above zero, aborts all when the time is over."""
    waiting, dead, backoff = dict(requests), set[int](), Backoff()
    while waiting:
        for rank, request in list(waiting.items()):
            try:
                if not request.Test():
                    continue
            except Exception as error:
                if not is_death(error):
                    raise
                dead.add(rank)
            del waiting[rank]
        if waiting and until_s is not None and time.monotonic() > until_s:
            if code:
                abort(world, code)
            return dead
        backoff.sleep()
    return dead


__all__ = ["is_death", "leave"]
