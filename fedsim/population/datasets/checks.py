"""What every data set that comes from files is held to, and how a file's array becomes a model's input.

`where` begins each message: the file, then the part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import DataError, nearest
from fedsim.population.nodecache import file_sha256
from fedsim.types import Int64

MAX_CLASSES = 100_000
MAX_SHARD_BYTES = 2**34
MAX_DEFLATE_RATIO = 1032  # the most that deflate can expand; bounds what a compressed file may declare
_CHANNELS = (1, 3, 4)
_BLOCK_BYTES = 2**24
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def data_file(base_dir: Path, name: str, key: str) -> Path:
    """The path of a data file named under `key` in the configuration. Raises DataError unless it is a readable file."""
    path = base_dir / name
    if not path.exists():
        raise DataError(f"{key}: file {path} does not exist")
    if not path.is_file():
        raise DataError(f"{key}: {path} is not a file")
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise DataError(f"{key}: cannot read {path}: {error.strerror}") from None


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 of one file's bytes, or of the digests of several in order; hexadecimal."""
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def checked_labels(values: NDArray[np.generic], where: str, n_classes: int | None) -> Int64:
    """Labels as int64, shape (N,), from numbers of shape (N,) or (N, 1).

    Raises DataError for no labels, for several a sample, and for one that is not a whole number in 0 .. n_classes - 1.
    """
    if values.size == 0:
        raise DataError(f"{where}: no samples")
    if values.shape not in ((values.size,), (values.size, 1)):
        raise DataError(f"{where}: shape is {values.shape}, allowed: one label a sample, (N,) or (N, 1)")
    if values.dtype.kind not in "iufb":
        raise DataError(f"{where}: type is {values.dtype}, allowed: whole numbers")
    flat: NDArray[Any] = values.reshape(-1)
    limit = MAX_CLASSES if n_classes is None else n_classes
    with np.errstate(invalid="ignore"):
        good = (flat >= 0) & (flat < limit) & (flat == np.floor(flat))
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"{where}: label of sample {row} is {flat[row]}, allowed: whole numbers 0 to {limit - 1}")
    return flat.astype(np.int64)


def classes_of(labels_N: Int64, n_classes: int | None) -> int:
    """The number of classes: the configured one, else that of the largest label, at least two."""
    return n_classes if n_classes is not None else max(2, int(labels_N.max()) + 1)


def checked_inputs(values: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    """`values`, shape (N, ...), if they are usable: uint8, or numbers that float32 can hold."""
    check_numeric(values.dtype, where)
    if values.dtype.kind != "f" or not values.ndim:
        return values
    rows = max(1, _BLOCK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, values.shape[0], rows):  # in blocks: values may be mapped from a file, larger than memory
        with np.errstate(invalid="ignore"):
            good = np.abs(values[start : start + rows]) <= _FLOAT32_MAX
        if not good.all():
            first, *rest = (int(i) for i in np.argwhere(~good)[0])
            place = (start + first, *rest)
            raise DataError(f"{where}: value at {place} is {values[place]}, allowed: finite numbers")
    return values


def hint(got: str, names: Iterable[str]) -> str:
    """What to say of a name that is not among `names`, which may be none."""
    known = list(names)
    return nearest(got, known) if known else "there is none"


def check_numeric(dtype: np.dtype[np.generic], where: str) -> None:
    """Raises DataError for a type that holds no real numbers."""
    if dtype.kind not in "iufb":
        raise DataError(f"{where}: type is {dtype}, allowed: numbers")


def check_lengths(n_inputs: int, inputs: str, n_labels: int, labels: str) -> None:
    """Raises DataError unless there are as many inputs as labels."""
    if n_inputs != n_labels:
        raise DataError(f"{inputs} has {n_inputs} samples, {labels} has {n_labels}; they must be equal")


def check_same_shape(test_shape: tuple[int, ...], test: str, shape: tuple[int, ...], train: str) -> None:
    """Raises DataError unless a test sample has the shape of a training sample."""
    if test_shape != shape:
        raise DataError(f"{test}: a sample has shape {test_shape}, one of {train} has {shape}; they must be equal")


def check_bytes(n_bytes: int, what: str) -> None:
    """Raises DataError for an array that no shard should need."""
    if n_bytes > MAX_SHARD_BYTES:
        raise DataError(f"{what} would need {n_bytes} bytes, allowed: up to {MAX_SHARD_BYTES}")


def sample_shape(stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a model gets a sample that is stored in shape `stored`.

    (H, W) gets a channel in front, (H, W, C) with 1, 3 or 4 channels has them moved to the front; a vector, and
    anything that has its channels in front, stays as it is.

    >>> sample_shape((28, 28)), sample_shape((32, 32, 3)), sample_shape((60,))
    ((1, 28, 28), (3, 32, 32), (60,))
    """
    if len(stored) == 2:
        return (1, *stored)
    return (stored[2], stored[0], stored[1]) if _channels_last(stored) else stored


def arranged(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """A view of `values`, shape (N, *stored), in shape (N, *sample_shape(stored))."""
    stored = values.shape[1:]
    if len(stored) == 2:
        return values[:, None]
    return np.moveaxis(values, 3, 1) if _channels_last(stored) else values


def _channels_last(stored: tuple[int, ...]) -> bool:
    return len(stored) == 3 and stored[2] in _CHANNELS and stored[0] not in _CHANNELS
