"""The record's tables: names, types, units and meanings of every column, without HDF5.

A table is described by a NamedTuple: its fields are the columns in order, the annotations say how they are stored.
A row is such a tuple, followed by one float for each extra column that the record was created with (the rule's own
scalars in `tasks`, the metrics in `evaluations`). An integer that does not exist is -1, a float NaN.

The schema has a version. A reader understands its own and every older one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, get_args, get_type_hints

from fedsim.errors import RecordError
from fedsim.types import Outcome

SCHEMA_VERSION = 1
"""Goes up when a column changes its meaning, goes away or is added; an optional table changes no other record."""

Tensors = tuple[tuple[str, tuple[int, ...], int], ...]

NO_INT = -1
NO_FLOAT = float("nan")

STATUSES = ("running", "done", "stopped", "stalled", "failed", "lost")
"""What `run/status` can say. `running` in a file that nobody writes any more means that the run was killed."""

STATUS_BYTES = 16
MAX_EXTRA_COLUMNS = 256
_CHUNK_BYTES = 16 * 1024
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `dtype` is little-endian numpy; `units` "1" for a plain number; `missing` is the value for none;
    `flags` are the names of the values of an enumeration."""

    dtype: str
    units: str
    description: str
    missing: int | None = None
    flags: tuple[tuple[str, int], ...] = ()
    name: str = ""

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return int(self.dtype[2:])

    @property
    def chunk_rows(self) -> int:
        """Rows a chunk: 16 KiB of them, at least 32."""
        return max(32, _CHUNK_BYTES // self.itemsize)


@dataclass(frozen=True, slots=True)
class Table:
    """A group of equally long columns. `superseded`: a later attempt's rows take the place of those past its start.

    `optional`: only records of runs that have something to say in it hold it; elsewhere it has no rows.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    superseded: bool = True
    optional: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The column names in their order."""
        return tuple(column.name for column in self.columns)

    def extended(self, extra: Iterable[Column]) -> Table:
        """The same table with further columns at its end; a name that is taken or not plain is a `RecordError`."""
        columns = (*self.columns, *extra)
        for column in columns:
            if not _NAME.fullmatch(column.name):
                raise RecordError(
                    f"table {self.name}: column name {column.name!r:.80}; "
                    "allowed: a letter and up to 63 letters, digits, '_', '.', '-'"
                )
        names = [column.name for column in columns]
        for name in names:
            if names.count(name) > 1:
                raise RecordError(f"table {self.name}: two columns are named '{name}'")
        if len(columns) - len(self.columns) > MAX_EXTRA_COLUMNS:
            raise RecordError(
                f"table {self.name}: {len(columns) - len(self.columns)} extra columns; allowed: {MAX_EXTRA_COLUMNS}"
            )
        return replace(self, columns=columns)


def scalar_column(name: str, description: str, units: str = "1") -> Column:
    """An extra column of float64: a rule's scalar or a metric."""
    return Column("<f8", units, description, name=name)


_OUTCOMES = tuple((outcome.name.lower(), int(outcome)) for outcome in Outcome)


class TaskRow(NamedTuple):
    """One row a task that ended, in event order."""

    task: Annotated[int, Column("<i8", "1", "number of the task, in order of dispatch")]
    client: Annotated[int, Column("<i8", "1", "number of the client")]
    worker: Annotated[int, Column("<i4", "1", "rank that trained it; -1 if it was not trained", NO_INT)]
    outcome: Annotated[int, Column("<i1", "1", "how the task ended", None, _OUTCOMES)]
    base_version: Annotated[int, Column("<i8", "1", "version that the client trained from")]
    applied_version: Annotated[int, Column("<i8", "1", "version that the update went into; -1 if none", NO_INT)]
    staleness: Annotated[
        int, Column("<i4", "1", "versions between the base and the one the update met; -1 if not applied", NO_INT)
    ]
    virtual_dispatch_s: Annotated[float, Column("<f8", "s", "time of the dispatch on the run's clock, virtual or wall")]
    virtual_download_s: Annotated[float, Column("<f8", "s", "virtual duration of the download; NaN on the wall clock")]
    virtual_compute_s: Annotated[float, Column("<f8", "s", "virtual duration of local training; NaN on the wall clock")]
    virtual_upload_s: Annotated[float, Column("<f8", "s", "virtual duration of the upload; NaN on the wall clock")]
    virtual_arrival_s: Annotated[
        float, Column("<f8", "s", "virtual time at which the update reached the server, or would have")
    ]
    wall_dispatch_s: Annotated[float, Column("<f8", "s", "wall time of the dispatch, since the attempt's start")]
    wall_arrival_s: Annotated[
        float, Column("<f8", "s", "wall time at which the update came in, since the attempt's start; NaN if none")
    ]
    train_s: Annotated[float, Column("<f4", "s", "wall time that training took: a group's, divided by its tasks")]
    n_samples: Annotated[int, Column("<i8", "1", "training samples of the client")]
    n_steps: Annotated[int, Column("<i8", "1", "local optimiser steps")]
    loss_before: Annotated[float, Column("<f8", "1", "training loss at the base version, or of the first batches")]
    loss_after: Annotated[float, Column("<f8", "1", "training loss after local training, or of the last batches")]
    weight: Annotated[float, Column("<f8", "1", "weight with which the rule merged the update; NaN if it did not")]
    update_norm: Annotated[float, Column("<f8", "1", "Euclidean norm of the update")]


class VersionRow(NamedTuple):
    """One row a version that the server made; version 0, the initial model, has none."""

    version: Annotated[int, Column("<i8", "1", "the server model's counter")]
    virtual_s: Annotated[float, Column("<f8", "s", "time at which the version was made, on the run's clock")]
    wall_s: Annotated[float, Column("<f8", "s", "wall time at which it was made, since the attempt's start")]
    n_updates: Annotated[int, Column("<i8", "1", "updates merged into it")]
    weight_sum: Annotated[float, Column("<f8", "1", "sum of their weights")]
    staleness_mean: Annotated[float, Column("<f8", "1", "mean of their staleness")]
    staleness_max: Annotated[int, Column("<i8", "1", "largest staleness among them; -1 without updates", NO_INT)]


class EvaluationRecord(NamedTuple):
    """One row a test set that a version was scored on; rows come in the order of their results."""

    version: Annotated[int, Column("<i8", "1", "version that was scored")]
    virtual_s: Annotated[float, Column("<f8", "s", "virtual time of that version")]
    wall_s: Annotated[float, Column("<f8", "s", "wall time of the result, since the attempt's start")]
    client: Annotated[int, Column("<i8", "1", "client whose test set it is; -1 for the pooled or central one", NO_INT)]
    n_samples: Annotated[int, Column("<i8", "1", "test samples")]
    loss: Annotated[float, Column("<f8", "1", "mean loss over the test samples")]


class PersonalRecord(NamedTuple):
    """One row a client whose second model was scored with a version: Ditto's, or the version after fine-tuning."""

    version: Annotated[int, Column("<i8", "1", "version with which it was scored")]
    virtual_s: Annotated[float, Column("<f8", "s", "virtual time of that version")]
    wall_s: Annotated[float, Column("<f8", "s", "wall time of the result, since the attempt's start")]
    client: Annotated[int, Column("<i8", "1", "client whose model and test set it is", NO_INT)]
    n_samples: Annotated[int, Column("<i8", "1", "test samples")]
    loss: Annotated[float, Column("<f8", "1", "mean loss over the test samples")]


class WorkerRow(NamedTuple):
    """One row a worker and interval; every count and time is the sum since the attempt's start."""

    wall_s: Annotated[float, Column("<f8", "s", "wall time of the row, since the attempt's start")]
    worker: Annotated[int, Column("<i4", "1", "rank")]
    n_tasks: Annotated[int, Column("<i8", "1", "tasks trained, cumulative")]
    n_groups: Annotated[int, Column("<i8", "1", "groups trained, cumulative")]
    busy_s: Annotated[float, Column("<f8", "s", "wall time in training, cumulative")]
    evaluating_s: Annotated[float, Column("<f8", "s", "wall time in evaluation, cumulative")]
    waiting_s: Annotated[float, Column("<f8", "s", "wall time without work, cumulative")]
    sending_s: Annotated[float, Column("<f8", "s", "wall time in sending, cumulative")]
    sent_bytes: Annotated[int, Column("<i8", "byte", "bytes sent, cumulative")]
    received_bytes: Annotated[int, Column("<i8", "byte", "bytes received, cumulative")]
    cpu_s: Annotated[float, Column("<f8", "s", "processor time of the process, cumulative")]
    rss_bytes: Annotated[int, Column("<i8", "byte", "resident memory at that moment; -1 if unknown", NO_INT)]


class FailureRow(NamedTuple):
    """One row something that went wrong and was survived, or that ended the run."""

    wall_s: Annotated[float, Column("<f8", "s", "wall time, since the attempt's start")]
    worker: Annotated[int, Column("<i4", "1", "rank concerned; -1 if none", NO_INT)]
    client: Annotated[int, Column("<i8", "1", "client concerned; -1 if none", NO_INT)]
    task: Annotated[int, Column("<i8", "1", "task concerned; -1 if none", NO_INT)]
    kind: Annotated[str, Column("|S32", "1", "what kind of failure")]
    message: Annotated[str, Column("|S1024", "1", "what happened, UTF-8, cut to 1024 bytes")]


def _table(name: str, row: type[NamedTuple], superseded: bool = True, optional: bool = False) -> Table:
    """The table that a row's annotations describe."""
    hints = get_type_hints(row, include_extras=True)
    columns = tuple(replace(get_args(hint)[1], name=field) for field, hint in hints.items())
    return Table(name, (row.__doc__ or "").strip(), columns, superseded, optional)


TASKS = _table("tasks", TaskRow)
VERSIONS = _table("versions", VersionRow)
EVALUATIONS = _table("evaluations", EvaluationRecord)
WORKERS = _table("workers", WorkerRow, superseded=False)
FAILURES = _table("failures", FailureRow, superseded=False)
PERSONAL = _table("personal", PersonalRecord, optional=True)
TABLES = (TASKS, VERSIONS, EVALUATIONS, WORKERS, FAILURES, PERSONAL)

HISTORY = (
    ("task", "<i8"),
    ("client", "<i8"),
    ("outcome", "<i8"),
    ("base_version", "<i8"),
    ("applied_version", "<i8"),
    ("virtual_dispatch_s", "<f8"),
    ("virtual_arrival_s", "<f8"),
    ("weight", "<f8"),
)
"""Columns of `tasks` that make up a run's history, as they go into `history_sha256`, one whole column after another."""


class RunTotals(NamedTuple):
    """A run in four numbers: last version, updates merged, time reached on the run's clock, wall time."""

    versions: int
    updates: int
    virtual_s: float
    wall_s: float


NO_TOTALS = RunTotals(NO_INT, NO_INT, NO_FLOAT, NO_FLOAT)


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """What a record has room for. `layout` lists the model's tensors: name, shape, offset into the flat vector.

    `optional` names the optional tables that it has.

    `start_rows` are the row counts of the run's tables at which this attempt begins: none for a first attempt. Up to
    `tail_rows` it makes again what the attempts before have recorded; until it is through, theirs count.
    """

    n_parameters: int
    layout: Tensors = ()
    client_names: tuple[str, ...] = ()
    rule_scalars: tuple[Column, ...] = ()
    metrics: tuple[Column, ...] = ()
    start_rows: tuple[tuple[str, int], ...] = ()
    tail_rows: tuple[tuple[str, int], ...] = ()
    optional: tuple[str, ...] = ()

    def tables(self) -> tuple[Table, ...]:
        """The record's tables, extra columns included."""
        extra = {TASKS.name: self.rule_scalars, EVALUATIONS.name: self.metrics, PERSONAL.name: self.metrics}
        there = [table for table in TABLES if not table.optional or table.name in self.optional]
        return tuple(table.extended(extra.get(table.name, ())) for table in there)


def table_named(name: str) -> Table:
    """The table of that name; `RecordError` if there is none."""
    for table in TABLES:
        if table.name == name:
            return table
    raise RecordError(f"no table '{name:.80}' in a record; allowed: " + ", ".join(t.name for t in TABLES))


def describe(tables: Iterable[Table] = TABLES) -> str:
    """The schema as text, a line a column: table/column, dtype, units, description."""
    lines = [f"schema {SCHEMA_VERSION}"]
    for table in tables:
        marks = ("" if table.superseded else " [kept across attempts]") + (" [optional]" if table.optional else "")
        lines.append(f"{table.name}: {table.description}{marks}")
        for column in table.columns:
            flags = "".join(f" {name}={value}" for name, value in column.flags)
            missing = "" if column.missing is None else f" missing={column.missing}"
            lines.append(f"  {column.name} {column.dtype} [{column.units}] {column.description}{missing}{flags}")
    return "\n".join(lines) + "\n"
