"""Records from strangers: whatever a file claims, the answer is a run or one line, in bounded memory and time."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedsim.analysis.tables import summary_table
from fedsim.errors import RecordError
from fedsim.record import guard
from fedsim.record.reader import open_run
from fedsim.record.schema import TABLES


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here changes while it is read."""
    monkeypatch.setattr(guard, "PAUSES_S", ())


Harm = Callable[[h5py.File], None]


def replaced(name: str, **options: Any) -> Harm:
    """Harm that puts another dataset in the place of one."""

    def harm(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return harm


def soft_link(file: h5py.File) -> None:
    del file["tasks/client"]
    file["tasks/client"] = h5py.SoftLink("/tasks/task")


def external_link(file: h5py.File) -> None:
    del file["tasks"]
    file["tasks"] = h5py.ExternalLink("/etc/hostname", "/tasks")


def external_storage(file: h5py.File) -> None:
    del file["run/config"]
    file["run"].create_dataset("config", shape=(), dtype="S8", external=[("/etc/passwd", 0, 8)])


def virtual_storage(file: h5py.File) -> None:
    del file["tasks/task"]
    layout = h5py.VirtualLayout(shape=(10,), dtype="<i8")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(10,))
    file.create_virtual_dataset("tasks/task", layout)


def group_for_column(file: h5py.File) -> None:
    del file["tasks/task"]
    file.create_group("tasks/task")


def attribute(name: str, value: Any, at: str = "/") -> Harm:
    def harm(file: h5py.File) -> None:
        file[at].attrs[name] = value

    return harm


def text(name: str, value: str) -> Harm:
    data = value.encode()
    return replaced(name, data=data, dtype=h5py.string_dtype("utf-8", len(data)))


def columns_that_share_bytes(file: h5py.File) -> None:
    del file["tasks/task"]
    values = np.random.default_rng(1).integers(0, 2**62, 2**17)
    file.create_dataset("tasks/task", data=values, chunks=(2**14,), maxshape=(None,))
    for name in TABLES[0].names:
        if name != "task" and file["tasks"][name].dtype == np.dtype("<i8"):
            del file["tasks"][name]
            file["tasks"][name] = file["tasks/task"]


COLUMN: dict[str, Any] = {"shape": (4,), "chunks": (4,), "maxshape": (None,)}
HARMS: dict[str, Harm] = {
    "column of another type": replaced("tasks/task", dtype="<f8", **COLUMN),
    "column of compounds": replaced("tasks/task", dtype=[("a", "<i8")], **COLUMN),
    "column of texts of any length": replaced("failures/kind", dtype=h5py.string_dtype(), **COLUMN),
    "column of objects": replaced("tasks/task", dtype=h5py.ref_dtype, **COLUMN),
    "column of two dimensions": replaced("tasks/task", shape=(4, 4), dtype="<i8", chunks=(4, 4)),
    "column without chunks": replaced("tasks/task", data=np.zeros(4, "<i8")),
    "scalar for a column": replaced("tasks/task", data=np.int64(4)),
    "huge chunks": replaced("tasks/task", shape=(2**26,), dtype="<i8", chunks=(2**26,)),
    "foreign filter": replaced("tasks/task", dtype="<i8", compression="lzf", **COLUMN),
    "group for a column": group_for_column,
    "soft link": soft_link,
    "external link": external_link,
    "external storage": external_storage,
    "virtual storage": virtual_storage,
    "no status": lambda file: file.__delitem__("run/status"),
    "no run": lambda file: file.__delitem__("run"),
    "no table": lambda file: file.__delitem__("evaluations"),
    "another status": replaced("run/status", data=np.bytes_("excellent"), dtype="S16"),
    "status as a number": replaced("run/status", data=5),
    "totals as texts": replaced("run/summary/updates", data=np.bytes_("many")),
    "schema of the future": attribute("schema_version", 99),
    "schema as a text": attribute("schema_version", np.bytes_("1")),
    "no schema": lambda file: file.attrs.__delitem__("schema_version"),
    "columns that share bytes": columns_that_share_bytes,
    "columns not in JSON": attribute("columns", np.bytes_("{"), at="tasks"),
    "columns nested deeply": attribute("columns", np.bytes_(b"[" * 60_000), at="tasks"),
    "columns of other names": attribute("columns", np.bytes_(b'["a", "b"]'), at="tasks"),
    "columns that are not there": attribute("columns", np.bytes_(json.dumps([*TABLES[1].names, "x"])), at="versions"),
    "columns with a path": attribute("columns", np.bytes_(json.dumps([*TABLES[1].names, "../x"])), at="versions"),
    "thousand columns": attribute(
        "columns", np.bytes_(json.dumps([*TABLES[1].names, *(f"x{i}" for i in range(1000))])), at="versions"
    ),
    "start rows not counts": attribute("start_rows", np.bytes_(b'{"tasks": -5}')),
    "tail rows not counts": attribute("tail_rows", np.bytes_(b'{"tasks": 1.5}')),
    "start rows not a mapping": attribute("start_rows", np.bytes_(b"[5]")),
    "config of any length": replaced("run/config", data="text", dtype=h5py.string_dtype()),
    "config as numbers": replaced("run/config", data=np.zeros(3)),
    "clients not JSON": text("run/clients", "north, south"),
    "clients nested deeply": text("run/clients", "[" * 100_000),
    "clients as a mapping": text("run/clients", '{"0": "north"}'),
    "ranks of odd entries": text("run/ranks", '[{"rank": 0, "colour": "red"}]'),
    "layout with a hole": text("model/layout", '[{"name": "w", "shape": [2], "offset": 4}]'),
    "layout of odd shapes": text("model/layout", '[{"name": "w", "shape": [-2], "offset": 0}]'),
    "layout of nothing": text("model/layout", "[5]"),
    "weights of another type": replaced("model/weights", data=np.zeros(6)),
    "weights that are not stored": replaced("model/weights", shape=(2**40,), dtype="<f4", chunks=(2**18,)),
    "attempts that do not add up": text(
        "run/attempts", json.dumps([{"rows": {table.name: 10**9 for table in TABLES}}])
    ),
    "attempts of nothing": text("run/attempts", "[1]"),
}


