"""Live files that every HDF5 tool can open, and such files as their writers' ends have left them.

HDF5 marks a file that is being written in SWMR mode, and lets nobody open it but in SWMR mode, also after the writer
was killed. Most tools cannot (h5dump cannot), and for files that nobody vouches for it is no good: where a checksum is
wrong HDF5 tries a hundred times and doubles its pause each time, so that a damaged file hangs the process for good
(seen with HDF5 2.0).

So the writer takes its marks away (`settle`): in SWMR mode what is on the disk is consistent after every step, children
before parents, and HDF5 does not touch the superblock again before it closes the file. That nobody else writes is seen
to by a lock. Where a file bears marks all the same, or ends early, `SettledFile` shows it without; it also keeps out of
the way of HDF5's file locks, which some network file systems lack, and of the same file's writer in the same process.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from pathlib import Path
from typing import Any

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Version 3: signature, version, sizes of offsets and lengths, flags, base, extension, end, root, checksum.
_SUPERBLOCK = struct.Struct("<8sBBBBQQQQI")
_VERSION = 3
_MASK = 0xFFFFFFFF


def opened(path: Path, access: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. `OSError` for anything else: a pipe would keep us waiting for ever."""
    descriptor = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file")


def settle(descriptor: int) -> None:
    """Takes the writer's marks from an open file's superblock and says in it that all of the file is in use."""
    head = os.pread(descriptor, _SUPERBLOCK.size, 0)
    settled = _settled(head, os.fstat(descriptor).st_size)
    if settled != head:
        os.pwrite(descriptor, settled, 0)


class SettledFile(io.RawIOBase):
    """A readable, seekable view of a record, whatever state its writer left it in, for h5py's file-object driver."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(opened(path), "rb", buffering=0)
        try:
            self._head = _settled(self._file.read(_SUPERBLOCK.size), self._file.seek(0, io.SEEK_END))
        except BaseException:
            self._file.close()
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer from the current place; the superblock as if settled."""
        at = self._file.tell()
        n_bytes = self._file.readinto(buffer) or 0
        known = self._head[at : at + n_bytes]
        memoryview(buffer).cast("B")[: len(known)] = known
        return n_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def stored_end(path: Path) -> int | None:
    """Where the data of a file end by its superblock; None for one that has marks, or is of another kind."""
    with os.fdopen(opened(path), "rb") as file:
        head = file.read(_SUPERBLOCK.size)
    if len(head) < _SUPERBLOCK.size or not head.startswith(_SIGNATURE):
        return None
    _, version, _, _, flags, _, _, end, _, _ = _SUPERBLOCK.unpack(head)
    return end if version == _VERSION and not flags else None


def _settled(head: bytes, end: int) -> bytes:
    """The superblock without marks and with this end of file; anything else as it is, for HDF5 to refuse."""
    if len(head) < _SUPERBLOCK.size:
        return head
    signature, version, offsets, lengths, _, base, extension, _, root, checksum = _SUPERBLOCK.unpack(head)
    if (signature, version, offsets, lengths, base) != (_SIGNATURE, _VERSION, 8, 8, 0):
        return head
    if lookup3(head[:-4]) != checksum:
        return head
    settled = _SUPERBLOCK.pack(signature, version, offsets, lengths, 0, base, extension, end, root, 0)[:-4]
    return settled + struct.pack("<I", lookup3(settled))


def lookup3(data: bytes) -> int:
    """HDF5's checksum of metadata: Bob Jenkins' lookup3 (2006), `hashlittle` with initial value 0.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    start = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return start
    n_blocks = -(-len(data) // 12)
    words = struct.unpack(f"<{3 * n_blocks}I", data.ljust(12 * n_blocks, b"\0"))
    a = b = c = start
    for at in range(0, len(words) - 3, 3):
        a, b, c = _mixed((a + words[at]) & _MASK, (b + words[at + 1]) & _MASK, (c + words[at + 2]) & _MASK)
    a, b, c = words[-3] + a & _MASK, words[-2] + b & _MASK, words[-1] + c & _MASK
    return _final(a, b, c)


def _rotated(x: int, by: int) -> int:
    return (x << by | x >> (32 - by)) & _MASK


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    for by in (4, 6, 8, 16, 19, 4):
        # Each step works on the three words in turn: (a, c, b), then (b, a, c), then (c, b, a).
        a = (a - c & _MASK) ^ _rotated(c, by)
        c = c + b & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for by in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, by) & _MASK
        a, b, c = b, c, a
    return b
