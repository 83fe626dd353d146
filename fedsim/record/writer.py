"""Writes an attempt's record: one HDF5 file that others can read while it grows (SWMR), and after a kill at any moment.

Rows are buffered as tuples and converted in blocks, a column at a time: 1.6 us a row of `tasks` in all, 1.4 ms a flush
of few rows. The file takes no new group, dataset or attribute once it is live: HDF5 accepts them without an error and
loses them in a crash. So this class has no way to make one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from fedsim.errors import RecordError
from fedsim.record import room, store
from fedsim.record.provenance import Provenance
from fedsim.record.schema import STATUSES, Column, RecordPlan, RunTotals, Table, table_named
from fedsim.record.settled import settle
from fedsim.types import Float32

Row = Sequence[int | float | str]
_Block = list[np.ndarray[Any, Any]]  # equally long columns of a table, as they are stored

FLUSH_ROWS = 4096
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError)


class RecordWriter:
    """The record of one attempt, created at `path`, which must not exist: `RecordError` otherwise.

    Buffered rows reach the disk when a table has `flush_rows` of them, when `tick` finds `flush_s` gone by, and
    with `flush` and `close`. A write that fails, as on a full disk, is a `RecordError`, then and in every later call.
    """

    def __init__(
        self, path: Path, provenance: Provenance, plan: RecordPlan, flush_s: float = 2.0, flush_rows: int = FLUSH_ROWS
    ) -> None:
        self.path = path
        self._n_parameters = plan.n_parameters
        self._flush_s = flush_s
        self._flush_rows = flush_rows
        self._last_flush_s: float | None = None
        self._failure = ""
        self._tables = {table.name: table for table in plan.tables()}
        self._buffers: dict[str, list[Row]] = {name: [] for name in self._tables}
        self._blocks: dict[str, list[_Block]] = {name: [] for name in self._tables}  # older than the rows
        self._in_blocks = dict.fromkeys(self._tables, 0)  # rows
        self._written = dict.fromkeys(self._tables, 0)
        self._chunk_bytes = {
            name: sum(column.itemsize * column.chunk_rows for column in table.columns)
            for name, table in self._tables.items()
        }
        self._file, self._columns, self._lock = _create(path, provenance, plan)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes a record that is still open as `failed`."""
        if self._file is not None:
            self.close("failed")

    def append(self, table: str, row: Row) -> None:
        """Takes a row of a table: the values of its columns in order, extra columns last; NaN, -1 or "" for none."""
        buffer = self._buffers.get(table)
        if buffer is None:
            buffer = self._buffers[table_named(table).name]
        buffer.append(row)
        if len(buffer) >= self._flush_rows:
            self._write(table)

    def extend_columns(self, table: str, columns: Sequence[np.ndarray[Any, Any]]) -> None:
        """Takes many rows of a table at once, as its columns in order, which are copied."""
        own = self._tables[table_named(table).name]
        block = [_column_block(column, of) for column, of in zip(own.columns, columns, strict=True)]
        if len({column.size for column in block}) != 1:
            raise ValueError(f"table {table}: columns of {sorted({column.size for column in block})} rows")
        self._close_buffer(own.name)
        if block[0].size:
            self._blocks[own.name].append(block)
            self._in_blocks[own.name] += block[0].size
        if self._in_blocks[own.name] >= self._flush_rows:
            self._write(own.name)

    def tick(self, now_s: float) -> None:
        """Flushes if `flush_s` went by since the last time it did, or since the first call."""
        if self._last_flush_s is None:
            self._last_flush_s = now_s
        if self.is_due(now_s):
            self._last_flush_s = now_s
            self.flush()

    def is_due(self, now_s: float) -> bool:
        """Whether `tick` would flush now."""
        return self._last_flush_s is not None and now_s - self._last_flush_s >= self._flush_s

    def flush(self, durable: bool = False) -> None:
        """Writes every buffered row and publishes it to readers; `durable` waits for the disk, as a checkpoint must.

        `RecordError` if that fails.
        """
        for table in self._buffers:
            self._write(table)
        if durable:
            self.sync()

    def sync(self) -> None:
        """Waits until what was flushed is on the disk; any thread may. `RecordError` if that fails."""
        try:
            sync(self.path)
        except OSError as error:
            raise self._failed(error) from error

    def rows(self) -> dict[str, int]:
        """Rows taken so far by table name, buffered ones included: what a checkpoint notes (after a `flush`)."""
        waiting = self._in_blocks
        return {name: self._written[name] + waiting[name] + len(self._buffers[name]) for name in self._tables}

    def close(self, status: str, totals: RunTotals | None = None, weights_P: Float32 | None = None) -> None:
        """Flushes, writes totals and final model (float32 (P,)), then the status, and closes and syncs the file.

        After a failed write only the status is written, which needs no room on the disk.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r}; allowed: {', '.join(STATUSES)}")
        if weights_P is not None and (weights_P.shape != (self._n_parameters,) or weights_P.dtype != np.float32):
            raise ValueError(f"weights are {weights_P.dtype} {weights_P.shape}, not float32 ({self._n_parameters},)")
        if self._failure:
            self._abandon(status)
            return
        try:
            self.flush()
            self._finish(status, totals, weights_P)
        except BaseException:
            self._abandon("failed")
            raise

    def _finish(self, status: str, totals: RunTotals | None, weights_P: Float32 | None) -> None:
        file = self._open_file()
        try:
            if totals is not None:
                store.put_totals(file, totals)
            if weights_P is not None:
                _take_room(file, weights_P.nbytes)
                store.put_weights(file, weights_P)
            store.put_status(file, status)
            file.close()
            self._release()
            sync(self.path)
        except _HDF5_ERRORS as error:
            raise self._failed(error) from error
        self._file = None

    def _abandon(self, status: str) -> None:
        """Says `status` and closes, as far as the disk allows."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(*_HDF5_ERRORS):
                store.put_status(file, status)
            with contextlib.suppress(*_HDF5_ERRORS):
                file.close()
                self._release()

    def _release(self) -> None:
        """Gives back the room that is left, and lets others write."""
        room.give_back(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, table: str) -> None:
        """Moves what waits of a table to the disk, a column at a time, and publishes it."""
        self._open_file()
        self._close_buffer(table)
        blocks = self._blocks[table]
        if blocks:
            self._put(table, blocks[0] if len(blocks) == 1 else [*map(np.concatenate, zip(*blocks, strict=True))])
            blocks.clear()
            self._in_blocks[table] = 0

    def _close_buffer(self, table: str) -> None:
        """Makes a block of the rows that were taken one by one."""
        rows = self._buffers[table]
        if rows:
            self._blocks[table].append(_blocks(self._tables[table], rows))
            self._in_blocks[table] += len(rows)
            rows.clear()

    def _put(self, table: str, blocks: Sequence[np.ndarray[Any, Any]]) -> None:
        """Writes equally long blocks of a table's columns behind what is there."""
        file = self._open_file()
        first, last = self._written[table], self._written[table] + blocks[0].size
        try:
            _take_room(file, sum(block.nbytes for block in blocks) + self._chunk_bytes[table])
            for dataset, block in zip(self._columns[table], blocks, strict=True):
                _put_behind(dataset, first, block)
        except _HDF5_ERRORS as error:
            raise self._failed(error) from error
        self._written[table] = last

    def _open_file(self) -> h5py.File:
        if self._failure:
            raise RecordError(self._failure)
        if self._file is None:
            raise RuntimeError(f"{self.path}: the record is closed")
        return self._file

    def _failed(self, error: Exception) -> RecordError:
        self._failure = f"{self.path}: cannot write the record: {one_line(error)}"
        return RecordError(self._failure)


