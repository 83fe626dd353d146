"""Checkpoints: the state of a run between two events, in files that are whole or are not taken for checkpoints.

A checkpoint is a plain HDF5 file with one dataset for each array of a snapshot, and the SHA-256 of all its bytes behind
them, where HDF5 does not look. It is written aside, synced and renamed; the last two are kept.

HDF5 sees memory only: it lays the file out (9 ms for sixty datasets, with h5py's lock), and then plain writes put the
arrays where they belong, without that lock and without the interpreter's. So a checkpoint is written beside the run,
and a disk without room is an error of one write, where HDF5 would take the process with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedsim.errors import RecordError
from fedsim.record import guard, store
from fedsim.record.settled import opened
from fedsim.record.writer import one_line, sync
from fedsim.snapshot import Snapshot
from fedsim.types import Float32

FORMAT = 1
N_KEPT = 2
VERSIONS = "versions/vectors"
MAX_DATASETS = 2**16

_MAGIC = b"\nfedsim checkpoint sha256 "
_TRAILER_BYTES = len(_MAGIC) + 64 + 1
_NAME = re.compile(r"checkpoint-(\d{6,12})\.h5")
_PIECE_BYTES = 4 * 2**20
_KINDS = "biufS"
_DENSEST = 1024  # a file system may compress, but not a terabyte into nothing


@dataclass(frozen=True)
class Vectors:
    """Versions that are fetched one by one while they are written: `row(i)` gives the i-th of `n`, float32 (P,)."""

    n: int
    n_parameters: int
    row: Callable[[int], Float32]


def name_of(number: int) -> str:
    """The file name of a checkpoint.

    >>> name_of(7)
    'checkpoint-000007.h5'
    """
    return f"checkpoint-{number:06d}.h5"


def numbers(folder: Path) -> list[int]:
    """The checkpoints that lie in a folder, whole or not, in order."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise RecordError(f"{folder}: {error.strerror or error}") from error
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


# ------------------------------------------------------------------------------------------------- writing


