"""Memory that ranks of one machine map: a file in /dev/shm whose name is gone before anything is written to it.

It outlives the death of any rank, which shared windows of MPI do not, and vanishes with the last. Its room is taken
when it is made (`posix_fallocate`): where there is not enough, ranks go without, and a warning says so; touching
memory without room would be a SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.population.nodecache import VARIABLE

if TYPE_CHECKING:
    from mpi4py import MPI

FOLDER = "/dev/shm"
PAGE_BYTES = 4096


class Fence:
    """Nothing written or read before a call comes to be after it: a lock given back and taken again is such a fence."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            pass
        with self._lock:
            pass


def map_together(
    ranks: MPI.Intracomm, size: Callable[[int], tuple[int, int]], without: str
) -> tuple[mmap.mmap, int] | None:
    """Memory that all of some ranks have mapped, and a number that the first of them told the others; collective.

    `size`, asked at the first of the ranks, gives how many bytes it is to have, and the number, from how many are free;
    it raises OSError where those are too few. None, with a warning of what happens `without`, if a rank cannot have it;
    without a warning if one has been told to do without.
    """
    if "off" in ranks.allgather(os.environ.get(VARIABLE, "")):
        return None
    path, n_bytes, number, reason = "", 0, 0, ""
    if ranks.rank == 0:
        try:
            n_bytes, number = size(free_room(FOLDER))
            path = made(n_bytes)
        except OSError as error:
            reason = error.strerror or str(error)
    path, n_bytes, number, reason = ranks.bcast((path, n_bytes, number, reason), root=0)
    memory = None
    if path:
        try:
            memory = mapped(path, n_bytes)
        except OSError as error:
            reason = f"{error.strerror or error}: {path}"
    reasons = [said for said in ranks.allgather(reason) if said]
    if ranks.rank == 0 and path:
        os.unlink(path)
    if reasons or memory is None:
        if ranks.rank == 0:
            warnings.warn(f"{FOLDER}: {without} ({reasons[0]})", stacklevel=2)
        return None
    return memory, number


def made(n_bytes: int) -> str:
    """The path of a new file of so many bytes, which are taken.

    Raises:
        OSError: there is no room for them, or no such folder.
    """
    descriptor, path = tempfile.mkstemp(prefix="fedsim-", dir=FOLDER)
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return path


def mapped(path: str, n_bytes: int) -> mmap.mmap:
    """The memory of a file that was made.

    Raises:
        OSError: it cannot be mapped, or is another one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_size != n_bytes:  # another node's, where /dev/shm is not shared
            raise OSError(None, "not the file that was made")
        return mmap.mmap(descriptor, n_bytes)
    finally:
        os.close(descriptor)


def free_room(folder: str) -> int:
    """Bytes that this user may still take in a folder's file system.

    Raises:
        OSError: there is no such folder.
    """
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def whole_pages(n_bytes: int) -> int:
    """The next number of bytes that pages make up."""
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES
