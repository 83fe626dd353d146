"""The files that make up a run: finding them, looking at what they hold, and cutting each where the next begins.

A file that was killed can have columns of unequal length: a table is as long as its shortest. An attempt that goes on
from a checkpoint says at which rows it starts; what its predecessors wrote past them is superseded. On the wall clock
it first makes again what they wrote, and says up to which rows: one that was killed before has superseded nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedsim.errors import RecordError
from fedsim.record import guard
from fedsim.record.provenance import Attribute
from fedsim.record.schema import (
    MAX_EXTRA_COLUMNS,
    NO_TOTALS,
    SCHEMA_VERSION,
    STATUS_BYTES,
    STATUSES,
    TABLES,
    RunTotals,
    Table,
    scalar_column,
)

JOINED = "record.h5"
_ATTEMPT = re.compile(r"record-(\d{3,9})\.h5")


def attempt_name(attempt: int) -> str:
    """The file name of an attempt's record.

    >>> attempt_name(2)
    'record-002.h5'
    """
    return f"record-{attempt:03d}.h5"


@dataclass(frozen=True, slots=True)
class Piece:
    """A record file as it was when it was looked at. `rows` are those of the shortest column, by table."""

    path: Path
    attributes: dict[str, Attribute]
    status: str
    totals: RunTotals
    start_rows: dict[str, int]
    tail_rows: dict[str, int]
    tables: dict[str, Table]
    rows: dict[str, int]

    @property
    def last_attempt(self) -> int | None:
        """The last attempt that a joined record holds; None for the record of one attempt."""
        number = self.attributes.get("last_attempt")
        return number if isinstance(number, int) else None

    @property
    def supersedes(self) -> bool:
        """Whether it has come past what the attempts before recorded, so that its rows count and not theirs."""
        reached = {name: self.start_rows.get(name, 0) + n for name, n in self.rows.items()}
        return all(reached.get(name, 0) >= n for name, n in self.tail_rows.items())


# ------------------------------------------------------------------------------------------------- finding


def attempt_numbers(folder: Path) -> list[int]:
    """The attempts whose records lie in a folder, in order. `RecordError` if it cannot be read."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise RecordError(f"{folder}: {error.strerror or error}") from error
    return sorted(int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name)))


def pieces_at(path: Path, joined: bool) -> list[Piece]:
    """The files that make up the run in a folder, in order, or that one file.

    With `joined` that is the joined record alone, if there is one and it is up to date.
    """
    if not path.is_dir():
        return [_single(path)]
    numbers = attempt_numbers(path)
    if joined and (path / JOINED).exists():
        piece = look_at(path / JOINED)
        if not numbers or _up_to_date(piece, numbers[-1]):
            return [piece]
    if not numbers:
        raise RecordError(f"{path}: no record in this folder; expected {JOINED} or {attempt_name(0)}")
    return [look_at(path / attempt_name(number)) for number in numbers]


def _up_to_date(joined: Piece, last_attempt: int) -> bool:
    """Whether a joined record holds all there is: a run that still goes on, or went on after it, has more."""
    return joined.status != "running" and joined.last_attempt is not None and joined.last_attempt >= last_attempt


def _single(path: Path) -> Piece:
    """One file, whatever its name. Alone, an attempt starts at row 0."""
    if not path.exists():
        raise RecordError(f"{path}: no such run folder or record")
    return replace(look_at(path), start_rows={}, tail_rows={})


# ------------------------------------------------------------------------------------------------- looking


def look_at(path: Path) -> Piece:
    """What a record file holds, without its rows. `RecordError` if it is no record that this version reads."""

    def look(file: h5py.File) -> Piece:
        attributes = guard.attributes_of(file)
        schema = attributes.get("schema_version")
        if not isinstance(schema, int):
            raise RecordError("not a record of fedsim: no schema_version")
        if not 1 <= schema <= SCHEMA_VERSION:
            raise RecordError(f"schema version {schema}; this fedsim reads 1 to {SCHEMA_VERSION}")
        tables = {table.name: _table_in(file, table) for table in TABLES}
        rows = _rows(file, tables, path)
        start_rows, tail_rows = _counts(attributes, "start_rows"), _counts(attributes, "tail_rows")
        return Piece(path, attributes, _status(file), _totals(file), start_rows, tail_rows, tables, rows)

    return guard.reading(path, look)


def _table_in(file: h5py.File, table: Table) -> Table:
    """The table with the extra columns that this file says it has."""
    if _is_absent(file, table):
        return table
    text = guard.attributes_of(guard.group_of(file, table.name)).get("columns", "[]")
    names = guard.parsed(str(text), f"{table.name}: columns", list)
    n_own = len(table.columns)
    if not all(isinstance(name, str) for name in names) or list(table.names) != names[:n_own]:
        raise RecordError(f"{table.name}: columns are not those of schema {SCHEMA_VERSION}")
    if len(names) > n_own + MAX_EXTRA_COLUMNS:
        raise RecordError(f"{table.name}: {len(names)} columns; allowed: {n_own + MAX_EXTRA_COLUMNS}")
    extended = table.extended(scalar_column(name, "") for name in names[n_own:])
    described = []
    for column in extended.columns[n_own:]:
        found = guard.attributes_of(guard.dataset_of(file, f"{table.name}/{column.name}"))
        description, units = str(found.get("description", "")), str(found.get("units", "1"))
        described.append(scalar_column(column.name, description, units))
    return table.extended(described)


