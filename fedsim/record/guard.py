"""Reads HDF5 that nobody vouches for: every size, type and place is looked at before a byte is allocated or followed.

A file can claim anything: columns of 10^15 rows, chunks of gigabytes, links and storage in other files, filters that
load code. What a record of fedsim never has is refused; what it has is bounded by the bytes that are really there. All
errors of HDF5 become one `RecordError` of one line.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from fedsim.errors import RecordError
from fedsim.record.provenance import Attribute
from fedsim.record.schema import Column
from fedsim.record.settled import SettledFile

Result = TypeVar("Result")

MAX_CHUNK_BYTES = 4 * 2**20
MAX_TEXT_BYTES = 64 * 2**20
MAX_ATTRIBUTES = 512
MAX_ATTRIBUTE_BYTES = 65536
_DEFLATE_RATIO = 1040  # the most that deflate can compress, 1032, and room for its header
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
PAUSES_S = (0.01, 0.05)  # between tries to read a live file
_ERRORS = (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError, MemoryError, AttributeError)


def reading(path: Path, read: Callable[[h5py.File], Result]) -> Result:
    """What `read` makes of the file, which may be finished, live or killed.

    A reader can meet a live file's writer in the middle of a step: it then tries again, a few times. Whatever goes
    wrong for good is a `RecordError` that names the file.
    """
    for pause_s in PAUSES_S:
        with contextlib.suppress(RecordError, *_ERRORS), _opened(path) as file:
            return read(file)
        if not path.exists():
            break
        time.sleep(pause_s)
    try:
        with _opened(path) as file:
            return read(file)
    except (RecordError, *_ERRORS) as error:
        raise _explained(path, error) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with SettledFile(path) as settled, h5py.File(settled, "r") as file:
        yield file


def _explained(path: Path, error: BaseException) -> RecordError:
    if isinstance(error, RecordError):
        return RecordError(f"{path}: {error}")
    if isinstance(error, FileNotFoundError):
        return RecordError(f"{path}: no such file")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(reason.split())[:300]
    return RecordError(f"{path}: not a readable record: {text or type(error).__name__}")


def group_of(file: h5py.Group, name: str) -> h5py.Group:
    """The subgroup of that name."""
    found = _member(file, name)
    if not isinstance(found, h5py.Group):
        raise RecordError(f"{name:.80} is not a group")
    return found


def dataset_of(file: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset at a path such as `tasks/client`: stored in this very file, no filters but gzip and shuffle."""
    *groups, name = path.split("/")
    place = file
    for group in groups:
        place = group_of(place, group)
    found = _member(place, name)
    if not isinstance(found, h5py.Dataset):
        raise RecordError(f"{path:.80} is not a dataset")
    _check_storage(found, path)
    return found


def _member(group: h5py.Group, name: str) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise RecordError(f"{name:.80} is missing, or a link to elsewhere")
    return group[name]


def _check_storage(dataset: h5py.Dataset, path: str) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise RecordError(f"{path}: virtual storage; allowed: in the file itself")
    if plist.get_external_count():
        raise RecordError(f"{path}: storage in another file; allowed: in the file itself")
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if len(filters) > len(_FILTERS) or not set(filters) <= _FILTERS:
        raise RecordError(f"{path}: filters {filters}; allowed: gzip, shuffle, fletcher32")
    if dataset.dtype.hasobject:
        raise RecordError(f"{path}: values of variable length; allowed: fixed")
    if dataset.chunks is not None and _chunk_bytes(dataset) > MAX_CHUNK_BYTES:
        raise RecordError(f"{path}: chunks of {_chunk_bytes(dataset)} bytes; allowed: {MAX_CHUNK_BYTES}")


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    n_values = 1
    for length in dataset.chunks:
        n_values *= int(length)
    return n_values * int(dataset.dtype.itemsize)


def n_rows(dataset: h5py.Dataset, column: Column, path: str, file_bytes: int) -> int:
    """Rows of a column that are really in the file: whole where the file is whole, fewer after a crash.

    `RecordError` for another type or shape, or for more than the file can hold.
    """
    if dataset.ndim != 1 or dataset.dtype != np.dtype(column.dtype):
        raise RecordError(f"{path}: {dataset.dtype} of shape {dataset.shape}, not one dimension of {column.dtype}")
    if dataset.chunks is None:
        raise RecordError(f"{path}: not chunked")
    stored = int(dataset.id.get_storage_size())
    if stored > file_bytes:
        raise RecordError(f"{path}: {stored} bytes of storage in a file of {file_bytes}")
    return int(min(dataset.shape[0], stored * expansion(dataset) // dataset.dtype.itemsize))


def expansion(dataset: h5py.Dataset) -> int:
    """How many bytes a stored byte can become at most."""
    return _DEFLATE_RATIO if dataset.id.get_create_plist().get_nfilters() else 1


def read_scalar(file: h5py.Group, path: str, dtype: str) -> Any:
    """A scalar dataset of that dtype, as a numpy scalar."""
    dataset = dataset_of(file, path)
    if dataset.shape != () or dataset.dtype != np.dtype(dtype):
        raise RecordError(f"{path}: {dataset.dtype} of shape {dataset.shape}, not one {dtype}")
    return dataset[()]


def read_text(file: h5py.Group, path: str) -> str:
    """A scalar dataset of fixed-length text."""
    dataset = dataset_of(file, path)
    if dataset.shape != () or dataset.dtype.kind != "S":
        raise RecordError(f"{path}: {dataset.dtype} of shape {dataset.shape}, not one text")
    size = int(dataset.dtype.itemsize)
    if size > MAX_TEXT_BYTES or size > dataset.id.get_storage_size():
        raise RecordError(f"{path}: a text of {size} bytes; allowed: {MAX_TEXT_BYTES}, and what is stored")
    return bytes(dataset[()]).decode("utf-8", "replace")


def read_json(file: h5py.Group, path: str, kind: type[Any]) -> Any:
    """A text that holds JSON, a `list` or `dict` as asked for."""
    return parsed(read_text(file, path), path, kind)


def parsed(text: str, where: str, kind: type[Any]) -> Any:
    """JSON text as the `list` or `dict` that is asked for."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON: {str(error)[:100]}") from error
    if not isinstance(value, kind):
        raise RecordError(f"{where}: JSON {type(value).__name__}, not {kind.__name__}")
    return value


def attributes_of(place: h5py.Group | h5py.Dataset) -> dict[str, Attribute]:
    """The attributes that are single numbers or fixed-length texts; others, none of fedsim's, are left out."""
    count = h5py.h5a.get_num_attrs(place.id)
    if count > MAX_ATTRIBUTES:
        raise RecordError(f"{count} attributes; allowed: {MAX_ATTRIBUTES}")
    found: dict[str, Attribute] = {}
    for index in range(count):
        attribute = h5py.h5a.open(place.id, index=index)
        if _is_plain(attribute):
            name = attribute.name.decode("utf-8", "replace")
            value = place.attrs[attribute.name]
            found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item()
    return found


def _is_plain(attribute: Any) -> bool:
    dtype = attribute.dtype
    return (
        attribute.shape == ()
        and dtype.kind in "biufS"
        and not dtype.hasobject
        and dtype.itemsize <= min(MAX_ATTRIBUTE_BYTES, max(8, attribute.get_storage_size()))
    )
