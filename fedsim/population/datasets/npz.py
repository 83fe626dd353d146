"""NPZ files in MedMNIST's form: train_images, train_labels, test_images, test_labels.

Reference: Yang et al., "MedMNIST v2", Scientific Data 10, 41 (2023). Arrays named val_* are not used. Nothing is
unpickled, and an array's declared size is held against the archive's directory before memory is taken for it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedsim.config import NpzData, PartitionConfig
from fedsim.errors import DataError
from fedsim.population import nodecache
from fedsim.population.datasets import checks
from fedsim.population.partition import split
from fedsim.population.population import ArrayData, ArrayPopulation, Samples

_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)


def npz_population(config: NpzData, partition: PartitionConfig, seed: int, base_dir: Path) -> ArrayPopulation:
    """The training images dealt to clients by `partition`; the test images are the central test set.

    Headers and labels are checked here. Images of bytes are read when first a shard is cut.
    """
    path = checks.data_file(base_dir, config.path, "data.path")
    train = _samples(path, "train", config.classes)
    n_classes = checks.classes_of(train.labels_N, config.classes)
    test = _samples(path, "test", n_classes)
    checks.check_same_shape(test.sample_shape, f"{path}: test_images", train.sample_shape, "train_images")
    data = ArrayData(train, test, n_classes, lambda: checks.files_sha256([path]))
    return ArrayPopulation(data, split(train.labels_N, partition, seed))


def read_array(path: Path, name: str) -> NDArray[np.generic]:
    """The array `name` of an NPZ file. Raises DataError for one that is missing, damaged or not plain numbers."""
    read_header(path, name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[np.generic] = archive[name]
    except _DAMAGED as error:
        raise DataError(f"{path}: {name}: cannot be read: {error}") from None
    return array


def read_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of the array `name`, once they fit the size that the archive can hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = _member(archive, path, name)
            with archive.open(info) as stream:
                shape, dtype = _parse_header(stream)
                header_bytes = stream.tell()
    except _DAMAGED as error:
        raise DataError(f"{path}: {name}: not a readable NPZ file: {error}") from None
    checks.check_numeric(dtype, f"{path}: {name}")
    declared = header_bytes + math.prod(shape) * dtype.itemsize
    if declared != info.file_size:
        got = f"{declared} bytes, shape {shape}"
        raise DataError(f"{path}: {name}: header declares {got}; the archive holds {info.file_size}")
    return shape, dtype


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo:
    """The directory entry of the array, if what it states is possible."""
    names = [entry.removesuffix(".npy") for entry in archive.namelist()]
    if name not in names:
        raise DataError(f"{path}: no array '{name}'; {checks.hint(name, names)}")
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name}: compression method {info.compress_type}, allowed: none or deflate")
    size = path.stat().st_size
    if info.compress_size > size or info.file_size > checks.MAX_DEFLATE_RATIO * info.compress_size + 64:
        raise DataError(f"{path}: {name}: states {info.file_size} bytes, more than a file of {size} bytes can hold")
    return info


def _parse_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"NPY version {version}, allowed: 1.0 and 2.0")
    return shape, dtype


def _samples(path: Path, part: str, n_classes: int | None) -> Samples:
    images, labels = f"{part}_images", f"{part}_labels"
    shape, dtype = read_header(path, images)
    if len(shape) < 2:
        raise DataError(f"{path}: {images}: shape is {shape}, allowed: (samples, height, width) or the like")
    y_N = checks.checked_labels(read_array(path, labels), f"{path}: {labels}", n_classes)
    checks.check_lengths(shape[0], f"{path}: {images}", y_N.size, labels)
    load = partial(_read_images, path, images)
    if dtype != np.uint8:  # floats may hold NaN: they are looked at now
        values = load()
        return Samples(y_N, checks.sample_shape(shape[1:]), lambda: values)
    return Samples(y_N, checks.sample_shape(shape[1:]), load)


def _read_images(path: Path, name: str) -> NDArray[np.generic]:
    shape, dtype = read_header(path, name)
    values = nodecache.shared(path, name, math.prod(shape) * dtype.itemsize, partial(read_array, path, name))
    return checks.arranged(checks.checked_inputs(values, f"{path}: {name}"))