def _create(
    path: Path, provenance: Provenance, plan: RecordPlan
) -> tuple[h5py.File, dict[str, list[h5py.Dataset]], int | None]:
    """The live file, its columns and its lock. It gets its name only when it is complete, readable, and locked: whoever
    finds a record without a lock may take it for that of a dead run."""
    aside = store.aside(path)
    file, lock = None, None
    try:
        if path.exists():
            raise RecordError(f"{path}: exists already; a record is never written over")
        file = store.new_file(aside, provenance, plan)
        store.create_run(file, provenance, plan)
        columns = store.create_tables(file, plan.tables(), compressed=False)
        file.swmr_mode = True
        _take_room(file, 0)
        settle(file.id.get_vfd_handle())
        lock = _locked(aside)
        _name(aside, path)
    except FileExistsError as error:
        _drop(file, aside, lock)
        raise RecordError(f"{path}: exists already; a record is never written over") from error
    except _HDF5_ERRORS as error:
        _drop(file, aside, lock)
        raise RecordError(f"{path}: cannot create the record: {one_line(error)}") from error
    return file, columns, lock


def _put_behind(dataset: h5py.Dataset, first: int, block: np.ndarray[Any, Any]) -> None:
    """Writes a block of the data set's own type behind the `first` values that it has, and publishes it.

    By the library's own calls: what h5py looks at before it makes them takes three times as long as they do.
    """
    last = first + block.size
    dataset.id.set_extent((last,))
    place = h5py.h5s.create_simple((last,))
    place.select_hyperslab((first,), (block.size,))
    dataset.id.write(h5py.h5s.create_simple((block.size,)), place, block)
    dataset.id.flush()


