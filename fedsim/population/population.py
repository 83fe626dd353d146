"""Who takes part: the population's interface, and the populations whose samples lie in arrays.

Nothing is made for a client until it is asked for. Shapes: `N` samples, `C` clients.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import DataError, nearest
from fedsim.population.laid import Laid
from fedsim.population.partition import Partition
from fedsim.types import Float32, Int64, Shard, Targets

_CLIENTS_AT_ONCE = 2**20


class Population(ABC):
    """All clients and their data, by client number 0 .. n_clients - 1.

    A shard is made anew at each call, so the caller owns it; whoever needs one often keeps it. Equal
    configuration, seed and files give equal bits on any process, in any order of calls.
    """

    n_clients: int
    sample_shape: tuple[int, ...]  # of one x
    n_classes: int  # for values, how many a sample has; 1 for survival
    targets: Targets = "classes"

    @abstractmethod
    def n_samples(self, clients: Int64) -> Int64:
        """Training samples of each of `clients`: the same shape, int64. Reads and makes no sample."""

    def count_samples(self, members: Int64 | None) -> int:
        """Training samples of these clients, None: of all, some at a time, as there may be billions of them."""
        if members is not None:
            return int(self.n_samples(members).sum())
        starts = range(0, self.n_clients, _CLIENTS_AT_ONCE)
        ranges = (np.arange(start, min(start + _CLIENTS_AT_ONCE, self.n_clients)) for start in starts)
        return sum(int(self.n_samples(clients).sum()) for clients in ranges)

    @abstractmethod
    def shard(self, client: int) -> Shard:
        """Training data of one client: x float32 (N, *sample_shape), C-contiguous; y as `Shard` says of `targets`.

        Raises DataError for a file whose values are not usable.
        """

    @abstractmethod
    def data_sha256(self) -> str:
        """SHA-256, hexadecimal, of the files read, or of the recipe where the data are synthetic."""

    def client_name(self, client: int) -> str:
        """The client's name in the data set, or its number in digits."""
        return str(self._checked(client))

    def client_named(self, name: str) -> int:
        """The number of the client of that name. Raises DataError for a name that no client has."""
        if len(name) <= 20 and name.isdecimal() and name == str(int(name)) and int(name) < self.n_clients:
            return int(name)
        raise DataError(f"no client '{name}'; allowed: 0 to {self.n_clients - 1}")

    def test_clients(self) -> Sequence[int]:
        """Ascending numbers of the clients that have a test set of their own."""
        return ()

    def test_shard(self, client: int) -> Shard:
        """Test data of one of `test_clients()`, in the form of `shard`."""
        raise IndexError(f"client {client} has no test set of its own")

    def central_test(self) -> Shard | None:
        """The test set that belongs to no client, in the form of `shard`; None where there is none."""
        return None

    @property
    def has_central_test(self) -> bool:
        """Whether `central_test` gives anything."""
        return self.central_test() is not None

    def laid(self, client: int) -> Laid | None:
        """What `shard` copies, where it lies; None where a shard is made for whoever asks."""
        return None

    def laid_test(self, client: int) -> Laid | None:
        """What `test_shard` copies, where it lies."""
        return None

    def laid_central(self) -> Laid | None:
        """What `central_test` copies, where it lies."""
        return None

    def _checked(self, client: int) -> int:
        """`client` as an int; IndexError unless it is the number of a client (a negative one would count backwards)."""
        number = operator.index(client)
        if not 0 <= number < self.n_clients:
            raise IndexError(f"client {number} is not one of 0 .. {self.n_clients - 1}")
        return number


class Samples:
    """Labelled samples: labels (N,), or values (N, K), in memory, inputs loaded when first a shard is cut.

    `load` returns the inputs, shape (N, *sample_shape), as float32 or as uint8, which stands for 0 .. 1 in 255ths.
    """

    def __init__(
        self, labels_N: NDArray[Any], sample_shape: tuple[int, ...], load: Callable[[], NDArray[np.generic]]
    ) -> None:
        self.labels_N = labels_N
        self.sample_shape = sample_shape
        self._load = load

    @cached_property
    def _inputs(self) -> NDArray[np.generic]:
        inputs = np.asarray(self._load())  # not as a memmap, which costs more at each access
        assert inputs.shape == (len(self.labels_N), *self.sample_shape)
        return inputs

    def take(self, rows: Int64 | slice) -> Shard:
        """The samples of `rows`, in that order."""
        return Shard(inputs_of(self._inputs[rows]), self.labels_N[rows].copy())

    def laid(self, rows_N: Int64) -> Laid:
        """The samples of `rows_N` where they lie."""
        return Laid(self._inputs, rows_N, self.labels_N[rows_N])


def inputs_of(values: NDArray[np.generic]) -> Float32:
    """`values` as a model takes them: float32, C-contiguous, never the same memory; uint8 divided by 255."""
    if values.dtype == np.uint8:
        scaled: Float32 = np.divide(values, np.float32(255), dtype=np.float32, order="C")
        return scaled
    return np.array(values, dtype=np.float32, order="C")


@dataclass(frozen=True, slots=True)
class ArrayData:
    """Training and test samples of a data set, and the way to its SHA-256."""

    train: Samples
    test: Samples
    n_classes: int
    sha256: Callable[[], str]
    targets: Targets = "classes"


class ArrayPopulation(Population):
    """Clients that hold rows of a data set in arrays.

    The test samples belong to the clients if there is a `test_partition`, else they are the central test set.
    """

    def __init__(
        self,
        data: ArrayData,
        partition: Partition,
        test_partition: Partition | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.n_clients = partition.n_clients
        self.sample_shape = data.train.sample_shape
        self.n_classes, self.targets = data.n_classes, data.targets
        self._data, self._partition, self._test_partition = data, partition, test_partition
        self._names = None if names is None else tuple(names)

    def n_samples(self, clients: Int64) -> Int64:
        return self._partition.counts(clients)

    def shard(self, client: int) -> Shard:
        return self._data.train.take(self._partition.rows(self._checked(client)))

    def laid(self, client: int) -> Laid | None:
        return self._data.train.laid(self._partition.rows(self._checked(client)))

    def data_sha256(self) -> str:
        return self._data.sha256()

    def client_name(self, client: int) -> str:
        return str(self._checked(client)) if self._names is None else self._names[self._checked(client)]

    def client_named(self, name: str) -> int:
        if self._names is None:
            return super().client_named(name)
        if name not in self._names:
            raise DataError(f"no client '{name}'; {nearest(name, self._names)}")
        return self._names.index(name)

    def test_clients(self) -> Sequence[int]:
        if self._test_partition is None:
            return ()
        return tuple(np.flatnonzero(np.diff(self._test_partition.offsets_C1)).tolist())

    def test_shard(self, client: int) -> Shard:
        if self._test_partition is None or not self._test_partition.rows(self._checked(client)).size:
            return super().test_shard(client)
        return self._data.test.take(self._test_partition.rows(client))

    def central_test(self) -> Shard | None:
        return self._data.test.take(slice(None)) if self._test_partition is None else None

    @property
    def has_central_test(self) -> bool:
        return self._test_partition is None

    def laid_test(self, client: int) -> Laid | None:
        rows_N = None if self._test_partition is None else self._test_partition.rows(self._checked(client))
        return None if rows_N is None or not rows_N.size else self._data.test.laid(rows_N)

    def laid_central(self) -> Laid | None:
        n_samples = len(self._data.test.labels_N)
        return self._data.test.laid(np.arange(n_samples)) if self._test_partition is None else None
