"""A CSV table with a column that names the client; every other column but the label is a numeric feature.

Clients are numbered in the order in which the file first names them. Each client's test set is drawn from a key of
seed and client; features are scaled by the mean and standard deviation (n - 1) of the client's own training rows.

A large table is read once a host: what came of it is shared by all processes (`fedsim.population.nodecache`).
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.config import CsvData
from fedsim.errors import DataError, nearest
from fedsim.population import nodecache
from fedsim.population.datasets import checks
from fedsim.population.partition import Partition, n_test_of
from fedsim.population.population import ArrayData, ArrayPopulation, Samples
from fedsim.seeding import Purpose, permutations
from fedsim.types import Float32, Float64, Int64

_RECIPE = 1  # goes up when other arrays are made of the same table and configuration


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a row has what: positions of client, label and features, and the names of the columns."""

    names: list[str]
    client: int
    label: int
    features: list[int]


@dataclass(slots=True)
class _Table:
    """The values of a table as they are read: features row by row, float64."""

    clients: dict[str, int] = field(default_factory=dict)
    owner: array[int] = field(default_factory=lambda: array("q"))
    labels: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))


def csv_population(config: CsvData, seed: int, base_dir: Path) -> ArrayPopulation:
    """The clients of a CSV table, each with a test set of `test_fraction` of its rows (none for a client of one row).

    Raises DataError with the line and column of a value that is not a finite number, or of a label that is none.
    """
    path = checks.data_file(base_dir, config.path, "data.path")
    source = _Source(path, config, seed)
    x_train, x_test = (source.array(part) for part in ("train", "test"))
    is_test_N, owner_N, y_N = (source.array(part) for part in ("is_test", "owner", "y"))
    names: list[str] = json.loads(source.array("names").tobytes())
    owners, test_owners = (Partition.from_owners(owner_N[mask], len(names)) for mask in (~is_test_N, is_test_N))
    train, test = _samples(x_train, y_N[~is_test_N]), _samples(x_test, y_N[is_test_N])
    n_classes = 1 if config.targets == "values" else checks.classes_of(y_N, config.classes)
    data = ArrayData(train, test, n_classes, lambda: checks.files_sha256([path]), config.targets)
    return ArrayPopulation(data, owners, test_owners, names)


class _Source:
    """What comes of a table: read at most once by this process, and by one process of a host if it is large."""

    def __init__(self, path: Path, config: CsvData, seed: int) -> None:
        self._path, self._config, self._seed = path, config, seed
        self._n_bytes = path.stat().st_size
        self._made: dict[str, NDArray[Any]] = {}

    def array(self, part: str) -> NDArray[Any]:
        """Inputs `train` and `test`, float32; `is_test`, `owner` and `y` of all rows; `names`, JSON in bytes."""
        recipe = f"csv {_RECIPE} {self._config.model_dump_json(exclude={'path'})} {self._seed} {part}"
        return nodecache.shared(self._path, recipe, self._n_bytes, lambda: self._all()[part])

    def _all(self) -> dict[str, NDArray[Any]]:
        if not self._made:
            self._made = _arrays(self._path, self._config, self._seed)
        return self._made


def _arrays(path: Path, config: CsvData, seed: int) -> dict[str, NDArray[Any]]:
    """The arrays that `_Source` gives, made from the file."""
    table, columns = _read(path, config)
    x = _features(table, columns, path)
    is_of_values = config.targets == "values"
    y_N: NDArray[Any] = _values(table, columns, path) if is_of_values else _labels(table, columns, path, config.classes)
    owner_N = np.array(table.owner, dtype=np.int64)
    n_clients = len(table.clients)
    test_N = _test_mask(Partition.from_owners(owner_N, n_clients), config.test_fraction, seed)
    if config.standardize:
        x = _standardized(x, owner_N, test_N, n_clients)
    names = np.frombuffer(json.dumps(list(table.clients)).encode(), np.uint8)
    train, test = (x[mask].astype(np.float32) for mask in (~test_N, test_N))
    return {"train": train, "test": test, "is_test": test_N, "owner": owner_N, "y": y_N, "names": names}


