"""The reader: attempts as one run, what is cut and what is kept, joined and single files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedsim.errors import RecordError
from fedsim.record.join import join
from fedsim.record.reader import Run, open_run
from fedsim.record.schema import TABLES
from fedsim.record.settled import lookup3


def attempts(records: Any) -> None:
    """Three attempts: 10 tasks; from 6 on, 4 tasks (with other weights); from 8 on, up to 12."""
    records.begin(range(10)).close("failed")
    records.begin(range(6, 10), attempt=1, start_rows={"tasks": 6, "versions": 6}, shift=0.5).close("stopped")
    records.finish(records.begin(range(8, 12), attempt=2, start_rows={"tasks": 8, "versions": 8}), 12)


def test_an_attempt_is_cut_where_its_successor_starts(records: Any) -> None:
    attempts(records)
    run = open_run(records.folder)
    assert run.column("tasks", "task").tolist() == list(range(12))
    shifts = run.column("tasks", "weight") - (1.0 + np.arange(12) / 8)
    assert shifts[[0, 1, 3, 4, 6, 7, 9, 10]].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0]
    assert run.n_rows("versions") == 12
    assert run.n_rows("workers") == 3  # kept, all of them
    assert [attempt["rows"]["tasks"] for attempt in run.attempts] == [6, 2, 4]
    assert [attempt["status"] for attempt in run.attempts] == ["failed", "stopped", "done"]


def test_a_successor_that_starts_before_several_cuts_them_all(records: Any) -> None:
    records.begin(range(4)).close("failed")
    records.begin(range(4, 6), attempt=1, start_rows={"tasks": 4, "versions": 4}).close("failed")
    records.begin(range(2, 3), attempt=2, start_rows={"tasks": 2, "versions": 2}).close("failed")
    run = open_run(records.folder)
    assert run.column("tasks", "task").tolist() == [0, 1, 2]
    assert [attempt["rows"]["tasks"] for attempt in run.attempts] == [2, 0, 1]


def test_a_kill_while_the_recorded_is_made_again_loses_none_of_it(records: Any) -> None:
    """On the wall clock; three attempts go on from row 4, of which the second alone comes past the ten rows before."""
    tail: dict[str, Any] = {"start_rows": {"tasks": 4, "versions": 4}, "tail_rows": {"tasks": 10, "versions": 10}}
    records.begin(range(10)).close("failed")
    writer = records.begin(range(4, 7), attempt=1, shift=0.5, **tail)
    run = open_run(records.folder)
    assert run.column("tasks", "task").tolist() == list(range(10))
    assert run.column("versions", "version").tolist() == list(range(1, 11))
    assert [attempt["rows"]["tasks"] for attempt in run.attempts] == [10, 0] and run.n_rows("workers") == 2
    records.finish(writer, 7, status="stopped")
    run = open_run(records.folder)
    assert (run.status, run.totals().versions, run.totals().updates, run.weights) == ("stopped", 10, 7, None)
    records.begin(range(4, 11), attempt=2, **tail).close("failed")
    join(records.folder)
    run = open_run(records.folder)
    assert run.column("tasks", "task").tolist() == list(range(11))
    assert [attempt["rows"]["tasks"] for attempt in run.attempts] == [4, 0, 7]
    assert open_run(records.folder / "record-001.h5").column("tasks", "task").tolist() == [4, 5, 6]


def test_history_does_not_depend_on_the_attempts(records: Any, tmp_path: Path) -> None:
    records.begin(range(9)).close("failed")
    records.finish(records.begin(range(7, 12), attempt=1, start_rows={"tasks": 7, "versions": 7}), 12)
    in_two = open_run(records.folder).summary()
    records.folder = tmp_path / "straight"
    records.folder.mkdir()
    records.finish(records.begin(range(12)), 12)
    in_one = open_run(records.folder).summary()
    assert in_two["history_sha256"] == in_one["history_sha256"]
    assert (in_two["attempts"], in_one["attempts"]) == (2, 1)


def test_an_attempt_that_lacks_its_predecessor_is_refused(records: Any) -> None:
    records.begin(range(3)).close("failed")
    records.begin(range(5, 6), attempt=1, start_rows={"tasks": 5, "versions": 3}).close("done")
    with pytest.raises(RecordError, match=r"record-001\.h5: begins at row 5 of table tasks, .* have 3"):
        open_run(records.folder)


def test_an_attempt_alone_is_shown_from_its_first_row(records: Any) -> None:
    attempts(records)
    assert open_run(records.folder / "record-002.h5").column("tasks", "task").tolist() == [8, 9, 10, 11]


def test_a_table_is_cut_to_its_shortest_column(records: Any) -> None:
    records.begin(range(10)).close("done")
    with h5py.File(records.folder / "record-000.h5", "r+") as file:
        file["tasks/weight"].resize((7,))
    run = open_run(records.folder)
    assert (run.n_rows("tasks"), run.n_rows("versions")) == (7, 10)
    assert len(run.tasks) == 7


def test_the_joined_record_says_what_its_attempts_say(records: Any) -> None:
    attempts(records)
    before = Run(records.folder, joined=False)
    path = join(records.folder)
    after = open_run(records.folder)
    assert (path.name, after.files) == ("record.h5", (path,))
    assert after.summary() == before.summary()
    assert after.attempts == before.attempts
    for table in TABLES:
        assert before.frame(table.name).equals(after.frame(table.name)), table.name
        assert after.table(table.name) == before.table(table.name)
    assert (after.layout, after.n_parameters, after.places) == (before.layout, 6, before.places)
    assert after.layout == (("weight", (2, 2), 0), ("bias", (2,), 4))


def test_the_joined_record_opens_without_fedsim(records: Any) -> None:
    with h5py.File(records.finished() / "record.h5", "r") as file:
        assert file.attrs["status"] == b"done"
        assert file.attrs["updates"] == 8
        assert file["tasks/task"].compression == "gzip" and file["tasks/task"].shuffle
        assert file["tasks/weight"].dims[0][0] == file["tasks/task"]  # a netCDF reader sees one table


def test_a_joined_record_alone_is_the_run(records: Any, tmp_path: Path) -> None:
    expected = open_run(records.finished()).summary()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(records.folder / "record.h5", elsewhere)
    assert open_run(elsewhere).summary() == expected
    assert open_run(elsewhere / "record.h5").summary() == expected


def test_a_joined_record_is_passed_over_once_the_run_goes_on(records: Any) -> None:
    records.finished(6)
    records.begin(range(6, 9), attempt=1, start_rows={"tasks": 6, "versions": 6}).close("stopped")
    run = open_run(records.folder)
    assert (run.status, run.n_rows("tasks"), len(run.files)) == ("stopped", 9, 2)
    join(records.folder)
    assert [path.name for path in open_run(records.folder).files] == ["record.h5"]


def test_the_join_of_a_killed_run_does_not_hide_what_comes_after(records: Any) -> None:
    writer = records.begin(range(4))
    join(records.folder)
    assert open_run(records.folder / "record.h5").n_rows("tasks") == 4
    writer.append("tasks", records.task_row(4))
    writer.flush()
    assert open_run(records.folder).n_rows("tasks") == 5
    writer.close("failed")


def test_a_run_can_be_looked_at_again(records: Any) -> None:
    writer = records.begin(range(2))
    run = open_run(records.folder)
    assert len(run.tasks) == 2
    writer.append("tasks", records.task_row(2))
    records.finish(writer, 3)
    assert (len(run.tasks), run.status) == (2, "running")
    run.refresh()
    assert (len(run.tasks), run.status) == (3, "done")


def test_tables_are_data_frames_with_units(records: Any) -> None:
    run = open_run(records.finished())
    assert list(run.tasks.columns) == [*TABLES[0].names, "discount"]
    assert run.tasks.attrs["units"]["virtual_arrival_s"] == "s"
    assert str(run.tasks.dtypes["task"]) == "int64" and str(run.tasks.dtypes["train_s"]) == "float32"
    assert run.failures.message.tolist() == ["worker 1 was slow: ünïcode"]
    assert run.evaluations.accuracy.tolist() == [0.25, 0.75, 0.25, 0.75]
    assert run.workers.n_tasks.tolist() == [12]
    assert len(run.versions) == 12


def test_provenance_and_texts_are_read_back(records: Any) -> None:
    run = open_run(records.finished())
    assert run.config_text == "name: made-up-3\nseed: 3\nclock: virtual\ndata:\n  seed: fixed\n"
    assert run.client_names == ["north", "south"]
    assert run.attributes["slurm_job_id"] == "77" and "HOME" not in run.attributes
    assert "ünïcode.yaml" in str(run.attributes["command"]).encode().decode("unicode_escape")
    assert [(place.rank, place.host, place.device) for place in run.places] == [
        (0, "node1", "cpu"),
        (1, "node2", "cuda:0"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "no record in this folder; expected record.h5 or record-000.h5"),
        ("nothing-here", "no such run folder or record"),
        ("text.h5", "not a readable record"),
        ("empty.h5", "not a readable record"),
        ("other.h5", "not a record of fedsim"),
    ],
)
def test_what_is_no_run_is_one_clear_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "text.h5").write_text("this is not HDF5\n" * 100)
    (tmp_path / "empty.h5").touch()
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(RecordError, match=text) as caught:
        open_run(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_refused_with_those_there_are(records: Any) -> None:
    run = open_run(records.finished())
    with pytest.raises(RecordError, match="table tasks has no column 'wieght'; allowed: task, client"):
        run.column("tasks", "wieght")
    with pytest.raises(RecordError, match="no table 'rounds'"):
        run.frame("rounds")


def test_h5dump_reads_a_finished_record_and_a_live_one(records: Any) -> None:
    h5dump = shutil.which("h5dump")
    if h5dump is None:
        pytest.skip("h5dump is not on the PATH (Debian: hdf5-tools)")
    writer = records.begin(range(3))
    live = [h5dump, "-d", "/tasks/task", str(records.folder / "record-000.h5")]
    assert "(0): 0, 1, 2" in subprocess.run(live, capture_output=True, text=True, check=True).stdout
    records.finish(writer, 3)
    join(records.folder)
    for name in ("record-000.h5", "record.h5"):
        done = subprocess.run([h5dump, str(records.folder / name)], capture_output=True, text=True, check=True)
        assert '"s"' in done.stdout and "time of the dispatch" in done.stdout and '"done' in done.stdout


def test_the_metadata_checksum_is_that_of_hdf5(records: Any) -> None:
    head = (records.finished() / "record.h5").read_bytes()[:48]
    assert lookup3(head[:44]) == int.from_bytes(head[44:], "little")
