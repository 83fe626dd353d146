"""HDF5 with a group a client, the form of TensorFlow Federated: `examples/<client>/<column>`.

Each group has a dataset of inputs, (N, ...), and one of labels, (N,). Samples are read when a client's shard is asked
for; the structure of every client is checked at the start, and the labels too unless `classes` says how many there are.

A file can claim anything, and HDF5 follows whatever it claims: so links, storage in other files, filters that load
code, chunks without measure and values that are declared but not stored are refused before they are followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Hdf5Data
from fedsim.errors import DataError
from fedsim.population.datasets import checks
from fedsim.population.population import Population, inputs_of
from fedsim.types import Int64, Shard

if TYPE_CHECKING:
    import h5py

_ROOT = "examples"
_ERRORS = (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError, MemoryError, AttributeError)
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scale-offset; h5py's own lzf
_MAX_CHUNK_BYTES = 2**28


class ClientFile:
    """One HDF5 file of clients: their names, in the order that h5py lists them, and their samples."""

    def __init__(self, path: Path, x: str, y: str) -> None:
        import h5py

        self.path, self._x, self._y = path, x, y
        with _reading(path):
            self._file = _opened(path)
            root = _member(self._file, _ROOT, str(path))
            if not isinstance(root, h5py.Group):
                raise DataError(f"{path}: no group '{_ROOT}'; {checks.hint(_ROOT, self._file)}")
            self._clients = root
            self.names: tuple[str, ...] = tuple(root)
        self._file_bytes = path.stat().st_size
        self._shape: tuple[int, ...] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._clients

    def columns(self, name: str) -> tuple[h5py.Dataset, h5py.Dataset]:
        """Inputs and labels of a client, checked for presence, type, shape and size, not read."""
        import h5py

        where = f"{self.path}: {_ROOT}/{name}"
        with _reading(self.path):
            group = _member(self._clients, name, where)
            if not isinstance(group, h5py.Group):
                raise DataError(f"{where}: not a group")
            x, y = (self._column(group, column, where) for column in (self._x, self._y))
            checks.check_lengths(x.shape[0], f"{where}/{self._x}", y.shape[0], self._y)
            if x.shape[0] == 0:
                raise DataError(f"{where}: no samples")
            if self._shape is None:
                self._shape = x.shape[1:]
            checks.check_same_shape(x.shape[1:], f"{where}/{self._x}", self._shape, "the clients before it")
        return x, y

    def labels(self, y: h5py.Dataset, n_classes: int | None) -> Int64:
        """The values of a dataset of labels, int64 (N,)."""
        return checks.checked_labels(self._read(y), self._where(y), n_classes)

    def shard(self, name: str, n_classes: int) -> Shard:
        """All samples of a client."""
        x, y = self.columns(name)
        values = checks.checked_inputs(self._read(x), self._where(x))
        return Shard(inputs_of(checks.arranged(values)), self.labels(y, n_classes))

    def _column(self, group: h5py.Group, column: str, where: str) -> h5py.Dataset:
        import h5py

        dataset = _member(group, column, where)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{where}: no dataset '{column}'; {checks.hint(column, group)}")
        where = f"{where}/{column}"
        checks.check_numeric(dataset.dtype, where)
        if not dataset.shape:
            raise DataError(f"{where}: a single value, allowed: one a sample")
        _check_storage(dataset, where, self._file_bytes)
        checks.check_bytes(4 * dataset.size, where)
        return dataset

    def _where(self, dataset: h5py.Dataset) -> str:
        return f"{self.path}: {dataset.name.lstrip('/')}"

    def _read(self, dataset: h5py.Dataset) -> NDArray[Any]:
        with _reading(self.path):
            values: NDArray[Any] = dataset[()]
            return values


class Hdf5Population(Population):
    """The clients of an HDF5 file; those that the test file has, too, have a test set of their own.

    Clients that only the test file has take no part.
    """

    def __init__(self, config: Hdf5Data, base_dir: Path) -> None:
        path = checks.data_file(base_dir, config.path, "data.path")
        self._train = ClientFile(path, config.x, config.y)
        self._names = self._train.names
        self.n_clients = len(self._names)
        if not self.n_clients:
            raise DataError(f"{path}: no clients under '{_ROOT}'")
        self._counts_C, largest = _scan(self._train, self._names, config.classes)
        stored = self._train.columns(self._names[0])[0].shape[1:]
        self.sample_shape = checks.sample_shape(stored)
        self.n_classes = checks.classes_of(np.array([largest]), config.classes)
        self._number = {name: number for number, name in enumerate(self._names)}
        self._test = self._open_test(config, base_dir, stored)
        self._tested = self._test_numbers()

    def n_samples(self, clients: Int64) -> Int64:
        result: Int64 = self._counts_C[clients]
        return result

    def shard(self, client: int) -> Shard:
        return self._train.shard(self.client_name(client), self.n_classes)

    def client_name(self, client: int) -> str:
        return self._names[self._checked(client)]

    def client_named(self, name: str) -> int:
        if name not in self._number:
            raise DataError(f"{self._train.path}: no client '{name}'")
        return self._number[name]

    def test_clients(self) -> Sequence[int]:
        return self._tested

    def test_shard(self, client: int) -> Shard:
        name = self.client_name(client)
        if self._test is None or name not in self._test:
            return super().test_shard(client)
        return self._test.shard(name, self.n_classes)

    def data_sha256(self) -> str:
        return checks.files_sha256([self._train.path] + ([] if self._test is None else [self._test.path]))

    def _open_test(self, config: Hdf5Data, base_dir: Path, stored: tuple[int, ...]) -> ClientFile | None:
        if config.test_path is None:
            return None
        test = ClientFile(checks.data_file(base_dir, config.test_path, "data.test_path"), config.x, config.y)
        shared = [name for name in test.names if name in self._number]
        if not shared:
            raise DataError(f"data.test_path: {test.path} has no client that {self._train.path} has")
        _scan(test, shared, self.n_classes if config.classes is None else config.classes)
        checks.check_same_shape(test.columns(shared[0])[0].shape[1:], str(test.path), stored, str(self._train.path))
        return test

    def _test_numbers(self) -> tuple[int, ...]:
        names = () if self._test is None else self._test.names
        return tuple(sorted(self._number[name] for name in names if name in self._number))


def _scan(clients: ClientFile, names: Sequence[str], n_classes: int | None) -> tuple[Int64, int]:
    """Samples of each client, int64 (C,), and the largest label, read only where classes are to be counted."""
    counts_C = np.empty(len(names), dtype=np.int64)
    largest = 0
    for number, name in enumerate(names):
        _, y = clients.columns(name)
        counts_C[number] = y.shape[0]
        if n_classes is None:
            largest = max(largest, int(clients.labels(y, None).max()))
    return counts_C, largest


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what HDF5 says of a damaged file into one line."""
    try:
        yield
    except _ERRORS as error:
        raise DataError(f"{path}: not a readable HDF5 file: {_one_line(error)}") from None