def _read(path: Path, config: CsvData) -> tuple[_Table, _Columns]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{path}: the file is empty")
            columns = _columns(header, config, path)
            table = _Table()
            for row in reader:
                if row:
                    _add(table, row, columns, f"{path}: line {reader.line_num}", reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not table.owner:
        raise DataError(f"{path}: no rows below the header")
    return table, columns


def _columns(header: list[str], config: CsvData, path: Path) -> _Columns:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: line 1: column '{twice[0]}' appears more than once")
    for key, name in (("client", config.client), ("label", config.label)):
        if name not in header:
            raise DataError(f"data.{key}: {path} has no column '{name}'; {nearest(name, header)}")
    if config.client == config.label:
        raise DataError(f"data.client and data.label both name column '{config.client}'; they must differ")
    client, label = header.index(config.client), header.index(config.label)
    features = [i for i in range(len(header)) if i not in (client, label)]
    if not features:
        raise DataError(f"{path}: no column left for features beside '{config.client}' and '{config.label}'")
    return _Columns(header, client, label, features)


def _add(table: _Table, row: list[str], columns: _Columns, where: str, line: int) -> None:
    if len(row) != len(columns.names):
        raise DataError(f"{where}: {len(row)} values, allowed: {len(columns.names)}, one a column")
    name = row[columns.client]
    if not name:
        raise DataError(f"{where}: column '{columns.names[columns.client]}' is empty, allowed: the client's name")
    table.owner.append(table.clients.setdefault(name, len(table.clients)))
    table.lines.append(line)
    table.labels.append(_number(row, columns.label, columns, where))
    table.values.extend(_number(row, i, columns, where) for i in columns.features)


def _number(row: list[str], column: int, columns: _Columns, where: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        got = repr(row[column][:40]) if row[column] else "empty"
        raise DataError(f"{where}: column '{columns.names[column]}' is {got}, allowed: a number") from None


def _features(table: _Table, columns: _Columns, path: Path) -> Float64:
    """Features of all rows, float64 (N, F), all of which float32 can hold."""
    x = np.frombuffer(table.values, dtype=np.float64).reshape(-1, len(columns.features))
    with np.errstate(invalid="ignore"):
        good = np.abs(x) <= np.finfo(np.float32).max
    if not good.all():
        row, feature = np.argwhere(~good)[0]
        name = columns.names[columns.features[feature]]
        raise DataError(f"{path}: line {table.lines[row]}: column '{name}' is {x[row, feature]}, allowed: finite")
    return x


def _labels(table: _Table, columns: _Columns, path: Path, n_classes: int | None) -> Int64:
    """Labels of all rows, int64 (N,)."""
    y_N = np.frombuffer(table.labels, dtype=np.float64)
    limit = checks.MAX_CLASSES if n_classes is None else n_classes
    good = (y_N >= 0) & (y_N < limit) & (y_N == np.floor(y_N))
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(
            f"{path}: line {table.lines[row]}: column '{columns.names[columns.label]}' is {y_N[row]:g}, "
            f"allowed: whole numbers 0 to {limit - 1}"
        )
    return y_N.astype(np.int64)


def _values(table: _Table, columns: _Columns, path: Path) -> Float32:
    """Labels of all rows as values, float32 (N, 1)."""
    y_N = np.frombuffer(table.labels, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        good = np.abs(y_N) <= np.finfo(np.float32).max
    if not good.all():
        row = int(np.argmin(good))
        name = columns.names[columns.label]
        raise DataError(f"{path}: line {table.lines[row]}: column '{name}' is {y_N[row]:g}, allowed: finite")
    return y_N.astype(np.float32)[:, None]


def _test_mask(clients: Partition, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the rows of test sets, shape (N,)."""
    mask_N = np.zeros(clients.order_N.size, dtype=np.bool_)
    for client, rows in _rows_of(clients):
        order = permutations(seed, Purpose.TEST_SPLIT, client, 0, rows.size)
        mask_N[rows[order[: int(n_test_of(rows.size, fraction))]]] = True
    return mask_N


def _standardized(x: Float64, owner_N: Int64, test_N: NDArray[np.bool_], n_clients: int) -> Float64:
    """`x` scaled client by client; a feature that is constant in a client's training rows is only centred."""
    result = np.empty_like(x)
    for _, rows in _rows_of(Partition.from_owners(owner_N, n_clients)):
        train = x[rows[~test_N[rows]]]
        mean = train.mean(axis=0)
        # one row has no deviation; nor has a constant, whose rounded mean would leave a tiny one
        varies = np.ptp(train, axis=0) > 0
        deviation = train.std(axis=0, ddof=min(1, len(train) - 1))
        result[rows] = (x[rows] - mean) / np.where(varies & (deviation > 0), deviation, 1.0)
    return result


def _rows_of(clients: Partition) -> Iterator[tuple[int, Int64]]:
    return ((client, clients.rows(client)) for client in range(clients.n_clients))


def _samples(inputs: NDArray[Any], y_N: NDArray[Any]) -> Samples:
    return Samples(y_N, inputs.shape[1:], lambda: inputs)