def look_at_everything(path: Path) -> None:
    run = open_run(path)
    json.dumps(run.summary(), allow_nan=False)
    summary_table(run)
    _ = run.attempts, run.layout, run.n_parameters, run.client_names, run.places, run.config_text, run.weights
    for table in TABLES:
        run.frame(table.name)


@pytest.mark.parametrize("name", HARMS)
def test_a_forged_record_is_one_clear_line(records: Any, name: str) -> None:
    path = records.finished() / "record.h5"
    with h5py.File(path, "r+") as file:
        HARMS[name](file)
    tracemalloc.start()
    try:
        with pytest.raises(RecordError) as caught:
            look_at_everything(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert peak_bytes < 20 * 2**20


def test_rows_that_are_claimed_but_not_stored_are_not_there(records: Any) -> None:
    path = records.finished() / "record.h5"
    with h5py.File(path, "r+") as file:
        for column in file["tasks"].values():
            column.resize((2**60,))
    run = open_run(path)
    # At most what deflate could have made of the bytes that are stored.
    assert run.n_rows("tasks") * 8 < 1040 * path.stat().st_size


def test_an_unharmed_record_passes_the_same_examination(records: Any) -> None:
    look_at_everything(records.finished() / "record.h5")


def test_attributes_that_are_not_ours_are_left_out(records: Any) -> None:
    path = records.finished() / "record.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "a text of any length"
        file.attrs["matrix"] = np.zeros((3, 3))
    attributes = open_run(path).attributes
    assert "note" not in attributes and "matrix" not in attributes and attributes["rule"] == "fedasync"


def mutated(data: bytes, random_: random.Random) -> bytes:
    """The bytes of a file, cut or with some of them changed."""
    kind = random_.randrange(3)
    if kind == 0:
        return data[: random_.randrange(len(data))]
    changed = bytearray(data)
    if kind == 1:
        for _ in range(random_.randrange(1, 20)):
            changed[random_.randrange(len(changed))] = random_.randrange(256)
    else:
        at = random_.randrange(len(changed))
        changed[at : at + 500] = random_.randbytes(len(changed[at : at + 500]))
    return bytes(changed)


@pytest.mark.parametrize("name", ["record.h5", "record-000.h5", "live.h5"])
def test_a_damaged_record_is_read_or_refused(records: Any, name: str) -> None:
    with records.begin(range(12)) as writer:
        shutil.copy(records.folder / "record-000.h5", records.folder / "live.h5")
        writer.close("done")
    (records.folder / "record-000.h5").unlink()
    records.finished()
    data = (records.folder / name).read_bytes()
    random_ = random.Random(name)
    outcomes = set()
    for _ in range(12):
        (records.folder / "damaged.h5").write_bytes(mutated(data, random_))
        try:
            look_at_everything(records.folder / "damaged.h5")
            outcomes.add("read")
        except RecordError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