def write(folder: Path, number: int, snapshot: Mapping[str, NDArray[Any]], versions: Vectors) -> Path:
    """Writes a checkpoint and returns its path once it is on the disk under its name; older ones go, but for one.

    `RecordError` if it cannot be written; those that were there are as they were.
    """
    path = folder / name_of(number)
    aside = store.aside(path)
    try:
        _write_whole(aside, snapshot, versions)
        aside.replace(path)
        sync(folder)
    except OSError as error:
        raise RecordError(f"{path}: cannot write the checkpoint: {error.strerror or one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    _prune(folder, number)
    return path


def _prune(folder: Path, newest: int) -> None:
    for old in [number for number in numbers(folder) if number < newest][: -(N_KEPT - 1)]:
        with contextlib.suppress(OSError):
            (folder / name_of(old)).unlink()


def _write_whole(path: Path, snapshot: Mapping[str, NDArray[Any]], versions: Vectors) -> None:
    layout, places = _laid_out(snapshot, versions)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        _take_room(descriptor, layout.end + _TRAILER_BYTES)
        for at, data in layout.pieces:
            _put(descriptor, memoryview(data), at)
        for name, at in places.items():
            if name != VERSIONS:
                _put(descriptor, _bytes_of(snapshot[name]), at)
        for index in range(versions.n):
            _put(descriptor, _bytes_of(versions.row(index)), places[VERSIONS] + index * 4 * versions.n_parameters)
        os.ftruncate(descriptor, layout.end)
        _put(descriptor, memoryview(_trailer(descriptor, layout.end)), layout.end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_room(descriptor: int, n_bytes: int) -> None:
    """All of it at once, so that a disk that is too small is not filled first, under the record's feet."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)


def _bytes_of(values: NDArray[Any]) -> memoryview:
    flat: NDArray[np.uint8] = np.frombuffer(np.ascontiguousarray(values).data, np.uint8) if values.size else _NOTHING
    return flat.data


_NOTHING = np.empty(0, np.uint8)


def _put(descriptor: int, view: memoryview, at: int) -> None:
    while view:
        written = os.pwrite(descriptor, view[:_PIECE_BYTES], at)
        view, at = view[written:], at + written


def _trailer(descriptor: int, end: int) -> bytes:
    return _MAGIC + _digest(descriptor, end).encode() + b"\n"


def _digest(descriptor: int, end: int) -> str:
    """SHA-256, hexadecimal, of the first `end` bytes."""
    digest, at = hashlib.sha256(), 0
    while at < end:
        data = os.pread(descriptor, min(_PIECE_BYTES, end - at), at)
        if not data:
            break
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


class _Layout(io.RawIOBase):
    """Takes what HDF5 writes while it lays a file out; the arrays themselves are never written through it."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.end = 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.end = self._at if size is None else size
        return self.end

    def write(self, data: Any) -> int:
        self.pieces.append((self._at, bytes(data)))
        self._at += len(data)
        self.end = max(self.end, self._at)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = bytearray(len(view))
        for at, data in self.pieces:
            first, last = max(at, self._at), min(at + len(data), self._at + len(view))
            if first < last:
                found[first - self._at : last - self._at] = data[first - at : last - at]
        view[:] = found
        self._at += len(view)
        return len(view)


def _laid_out(snapshot: Mapping[str, NDArray[Any]], versions: Vectors) -> tuple[_Layout, dict[str, int]]:
    """The file without its arrays, and where each of these belongs."""
    layout, places = _Layout(), dict[str, int]()
    with h5py.File(layout, "w", libver=store.LIBVER) as file:
        file.attrs["checkpoint_format"] = FORMAT
        for name, values in snapshot.items():
            assert values.dtype.kind in _KINDS, f"{name}: {values.dtype}"
            place = _reserve(file, name, values.shape, values.dtype)
            if place is not None:
                places[name] = place
        place = _reserve(file, VERSIONS, (versions.n, versions.n_parameters), np.dtype("<f4"))
        places[VERSIONS] = place or 0
        file.flush()
        end = file.id.get_filesize()
    layout.end = max(layout.end, end)
    return layout, places


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int | None:
    """Makes a dataset, and says where in the file its values go; None if it has none."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(dtype.newbyteorder("<"), logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, plist, links)
    place: int | None = dataset.get_offset()
    return place


# ------------------------------------------------------------------------------------------------- reading


class Checkpoint:
    """A whole checkpoint: its snapshot, and its versions, which are read one at a time."""

    def __init__(self, path: Path) -> None:
        """Reads all but the versions. `RecordError` if the file is not whole, or none of fedsim's."""
        self.path = path
        _check_digest(path)
        n_bytes = path.stat().st_size
        self.snapshot: Snapshot = guard.reading(path, lambda file: _read_arrays(file, n_bytes))

    def versions(self, n_parameters: int) -> Iterator[Float32]:
        """The versions, float32 (P,), in the order in which they were written."""
        n = int(guard.reading(self.path, lambda file: _versions_in(file, n_parameters).shape[0]))
        for index in range(n):
            yield self._version(index, n_parameters)

    def _version(self, index: int, n_parameters: int) -> Float32:
        return guard.reading(self.path, lambda file: np.asarray(_versions_in(file, n_parameters)[index]))


def newest(folder: Path, accept: Callable[[Checkpoint], bool]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and accepted, and a line for each newer one that is not."""
    problems: list[str] = []
    for number in reversed(numbers(folder)):
        try:
            found = Checkpoint(folder / name_of(number))
            if accept(found):
                return found, problems
            problems.append(f"{found.path}: belongs to rows that the record does not have")
        except RecordError as error:
            problems.append(str(error))
    return None, problems


def _check_digest(path: Path) -> None:
    """Refuses a file whose bytes are not those that were written."""
    try:
        descriptor = opened(path)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    try:
        state = os.fstat(descriptor)
        end = state.st_size - _TRAILER_BYTES
        trailer = os.pread(descriptor, _TRAILER_BYTES, max(0, end))
        if end < 0 or not trailer.startswith(_MAGIC):
            raise RecordError(f"{path}: no whole checkpoint: it was cut off, or is something else")
        if state.st_size > _DENSEST * (state.st_blocks + 8) * 512:
            raise RecordError(f"{path}: no checkpoint: a file of {state.st_size} bytes that are not there")
        if _trailer(descriptor, end) != trailer:
            raise RecordError(f"{path}: no whole checkpoint: its bytes were altered (SHA-256)")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _read_arrays(file: h5py.File, n_bytes: int) -> Snapshot:
    """Every array but the versions; together no more than the bytes of the file, whatever it says that they share."""
    if guard.attributes_of(file).get("checkpoint_format") != FORMAT:
        raise RecordError(f"no checkpoint of format {FORMAT}")
    found: Snapshot = {}
    for name in _names(file, {_address(file)}):
        if name != VERSIONS:
            dataset = _stored(file, name)
            n_bytes -= int(dataset.size) * int(dataset.dtype.itemsize)
            if n_bytes < 0:
                raise RecordError(f"{name:.80}: more values than the file has bytes")
            found[name] = np.asarray(dataset[()])
    return found


def _names(group: h5py.Group, seen: set[int], prefix: str = "", depth: int = 0) -> list[str]:
    """The paths of all datasets below a group. `seen` are the objects met so far, whose number is bounded.

    An object of two names is refused: a few such links can make as many paths, or as much memory, as one likes.
    """
    if depth > 32 or len(group) > MAX_DATASETS:
        raise RecordError(f"{prefix:.80}: more groups than a checkpoint has")
    names: list[str] = []
    for key in group:
        member = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
        if member is not None:
            if _address(member) in seen:
                raise RecordError(f"{prefix}{key}"[:80] + ": a second name of what has one already")
            seen.add(_address(member))
        if len(seen) > MAX_DATASETS:
            raise RecordError("more arrays and groups than a checkpoint has")
        is_group = isinstance(member, h5py.Group)
        names += _names(member, seen, f"{prefix}{key}/", depth + 1) if is_group else [prefix + key]
    return names


def _address(member: h5py.Group | h5py.Dataset) -> int:
    """Where in the file an object lies, under whichever name it was found."""
    return int(h5py.h5o.get_info(member.id).addr)


def _stored(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values are all in the file."""
    dataset = guard.dataset_of(file, name)
    if dataset.dtype.kind not in _KINDS or dataset.dtype.itemsize > guard.MAX_ATTRIBUTE_BYTES or dataset.shape is None:
        raise RecordError(f"{name:.80}: {dataset.dtype}, which no checkpoint has")
    if dataset.chunks is not None or dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise RecordError(f"{name:.80}: {dataset.shape} values are said, but not stored")
    return dataset


def _versions_in(file: h5py.File, n_parameters: int) -> h5py.Dataset:
    dataset = _stored(file, VERSIONS)
    if dataset.ndim != 2 or dataset.shape[1] != n_parameters or dataset.dtype != np.dtype("<f4"):
        raise RecordError(f"versions of shape {dataset.shape}; this run's have {n_parameters} parameters")
    return dataset