def _rows(file: h5py.File, tables: dict[str, Table], path: Path) -> dict[str, int]:
    """Rows by table. Refuses columns that share their bytes, which could make a small file as large as one likes."""
    size = path.stat().st_size
    found = {name: _table_rows(file, table, size) for name, table in tables.items()}
    stored, size = sum(stored for _, stored in found.values()), path.stat().st_size  # a live one has grown meanwhile
    if stored > size:
        raise RecordError(f"columns of {stored} bytes of storage together in a file of {size}")
    return {name: n_rows for name, (n_rows, _) in found.items()}


def _table_rows(file: h5py.File, table: Table, file_bytes: int) -> tuple[int, int]:
    """Rows of the shortest column, and the bytes that all columns take in the file."""
    if _is_absent(file, table):
        return 0, 0
    lengths, stored = [], 0
    for column in table.columns:
        path = f"{table.name}/{column.name}"
        dataset = guard.dataset_of(file, path)
        lengths.append(guard.n_rows(dataset, column, path, file_bytes))
        stored += int(dataset.id.get_storage_size())
    return min(lengths), stored


def _is_absent(file: h5py.File, table: Table) -> bool:
    """Whether this is an optional table that the file does not have."""
    return table.optional and table.name not in file


def _counts(attributes: dict[str, Attribute], key: str) -> dict[str, int]:
    """Rows by table, as an attribute says them in JSON."""
    counts: dict[str, int] = guard.parsed(str(attributes.get(key, "{}")), key, dict)
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise RecordError(f"{key}: {name:.80} is not a count")
    return counts


def _status(file: h5py.File) -> str:
    status = bytes(guard.read_scalar(file, "run/status", f"S{STATUS_BYTES}")).decode("ascii", "replace")
    if status not in STATUSES:
        raise RecordError(f"run/status is {status!r}; allowed: {', '.join(STATUSES)}")
    return status


def _totals(file: h5py.File) -> RunTotals:
    values = [
        guard.read_scalar(file, f"run/summary/{name}", "<i8" if isinstance(value, int) else "<f8").item()
        for name, value in NO_TOTALS._asdict().items()
    ]
    return RunTotals._make(values)


# ------------------------------------------------------------------------------------------------- cutting


def kept_rows(pieces: list[Piece]) -> dict[str, list[int]]:
    """Rows kept of each file, by table."""
    return {table.name: _kept(pieces, table) for table in TABLES}


def _kept(pieces: list[Piece], table: Table) -> list[int]:
    kept: list[int] = []
    for piece in pieces:
        total = sum(kept)
        if table.superseded and not piece.supersedes:
            kept.append(0)
            continue
        start = piece.start_rows.get(table.name, 0) if table.superseded else total
        if start > total:
            raise RecordError(
                f"{piece.path}: begins at row {start} of table {table.name}, but the attempts before it have {total}"
            )
        _drop_last(kept, total - start)
        kept.append(piece.rows[table.name])
    return kept


def _drop_last(kept: list[int], excess: int) -> None:
    """Takes `excess` rows away, from the last file backwards."""
    for index in reversed(range(len(kept))):
        cut = min(kept[index], excess)
        kept[index] -= cut
        excess -= cut


# ------------------------------------------------------------------------------------------------- reading


def read_rows(file: h5py.File, path: str, dtype: str, first: int, last: int) -> NDArray[Any]:
    """Rows `first` to `last` of a column that was looked at; checked again, since the file may have changed since."""
    dataset = guard.dataset_of(file, path)
    if dataset.dtype != np.dtype(dtype) or dataset.ndim != 1 or dataset.shape[0] < last:
        raise RecordError(f"{path} changed while it was read")
    values: NDArray[Any] = dataset[first:last]
    return values


def read_columns(piece: Piece, dtypes: dict[str, str], first: int, last: int) -> list[NDArray[Any]]:
    """Rows `first` to `last` of the columns at these paths, in these types, with the file opened once."""
    return guard.reading(
        piece.path, lambda file: [read_rows(file, path, dtype, first, last) for path, dtype in dtypes.items()]
    )


def wall_s(piece: Piece) -> float:
    """Wall seconds of an attempt: as noted at its end, else the last time that any row of it has, else 0."""
    if piece.totals.wall_s == piece.totals.wall_s:
        return piece.totals.wall_s
    columns = (("tasks", "wall_arrival_s"), ("versions", "wall_s"), ("evaluations", "wall_s"), ("workers", "wall_s"))
    times = [read_columns(piece, {f"{table}/{name}": "<f8"}, 0, piece.rows[table])[0] for table, name in columns]
    largest = largest_number(times)
    return largest if largest == largest else 0.0


def largest_number(arrays: list[NDArray[Any]]) -> float:
    """The largest value of these arrays that is a number; NaN if none is."""
    values = np.concatenate(arrays)
    values = values[~np.isnan(values)]
    return float(values.max()) if values.size else float("nan")
