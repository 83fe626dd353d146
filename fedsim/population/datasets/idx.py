"""IDX files (MNIST, Fashion-MNIST, EMNIST, KMNIST), plain or compressed by gzip.

Format (LeCun, Cortes and Burges, the MNIST page): two zero bytes, a type code, the number of dimensions, each
dimension as a big-endian uint32, then the values, big-endian, in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedsim.config import IdxData, PartitionConfig
from fedsim.errors import DataError
from fedsim.population import nodecache
from fedsim.population.datasets import checks
from fedsim.population.partition import split
from fedsim.population.population import ArrayData, ArrayPopulation, Samples

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class IdxHeader:
    """What an IDX file declares: the type of its values, its shape, and where the values begin."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size of header and values, uncompressed."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def idx_population(config: IdxData, partition: PartitionConfig, seed: int, base_dir: Path) -> ArrayPopulation:
    """The training images dealt to clients by `partition`; the test images are the central test set.

    Headers, sizes and labels are checked here. Images of bytes are read when first a shard is cut.
    """
    keys = ("images", "labels", "test_images", "test_labels")
    paths = [checks.data_file(base_dir, getattr(config, key), f"data.{key}") for key in keys]
    train = _samples(paths[0], paths[1], config.classes)
    n_classes = checks.classes_of(train.labels_N, config.classes)
    test = _samples(paths[2], paths[3], n_classes)
    checks.check_same_shape(test.sample_shape, str(paths[2]), train.sample_shape, str(paths[0]))
    data = ArrayData(train, test, n_classes, lambda: checks.files_sha256(paths))
    return ArrayPopulation(data, split(train.labels_N, partition, seed))


def read_idx(path: Path) -> NDArray[np.generic]:
    """The array in an IDX file, in the byte order of the file.

    An uncompressed file is mapped, not read. Raises DataError for a file that is not what its header declares.
    """
    header = read_header(path)
    if not _is_gzip(path):
        return np.memmap(path, dtype=header.dtype, mode="r", offset=header.offset, shape=header.shape)
    values = np.empty(header.shape, dtype=header.dtype)
    buffer = values.reshape(-1).view(np.uint8).data
    try:
        with gzip.open(path) as stream:
            stream.seek(header.offset)
            # a BufferedReader fills the buffer unless the stream ends before
            n_read = cast(BinaryIO, stream).readinto(buffer)  # type: ignore[attr-defined]
            rest = stream.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from None
    if n_read != len(buffer) or rest:
        got = "more" if rest else header.offset + n_read
        raise DataError(f"{path}: header declares {header.n_bytes} bytes, shape {header.shape}; the file holds {got}")
    return values


def read_header(path: Path) -> IdxHeader:
    """The header of an IDX file, once its shape fits the size of the file.

    The size of a compressed file only bounds what it can hold: `read_idx` finds out how much that is.
    """
    try:
        compressed, size = _is_gzip(path), path.stat().st_size
        with gzip.open(path) if compressed else path.open("rb") as stream:
            header = _parse_header(cast(BinaryIO, stream), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if compressed:
        if header.n_bytes > checks.MAX_DEFLATE_RATIO * size:
            raise DataError(
                f"{path}: header declares {header.n_bytes} bytes for shape {header.shape}, "
                f"more than {size} bytes of gzip can hold ({checks.MAX_DEFLATE_RATIO * size})"
            )
    elif header.n_bytes != size:
        raise DataError(f"{path}: header declares {header.n_bytes} bytes, shape {header.shape}; the file holds {size}")
    return header


def _parse_header(stream: BinaryIO, path: Path) -> IdxHeader:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        got = magic.hex(" ") or "nothing"
        raise DataError(f"{path}: not an IDX file: it begins with {got}, allowed: 00 00, then 08 to 0e")
    n_dimensions = magic[3]
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise DataError(f"{path}: IDX array of {n_dimensions} dimensions, allowed: 1 to {_MAX_DIMENSIONS}")
    dimensions = stream.read(4 * n_dimensions)
    if len(dimensions) < 4 * n_dimensions:
        raise DataError(f"{path}: IDX header ends after {4 + len(dimensions)} bytes, allowed: {4 + 4 * n_dimensions}")
    shape = struct.unpack(f">{n_dimensions}I", dimensions)
    return IdxHeader(np.dtype(_TYPES[magic[2]]), shape, 4 + 4 * n_dimensions)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


def _samples(images: Path, labels: Path, n_classes: int | None) -> Samples:
    y_N = checks.checked_labels(read_idx(labels), str(labels), n_classes)
    header = read_header(images)
    if len(header.shape) < 2:
        raise DataError(f"{images}: shape is {header.shape}, allowed: (samples, height, width) or the like")
    checks.check_lengths(header.shape[0], str(images), y_N.size, str(labels))
    return Samples(y_N, checks.sample_shape(header.shape[1:]), _loader(images, header))


def _loader(images: Path, header: IdxHeader) -> partial[NDArray[np.generic]]:
    if header.dtype == np.uint8 and not (_is_gzip(images) and _gzip_size(images) != header.n_bytes % 2**32):
        return partial(_read_arranged, images)
    # floats may hold NaN, and a gzip trailer that disagrees may be that of a damaged file: both are looked at now
    values = _read_arranged(images)
    return partial(_same, values)


def _read_arranged(images: Path) -> NDArray[np.generic]:
    header = read_header(images)
    read = partial(read_idx, images)
    values = nodecache.shared(images, "", header.n_bytes, read) if _is_gzip(images) else read()
    return checks.arranged(checks.checked_inputs(values, str(images)))


def _same(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values


def _gzip_size(path: Path) -> int:
    """The uncompressed size that a gzip file's trailer states, modulo 2**32 (of its last part if it has several)."""
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(4), "little")
