"""What Open MPI has to be told besides what MPI knows."""

from __future__ import annotations

import ctypes
import re

_LIBRARY = re.compile(r"(/\S*/lib(?:open-pal|mpi)\.so[.\d]*)$")


def stop_yielding() -> bool:
    """Keeps Open MPI from giving the core away in every test that finds nothing; true if there was something to keep.

    Open MPI that knows of more ranks than cores (`--map-by :OVERSUBSCRIBE`) calls `sched_yield` whenever it makes no
    progress, whatever `mpi_yield_when_idle` says. That suits ranks that wait inside MPI. Ours test and sleep: with
    busy workers on the same cores, a poll of 1 us then took 1 to 7 ms. To be called after the last collective
    operation that waits inside MPI. There is no parameter for it after the start, only this function of the library.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {match[1] for line in maps if (match := _LIBRARY.search(line.rstrip()))}
    except OSError:  # not Linux
        return False
    done = False
    for path in paths:
        try:
            ctypes.CDLL(path).opal_progress_set_yield_when_idle(ctypes.c_bool(False))
        except (OSError, AttributeError):  # another MPI, or another file of this one
            continue
        done = True
    return done
