"""HDF5 with a group a client, the form of TensorFlow Federated: `examples/<client>/<column>`.

Each group has a dataset of inputs, (N, ...), and one of labels, (N,). Samples are read when a client's shard is asked
for; the structure of every client is checked at the start, and the labels too unless `classes` says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class ClientFile:
    """One HDF5 file of clients: their names, in the order that h5py lists them, and their samples."""

    def __init__(self, path: Path, x: str, y: str) -> None:
        import h5py

        self.path, self._x, self._y = path, x, y
        self._file = _opened(path)
        root = self._file.get(_ROOT)
        if not isinstance(root, h5py.Group):
            raise DataError(f"{path}: no group '{_ROOT}'; {checks.hint(_ROOT, self._file)}")
        self._clients = root
        self.names: tuple[str, ...] = tuple(root)
        self._limit = checks.MAX_DEFLATE_RATIO * path.stat().st_size
        self._shape: tuple[int, ...] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._clients

    def columns(self, name: str) -> tuple[h5py.Dataset, h5py.Dataset]:
        """Inputs and labels of a client, checked for presence, type, shape and size, not read."""
        import h5py

        where = f"{self.path}: {_ROOT}/{name}"
        group = self._clients.get(name)
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

        dataset = group.get(column)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{where}: no dataset '{column}'; {checks.hint(column, group)}")
        checks.check_numeric(dataset.dtype, f"{where}/{column}")
        if not dataset.shape:
            raise DataError(f"{where}/{column}: a single value, allowed: one a sample")
        # a dataset may declare more than is stored of it
        if dataset.nbytes > self._limit:
            raise DataError(f"{where}/{column}: declares {dataset.nbytes} bytes, more than the file can hold")
        checks.check_bytes(4 * dataset.size, f"{where}/{column}")
        return dataset

    def _where(self, dataset: h5py.Dataset) -> str:
        return f"{self.path}: {dataset.name.lstrip('/')}"

    def _read(self, dataset: h5py.Dataset) -> NDArray[Any]:
        try:
            values: NDArray[Any] = dataset[()]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self._where(dataset)}: cannot be read: {_one_line(error)}") from None
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


def _opened(path: Path) -> h5py.File:
    import h5py

    try:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            # a file system without locks; a lock that another process holds is a BlockingIOError
            if "lock" not in str(error) or isinstance(error, BlockingIOError):
                raise
            return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
