"""Makes one plain file of a run's attempts: compressed, without the marks of a live file, readable by any HDF5 tool."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import h5py

from fedsim.errors import RecordError
from fedsim.record import room, store
from fedsim.record.pieces import JOINED, attempt_numbers, read_columns
from fedsim.record.provenance import Attribute, Provenance
from fedsim.record.reader import Run
from fedsim.record.schema import EVALUATIONS, TABLES, TASKS, Column, RecordPlan, Table
from fedsim.record.writer import one_line, sync

_ERRORS = (OSError, RuntimeError, KeyError, ValueError)
_ROWS_AT_ONCE = 2**19


def join(folder: Path) -> Path:
    """Writes `record.h5` from the attempts in a run folder and returns its path; one that is there is replaced.

    Status and totals are also root attributes; `run/attempts` says what each attempt was and which rows it gave.
    The file is written aside, synced and renamed, so that there is always a whole one or none. A run that is still
    going on can be joined as it is at this moment. `RecordError` if there is nothing to join, or no room.
    """
    numbers = attempt_numbers(folder)
    if not numbers:
        raise RecordError(f"{folder}: no attempts to join")
    run = Run(folder, joined=False)
    path = folder / JOINED
    aside = store.aside(path)
    try:
        with store.new_file(aside, _provenance(run, numbers[-1]), _plan(run)) as file:
            _fill(file, run, numbers[-1])
        room.give_back(aside)
        sync(aside)
        aside.replace(path)
        sync(folder)
    except _ERRORS as error:
        raise RecordError(f"{path}: cannot write the record: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return path


def _fill(file: h5py.File, run: Run, last_attempt: int) -> None:
    """Everything that a run has, into a new file."""
    totals = run.totals()
    plan = _plan(run)
    tables = [run.table(table.name) for table in plan.tables()]
    store.create_run(file, _provenance(run, last_attempt), plan)
    attempts = json.dumps(run.attempts)
    room.take(file, len(attempts))
    store.put_text(file["run"], "attempts", attempts)
    datasets = store.create_tables(file, tables, compressed=True)
    for table in tables:
        for column, dataset in zip(table.columns, datasets[table.name], strict=True):
            _copy(run, table, column, dataset)
    weights = run.weights
    if weights is not None:
        room.take(file, weights.nbytes)
        store.put_weights(file, weights)
    store.put_totals(file, totals)
    store.put_status(file, run.status)


def _provenance(run: Run, last_attempt: int) -> Provenance:
    """The last attempt's, and how the run stands; a number that does not exist is left out."""
    totals = {name: value for name, value in run.totals()._asdict().items() if value == value}
    attributes: dict[str, Attribute] = {**run.attributes, "status": run.status, **totals, "last_attempt": last_attempt}
    return Provenance(attributes, run.config_text, tuple(run.places))


def _plan(run: Run) -> RecordPlan:
    return RecordPlan(
        run.n_parameters,
        run.layout,
        tuple(run.client_names),
        rule_scalars=run.table(TASKS.name).columns[len(TASKS.columns) :],
        metrics=run.table(EVALUATIONS.name).columns[len(EVALUATIONS.columns) :],
        optional=tuple(table.name for table in TABLES if table.optional and run.n_rows(table.name)),
    )


def _copy(run: Run, table: Table, column: Column, dataset: h5py.Dataset) -> None:
    """One column of all attempts, some rows at a time."""
    path = f"{table.name}/{column.name}"
    dataset.resize((run.n_rows(table.name),))
    at = 0
    for piece, kept in run.parts(table.name):
        for first in range(0, kept, _ROWS_AT_ONCE):
            (values,) = read_columns(piece, {path: column.dtype}, first, min(first + _ROWS_AT_ONCE, kept))
            room.take(dataset.file, values.nbytes * 2)  # compressed at worst to a little more
            dataset[at : at + len(values)] = values
            at += len(values)
