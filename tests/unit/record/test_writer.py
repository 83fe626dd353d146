"""The writer: what it takes and refuses, when rows reach the disk, and what a kill or a full disk leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedsim.errors import RecordError
from fedsim.record.reader import open_run
from fedsim.record.schema import STATUSES, RunTotals
from fedsim.record.store import fitted

CONFTEST = Path(__file__).with_name("conftest.py")


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    """Runs a program that finds `records`, `task_row` and so on ready for this folder."""
    head = f"""
        import runpy, sys, time
        from pathlib import Path
        names = runpy.run_path({str(CONFTEST)!r})
        task_row, records = names["task_row"], names["Records"](Path({str(folder)!r}))
    """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


def said(process: subprocess.Popen[str], word: str) -> None:
    """Waits for a line of the program."""
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line == f"{word}\n", process.stderr.read()


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    program = """
        writer = records.begin(range(5000))
        writer.append("tasks", task_row(5000))
        print("flushed", flush=True)
        time.sleep(60)
    """
    process = start(program, tmp_path)
    try:
        said(process, "flushed")
        live = open_run(tmp_path)
        assert (live.status, live.n_rows("tasks")) == ("running", 5000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = open_run(tmp_path)
    assert (killed.status, killed.n_rows("tasks"), killed.n_rows("versions")) == ("running", 5000, 5000)
    assert killed.column("tasks", "discount").tolist() == [task * 0.5 for task in range(5000)]
    assert killed.weights is None
    assert killed.summary()["updates"] == 3334


def test_a_run_is_readable_while_it_is_written(tmp_path: Path) -> None:
    program = """
        writer = records.begin()
        print("open", flush=True)
        for task in range(100_000):
            writer.append("tasks", task_row(task))
            if task % 50 == 49:
                writer.flush()
    """
    process = start(program, tmp_path)
    try:
        said(process, "open")
        run, seen = open_run(tmp_path), []
        for _ in range(20):
            run.refresh()
            columns = run.columns("tasks", ["task", "client", "virtual_arrival_s"])
            seen.append(len(columns["task"]))
            assert np.array_equal(columns["task"], np.arange(seen[-1]))
            assert np.array_equal(columns["client"], columns["task"] % 4)
            assert np.array_equal(columns["virtual_arrival_s"], columns["task"] + 1.0)
    finally:
        process.kill()
        process.wait()
    assert seen == sorted(seen) and seen[-1] > seen[0]


def test_any_hdf5_program_reads_a_live_record_and_none_writes_it(tmp_path: Path) -> None:
    program = """
        writer = records.begin(range(50))
        print("open", flush=True)
        for task in range(50, 100_000):
            writer.append("tasks", task_row(task))
            if task % 50 == 49:
                writer.flush()
    """
    process = start(program, tmp_path)
    path = tmp_path / "record-000.h5"
    try:
        said(process, "open")
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r+")
        for swmr in (False, True) * 5:
            with h5py.File(path, "r", swmr=swmr) as file:
                tasks = file["tasks/task"][:]
            assert len(tasks) >= 50 and np.array_equal(tasks, np.arange(len(tasks)))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    with h5py.File(path, "r") as file:
        assert file["run/status"][()] == b"running"
        assert file["tasks/task"].size >= len(tasks)


def test_a_full_disk_is_one_clear_error_and_ends_as_failed(tmp_path: Path) -> None:
    # A limit on the file's size stands for the full disk: HDF5 sees a write that fails, either way.
    program = """
        import resource
        from fedsim.errors import RecordError
        writer = records.begin(range(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        errors = []
        for task in range(100, 200_000):
            try:
                writer.append("tasks", task_row(task))
            except RecordError as error:
                errors.append(str(error))
                if len(errors) == 3:
                    break
        assert len(errors) == 3 and len(set(errors)) == 1, errors
        assert "cannot write the record" in errors[0] and "\\n" not in errors[0]
        writer.close("failed")
        print("done", flush=True)
    """
    process = start(program, tmp_path)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("done\n", 0), err
    run = open_run(tmp_path)
    tasks = run.column("tasks", "task")
    assert run.status == "failed"
    assert len(tasks) >= 100 and np.array_equal(tasks, np.arange(len(tasks)))


def test_buffered_rows_are_written_after_flush_s_or_at_flush_rows(records: Any) -> None:
    writer = records.begin()

    def on_disk() -> int:
        return open_run(records.folder).n_rows("tasks")

    writer.tick(100.0)
    writer.append("tasks", records.task_row(0))
    writer.tick(101.9)
    assert on_disk() == 0
    writer.tick(102.0)
    assert on_disk() == 1
    for task in range(1, 4097):
        writer.append("tasks", records.task_row(task))
    assert on_disk() == 4097
    writer.close("stopped")


def test_rows_counts_what_is_still_buffered(records: Any) -> None:
    writer = records.begin(range(3))
    for task in (3, 4):
        writer.append("tasks", records.task_row(task))
    assert writer.rows() == {"tasks": 5, "versions": 3, "evaluations": 0, "workers": 1, "failures": 0}
    writer.close("done")
    assert open_run(records.folder).n_rows("tasks") == 5


def test_rows_and_columns_keep_their_order(records: Any) -> None:
    def columns(first: int, stop: int) -> list[np.ndarray[Any, Any]]:
        return [np.array(values) for values in zip(*map(records.task_row, range(first, stop)), strict=True)]

    writer = records.begin()
    writer.extend_columns("tasks", columns(0, 3))
    writer.append("tasks", records.task_row(3))
    writer.append("tasks", records.task_row(4))
    writer.extend_columns("tasks", columns(5, 9))
    writer.append("tasks", records.task_row(9))
    assert writer.rows()["tasks"] == 10
    writer.flush()
    writer.extend_columns("tasks", columns(10, 5000))  # more than are kept back
    assert open_run(records.folder).n_rows("tasks") == 5000
    writer.extend_columns("tasks", columns(5000, 5002))
    writer.close("done")
    run = open_run(records.folder)
    stored = run.columns("tasks", ["task", "virtual_arrival_s"])
    assert stored["task"].tolist() == list(range(5002))
    assert stored["virtual_arrival_s"].tolist() == [task + 1.0 for task in range(5002)]


def test_columns_of_other_lengths_or_kinds_are_refused(records: Any) -> None:
    writer = records.begin()
    columns = [np.array(values) for values in zip(*map(records.task_row, range(3)), strict=True)]
    with pytest.raises(ValueError, match=r"columns of \[2, 3\] rows"):
        writer.extend_columns("tasks", [*columns[:-1], columns[-1][:2]])
    with pytest.raises(ValueError, match=r"int64 \(3,\), not one dimension of float64"):
        writer.extend_columns("tasks", [*columns[:-1], np.arange(3)])
    writer.close("done")


def test_a_record_is_never_written_over(records: Any) -> None:
    records.begin(range(3)).close("done")
    with pytest.raises(RecordError, match=r"record-000\.h5: exists already"):
        records.begin()
    assert open_run(records.folder).n_rows("tasks") == 3
    assert os.listdir(records.folder) == ["record-000.h5"]


def test_a_folder_that_is_not_there_is_one_clear_error(records: Any) -> None:
    records.folder = records.folder / "nowhere"
    with pytest.raises(RecordError, match=r"nowhere.*cannot create the record"):
        records.begin()


@pytest.mark.parametrize(
    ("table", "row", "complaint"),
    [
        ("versions", (1, 1.0, 1.0), r"versions: rows of \[3\] values, not 7"),
        ("versions", (1.5, 1.0, 1.0, 1, 1.0, 0.0, 0), "versions/version: float64 in a column of integers"),
        ("workers", (1.0, 2**31, *[0] * 10), "workers/worker"),
        ("versions", (2**63, 1.0, 1.0, 1, 1.0, 0.0, 0), "versions/version"),
        ("versions", (1, "soon", 1.0, 1, 1.0, 0.0, 0), "versions/virtual_s"),
        ("failures", (1.0, 0, 0, 0, 5, "text"), "failures/kind"),
    ],
)
def test_rows_that_do_not_fit_are_refused(records: Any, table: str, row: Any, complaint: str) -> None:
    writer = records.begin(range(2))
    writer.append(table, row)
    with pytest.raises(ValueError, match=complaint):
        writer.flush()
    with pytest.raises(ValueError, match=complaint):
        writer.close("done")
    run = open_run(records.folder)
    assert (run.status, run.n_rows("tasks")) == ("failed", 2)


def test_an_unknown_table_is_refused(records: Any) -> None:
    with records.begin() as writer, pytest.raises(RecordError, match="no table 'task' in a record; allowed: tasks"):
        writer.append("task", (1,))


def test_a_record_left_open_by_an_error_is_closed_as_failed(records: Any) -> None:
    with pytest.raises(ZeroDivisionError), records.begin(range(3)):
        _ = 1 // 0
    assert open_run(records.folder).status == "failed"


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_read_back(records: Any, status: str) -> None:
    records.begin().close(status)
    assert open_run(records.folder).status == status


def test_another_status_is_refused(records: Any) -> None:
    with records.begin() as writer, pytest.raises(ValueError, match="allowed: running, done"):
        writer.close("finished")


@pytest.mark.parametrize("weights", [np.zeros(5, np.float32), np.zeros(6), np.zeros((6, 1), np.float32)])
def test_weights_of_another_shape_or_type_are_refused(records: Any, weights: Any) -> None:
    with records.begin() as writer, pytest.raises(ValueError, match=r"not float32 \(6,\)"):
        writer.close("done", None, weights)


def test_totals_and_weights_are_read_back(records: Any) -> None:
    weights = np.array([1.5, -0.0, np.nan, np.inf, 1e-45, 3.0], np.float32)
    records.begin(range(3)).close("done", RunTotals(7, 6, float("nan"), 2.5), weights)
    run = open_run(records.folder)
    assert run.weights is not None and run.weights.tobytes() == weights.tobytes()
    assert run.totals()[:2] == (7, 6) and np.isnan(run.totals().virtual_s) and run.totals().wall_s == 2.5


def test_a_closed_attempt_opens_plainly_and_describes_itself(records: Any) -> None:
    records.finish(records.begin(range(3)), 3)
    with h5py.File(records.folder / "record-000.h5", "r") as file:
        assert file["run/status"][()] == b"done"
        assert file["tasks/virtual_arrival_s"].attrs["units"] == b"s"
        assert file["tasks/outcome"].attrs["flag_meanings"] == b"applied lost aborted failed"
        assert file["tasks/discount"].attrs["description"] == b"staleness discount"
        assert all(column.attrs["description"] for table in ("tasks", "workers") for column in file[table].values())


def test_flushing_often_leaves_no_holes(records: Any) -> None:
    writer = records.begin()
    path = records.folder / "record-000.h5"
    empty = path.stat().st_size
    for task in range(2000):
        writer.append("tasks", records.task_row(task))
        if task % 10 == 9:
            writer.flush()
    writer.close("done")
    # 21 columns of 16 KiB chunks: at most one that is partly filled each, and some kilobytes of index.
    assert path.stat().st_size - empty < 2000 * 160 + 21 * 16384 + 100_000


def test_appending_ten_thousand_rows_costs_a_small_part_of_a_second(records: Any) -> None:
    rows = [records.task_row(task) for task in range(10_000)]
    writer = records.begin()
    began = time.process_time()
    for row in rows:
        writer.append("tasks", row)
    writer.flush()
    spent = time.process_time() - began
    writer.close("done")
    assert spent < 0.2, f"{spent * 100:.1f} us a row"  # 2 to 4 are usual


@pytest.mark.parametrize(
    ("text", "n_bytes", "expected"),
    [
        ("short", 8, b"short"),
        ("exactly8", 8, b"exactly8"),
        ("more than8", 8, b"more ..."),
        ("äöüäöü", 8, "äö".encode() + b"..."),
        ("nul\0inside", 16, b"nul\\x00inside"),
        ("\udcff", 8, b"\\udcff"),
    ],
)
def test_texts_are_cut_between_characters(text: str, n_bytes: int, expected: bytes) -> None:
    assert fitted(text, n_bytes) == expected