def _take_room(file: h5py.File, n_bytes: int) -> None:
    """Room on the disk for this many bytes, and a superblock that lets others read them."""
    if room.take(file, n_bytes):
        settle(file.id.get_vfd_handle())


def _locked(path: Path) -> int | None:
    """A shared lock for as long as the returned descriptor is open: HDF5 opens such a file, but not for writing."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _drop(file: h5py.File | None, aside: Path, lock: int | None) -> None:
    """Removes a file whose creation failed."""
    if lock is not None:
        os.close(lock)
    with contextlib.suppress(*_HDF5_ERRORS):
        if file is not None:
            file.close()
        aside.unlink(missing_ok=True)


def _name(aside: Path, path: Path) -> None:
    """Gives a file its name, which nobody may have; where the file system knows no links, by renaming."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:
        aside.rename(path)
    else:
        aside.unlink()
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _blocks(table: Table, rows: list[Row]) -> _Block:
    """The rows' columns as arrays; a row of another length, or a value of another kind, is a bug of the caller."""
    try:
        values = list(zip(*rows, strict=True))
    except ValueError:
        values = []
    if len(values) != len(table.columns):
        lengths = sorted({len(row) for row in rows})
        raise ValueError(f"table {table.name}: rows of {lengths} values, not {len(table.columns)}")
    return [_block(table, column, of) for column, of in zip(table.columns, values, strict=True)]


def _column_block(column: Column, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as it is stored; one of another kind is a bug of the caller."""
    wanted = np.dtype(column.dtype)
    if values.ndim != 1 or values.dtype.kind != wanted.kind:
        raise ValueError(f"column {column.name}: {values.dtype} {values.shape}, not one dimension of {wanted}")
    return values.astype(wanted)


def _block(table: Table, column: Column, values: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    try:
        if column.dtype[1] == "S":
            return np.array([store.fitted(value, column.itemsize) for value in values], column.dtype)
        array = np.array(values)
        if column.dtype[1] == "i" and array.dtype.kind not in "ibu":
            raise TypeError(f"{array.dtype} in a column of integers")
        # From the Python values again, so that one out of range is an error and not wrapped around.
        return np.array(values, column.dtype)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"column {table.name}/{column.name}: {one_line(error)}") from error
