from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import RecordError
from fedsim.record import schema
from fedsim.types import Outcome

GOLDEN = Path(__file__).parents[2] / "golden" / "record_schema.txt"


def test_schema_is_the_published_one() -> None:
    # A change of this text is a change of every record: raise SCHEMA_VERSION, teach the reader the old one.
    assert schema.describe() == GOLDEN.read_text()


def test_rows_have_the_columns_of_their_table() -> None:
    rows = (
        *(schema.TaskRow, schema.VersionRow, schema.EvaluationRecord, schema.WorkerRow, schema.FailureRow),
        schema.PersonalRecord,
    )
    for table, row in zip(schema.TABLES, rows, strict=True):
        assert table.names == row._fields


def test_every_column_says_what_it_is() -> None:
    for table in schema.TABLES:
        for column in table.columns:
            assert column.units and column.description, column.name
            assert np.dtype(column.dtype).itemsize == column.itemsize
            assert column.chunk_rows >= 16


def test_outcomes_are_named() -> None:
    (outcome,) = [column for column in schema.TASKS.columns if column.name == "outcome"]
    assert dict(outcome.flags) == {name.lower(): value for name, value in Outcome.__members__.items()}


def test_history_is_made_of_columns_of_tasks() -> None:
    assert {name for name, _ in schema.HISTORY} <= set(schema.TASKS.names)


@pytest.mark.parametrize("name", ["task", "", "a/b", "9lives", "x" * 65, "né"])
def test_extra_columns_with_taken_or_odd_names_are_refused(name: str) -> None:
    with pytest.raises(RecordError, match="table tasks"):
        schema.TASKS.extended([schema.scalar_column(name, "")])


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(RecordError, match=r"no table 'privacy'.*tasks, versions"):
        schema.table_named("privacy")


def test_importing_the_schema_costs_no_hdf5() -> None:
    heavy = "('h5py', 'pandas', 'torch', 'mpi4py')"
    code = f"import sys, fedsim.record.schema; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
