"""How a record lies in HDF5: groups, datasets, attributes as they are created, for the live file and the joined one.

Everything has a fixed length, texts too: SWMR knows no variable-length data, and a reader can bound what it reads.
Files are in the format of HDF5 1.10, which old clusters read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedsim.record import room
from fedsim.record.provenance import Attribute, Provenance
from fedsim.record.schema import NO_TOTALS, STATUS_BYTES, Column, RecordPlan, RunTotals, Table

LIBVER = ("v110", "v110")
WEIGHTS_CHUNK = 65536
CHUNK_CACHE_BYTES = 32768  # a column: two chunks; rows are only added, and HDF5 2 would keep 8 MiB of each column
MAX_ATTRIBUTE_BYTES = 16384  # an object header's message holds 64 KiB
GZIP_LEVEL = 1  # level 4 takes a quarter more time, and a hundredth less room


def aside(path: Path) -> Path:
    """Where a file is made before it gets its name: beside it, and this process's own; what is there goes."""
    found = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        found.unlink()  # it can be a link to elsewhere, in a folder from a stranger
    return found


def new_file(path: Path, provenance: Provenance, plan: RecordPlan) -> h5py.File:
    """An empty file, with room on the disk for what is created in it. `OSError` without."""
    n_texts = len(provenance.config_text) + sum(map(len, plan.client_names)) + 256 * len(provenance.places)
    n_bytes = room.RESERVE_BYTES + 4 * n_texts + 4096 * len(plan.rule_scalars + plan.metrics) + 256 * len(plan.layout)
    room.try_out(path, n_bytes)
    file = h5py.File(path, "w", libver=LIBVER, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
    room.take(file, n_bytes)
    return file


def create_tables(file: h5py.File, tables: Iterable[Table], compressed: bool) -> dict[str, list[h5py.Dataset]]:
    """Empty tables; their columns' datasets by table name, in order.

    A live file is not compressed: each flush would compress its last, partly filled chunks anew and leave the old
    ones behind as holes, since nothing is freed under SWMR. (Measured: 400 flushes of 20 rows made 113 MB of 1.3 MB.)
    """
    datasets = {}
    for table in tables:
        group = file.create_group(table.name)
        put_attribute(group, "description", table.description)
        put_attribute(group, "columns", json.dumps(list(table.names)))
        datasets[table.name] = [_create_column(group, column, compressed) for column in table.columns]
        _attach_scales(datasets[table.name])
    return datasets


def _create_column(group: h5py.Group, column: Column, compressed: bool) -> h5py.Dataset:
    options: dict[str, Any] = {}
    if compressed:
        options = {"compression": "gzip", "compression_opts": GZIP_LEVEL, "shuffle": True}
    dataset = group.create_dataset(
        column.name, shape=(0,), maxshape=(None,), dtype=column.dtype, chunks=(column.chunk_rows,), **options
    )
    put_attribute(dataset, "units", column.units)
    put_attribute(dataset, "description", column.description)
    if column.missing is not None:
        dataset.attrs["missing"] = np.array(column.missing, column.dtype)
    if column.flags:
        dataset.attrs["flag_values"] = np.array([value for _, value in column.flags], column.dtype)
        put_attribute(dataset, "flag_meanings", " ".join(name for name, _ in column.flags))
    return dataset


def _attach_scales(columns: list[h5py.Dataset]) -> None:
    """Makes the first column the dimension of the others, so that netCDF readers such as xarray see one table."""
    columns[0].make_scale(columns[0].name.rsplit("/", 1)[-1])
    for column in columns[1:]:
        column.dims[0].attach_scale(columns[0])


def create_run(file: h5py.File, provenance: Provenance, plan: RecordPlan) -> None:
    """Attributes, texts, status `running`, empty totals and an empty place for the final model."""
    for name, value in provenance.attributes.items():
        put_attribute(file, name, value)
    put_attribute(file, "start_rows", json.dumps(dict(plan.start_rows)))
    if plan.tail_rows:
        put_attribute(file, "tail_rows", json.dumps(dict(plan.tail_rows)))
    run = file.create_group("run")
    run.create_dataset("status", data=np.bytes_("running"), dtype=f"S{STATUS_BYTES}")
    put_text(run, "config", provenance.config_text)
    put_text(run, "ranks", json.dumps([place._asdict() for place in provenance.places]))
    put_text(run, "clients", json.dumps(list(plan.client_names)))
    _create_totals(run)
    _create_model(file, plan)


def _create_totals(run: h5py.Group) -> None:
    group = run.create_group("summary")
    for name, value in NO_TOTALS._asdict().items():
        group.create_dataset(name, data=value, dtype="<i8" if isinstance(value, int) else "<f8")


def _create_model(file: h5py.File, plan: RecordPlan) -> None:
    model = file.create_group("model")
    layout = [{"name": name, "shape": list(shape), "offset": offset} for name, shape, offset in plan.layout]
    put_text(model, "layout", json.dumps(layout))
    # Empty until the end. A contiguous one could not be read after a crash: its storage would appear under SWMR.
    weights = model.create_dataset(
        "weights",
        shape=(0,),
        maxshape=(plan.n_parameters,),
        dtype="<f4",
        chunks=(max(1, min(WEIGHTS_CHUNK, plan.n_parameters)),),
    )
    put_attribute(weights, "units", "1")
    put_attribute(weights, "description", "the final model as one vector; empty while the run has none; see layout")


def put_status(file: h5py.File, status: str) -> None:
    """Overwrites the status in place, and publishes it."""
    file["run/status"][()] = np.bytes_(status)
    file["run/status"].flush()


def put_totals(file: h5py.File, totals: RunTotals) -> None:
    """Overwrites the totals in place, and publishes them."""
    for name, value in totals._asdict().items():
        dataset = file[f"run/summary/{name}"]
        dataset[()] = value
        dataset.flush()


def put_weights(file: h5py.File, weights_P: np.ndarray[Any, Any]) -> None:
    """Writes the final model, float32 (P,), and publishes it."""
    dataset = file["model/weights"]
    dataset.resize(weights_P.shape)
    dataset[...] = weights_P
    dataset.flush()


def put_text(group: h5py.Group, name: str, text: str) -> None:
    """A scalar dataset of fixed-length UTF-8."""
    data = _encoded(text)
    group.create_dataset(name, data=data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def put_attribute(place: h5py.Group | h5py.Dataset, name: str, value: Attribute) -> None:
    """A text attribute of fixed length, cut at `MAX_ATTRIBUTE_BYTES`, or a number; an empty text is left out."""
    if not isinstance(value, str):
        place.attrs[name] = value
        return
    data = fitted(value, MAX_ATTRIBUTE_BYTES)
    if data:
        place.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))


def put_attributes(file: h5py.File, attributes: Mapping[str, Attribute]) -> None:
    """All of these attributes on the file's root."""
    for name, value in attributes.items():
        put_attribute(file, name, value)


def fitted(text: str, n_bytes: int) -> bytes:
    """UTF-8 bytes of a text, at most `n_bytes` of them, cut between characters and then ending in "..."."""
    data = _encoded(text)
    if len(data) <= n_bytes:
        return data
    return data[: n_bytes - 3].decode("utf-8", "ignore").encode() + b"..."


def _encoded(text: str) -> bytes:
    # A command line can hold bytes that are no UTF-8 (surrogates), and fixed-length texts end at a NUL.
    return text.encode("utf-8", "backslashreplace").replace(b"\0", b"\\x00")
