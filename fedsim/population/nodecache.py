"""One copy of a data set a host, however many ranks there are: large arrays are unpacked once into a file that all map.

An array in a compressed file cannot be mapped as it lies there, so each process would hold a copy of its own. Here the
first that needs it writes it, unpacked, into a folder of this host and user; all map that file, read-only, and the
system keeps its pages once. A mapping outlives the death of any rank, which shared windows of MPI do not.

The file is named after the SHA-256 of the source and the array's name, so another source is another file. Its own
SHA-256 stands beside it and is compared by everybody who maps it: one that was truncated or altered is made anew. Where
there is no room for it, or no folder that nobody else can write to, the array is read into memory as before, and a
warning says so.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

VARIABLE = "FEDSIM_NODE_CACHE"  # another folder, or "off"
LEAST_BYTES = 2**24  # what is smaller is not worth a file
_BLOCK_BYTES = 2**24

Array = NDArray[np.generic]


def shared(source: Path, name: str, n_bytes: int, read: Callable[[], Array]) -> Array:
    """The array `name` of the file `source`, mapped from this host's copy; what `read` returns if it is small.

    Args:
        source: the file.
        name: which of its arrays; part of the copy's name.
        n_bytes: how large it is, about.
        read: reads the array into memory.
    """
    wish = os.environ.get(VARIABLE, "")
    if n_bytes < LEAST_BYTES or wish == "off":
        return read()
    try:
        folder = _private(Path(wish) if wish else Path(tempfile.gettempdir()) / f"fedsim-{os.geteuid()}")
        return _mapped(folder / _key(source, name), read)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename}" if error.filename else f"{error.strerror or error}"
        warnings.warn(f"{source}: every rank keeps a copy of its own ({reason}); see {VARIABLE}", stacklevel=2)
        return read()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; computed once for as long as the file is the same."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _key(source: Path, name: str) -> str:
    return hashlib.sha256(f"1 {file_sha256(source)} {name}".encode()).hexdigest()


def _private(folder: Path) -> Path:
    """The folder, made if need be; an OSError unless it is ours and only ours to write to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(None, "others can write there", str(folder))
    return folder


def _mapped(path: Path, read: Callable[[], Array]) -> Array:
    """The array of a copy that is whole; made first if it is not. One process at a time makes it, the others wait."""
    found = _opened(path)
    if found is not None:
        return found
    with _locked(path.with_suffix(".lock")):
        found = _opened(path)
        if found is None:
            _write(path, read())
            found = _opened(path)
    if found is None:
        raise OSError(None, "the copy cannot be read back", str(path))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which the system takes back from a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> Array | None:
    """The copy's array, mapped; None if there is none, or if it is not what was written."""
    try:
        wanted = path.with_suffix(".sha256").read_text(encoding="ascii")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                return None
        return npy.open_memmap(path, mode="r")
    except FileNotFoundError:
        return None
    except ValueError:  # not an array's file, or not text
        return None


def _write(path: Path, values: Array) -> None:
    """Writes a copy and its SHA-256: aside, then renamed, so that nobody sees a part of it."""
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        _save(aside, values)
        with aside.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.replace(aside, path)
        aside.write_text(digest, encoding="ascii")
        os.replace(aside, path.with_suffix(".sha256"))
    finally:
        aside.unlink(missing_ok=True)


def _save(path: Path, values: Array) -> None:
    """An NPY file, written in pieces: a full disk is then an OSError here, and not a signal at the first access."""
    rows = max(1, _BLOCK_BYTES // max(1, values[:1].nbytes))
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
        npy.write_array_header_2_0(file, header)
        for start in range(0, values.shape[0], rows):
            file.write(np.ascontiguousarray(values[start : start + rows]).data)
