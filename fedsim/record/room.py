"""Room on the disk, taken before HDF5 writes and not while it does.

HDF5 does not survive a write that fails for want of room: what it could not write stays in its cache, is tried again
at every close, and the process dies of it at its end (a segmentation fault, seen with HDF5 2.0). So the file is made
longer first, which fails cleanly, and HDF5 writes into blocks that are there. What is left over is cut off at the end.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py

from fedsim.record.settled import stored_end

RESERVE_BYTES = 2 * 2**20
"""What is kept free behind the data, for indices, headers, and the status that says that the disk was full."""


def take(file: h5py.File, n_bytes: int) -> bool:
    """Sees to it that `n_bytes` more can be written to an open file; True if that took making it longer.

    `OSError` if they cannot be written; no harm is done then.
    """
    descriptor = file.id.get_vfd_handle()
    there = os.fstat(descriptor).st_size
    end = file.id.get_filesize()
    if there >= end + n_bytes + RESERVE_BYTES // 2:
        return False
    _lengthen(descriptor, there, end + n_bytes + RESERVE_BYTES)
    return True


def try_out(path: Path, n_bytes: int) -> None:
    """Leaves an empty file at this path if there is room for `n_bytes`. `OSError` if there is not."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        _lengthen(descriptor, 0, n_bytes)
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def give_back(path: Path) -> None:
    """Cuts off what is left over from a closed file."""
    end = stored_end(path)
    if end is not None and end < path.stat().st_size:
        os.truncate(path, end)


def _lengthen(descriptor: int, there: int, wanted: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, there, wanted - there)
        return
    # macOS: nothing is taken, but a disk that is full already is noticed.
    state = os.fstatvfs(descriptor)
    if state.f_bavail * state.f_frsize < wanted - there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