def _opened(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        # a file system without locks; a lock that another process holds is a BlockingIOError
        if "lock" not in str(error) or isinstance(error, BlockingIOError):
            raise
        return h5py.File(path, "r", locking=False)


def _member(group: h5py.Group, name: str, where: str) -> Any:
    """What a group has under a name, None if nothing: in this very file."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None or isinstance(link, h5py.HardLink):
        return group.get(name)
    raise DataError(f"{where}: {name:.80} is a link to elsewhere, allowed: what is stored in the file itself")


def _check_storage(dataset: h5py.Dataset, where: str, file_bytes: int) -> None:
    """Refuses values that lie in other files, need foreign code, or are declared without being there."""
    import h5py

    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(f"{where}: stored in another file, allowed: in the file itself")
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if foreign := sorted(filters - _FILTERS):
        raise DataError(f"{where}: filter {foreign[0]}, allowed: those of HDF5 itself, and lzf")
    chunk_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise DataError(f"{where}: chunks of {chunk_bytes} bytes, allowed: {_MAX_CHUNK_BYTES}")
    stored = min(dataset.id.get_storage_size(), file_bytes)
    if dataset.nbytes > stored * (checks.MAX_DEFLATE_RATIO if filters else 1):
        raise DataError(f"{where}: declares {dataset.nbytes} bytes, more than the file can hold")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
