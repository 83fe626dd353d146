"""Whole files of each kind that is read from users, and what is done with a mutant of each."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedsim import configfile

ROOT = Path(__file__).parents[2]
N_CLIENTS = 3
Seed = tuple[bytes, str, Callable[[Path], object]]


def seeds_of_files(folder: Path) -> dict[str, Seed]:
    """Whole files by name: their bytes, the name to give a mutant, and what is done with it."""
    return {**_of_a_run(folder), **_of_data(), **_of_traces()}


# ------------------------------------------------------------------------------------------------- what a run leaves


def _of_a_run(folder: Path) -> dict[str, Seed]:
    import fedsim
    from fedsim.record.checkpoint import Checkpoint
    from fedsim.record.reader import open_run

    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    (folder / "c.yaml").write_text(text.replace("versions: 200", "versions: 12") + "checkpoint: {every_versions: 4}\n")
    fedsim.run(folder / "c.yaml", folder / "run")

    def read_run(path: Path) -> object:
        run = open_run(path)
        return run.summary(), run.tasks, run.workers, run.failures, run.places, run.layout, run.attempts

    def read_checkpoint(path: Path) -> object:
        found = Checkpoint(path)
        return list(found.versions(14)), restored(found)

    def restored(found: Any) -> None:
        from fedsim import snapshot
        from fedsim.engine import resume
        from fedsim.engine.plan import plan

        made = plan(configfile.load(folder / "c.yaml"), folder)
        with resume.understood(found):
            made.schedule().restore(snapshot.part(found.snapshot, "schedule"))
            snapshot.put(made.rule.init(made.initial_P), snapshot.part(found.snapshot, "rule"))

    run = folder / "run"
    checkpoints = sorted(run.glob("checkpoint-*.h5"))
    return {
        "record": ((run / "record.h5").read_bytes(), "m.h5", read_run),
        "attempt": ((run / "record-000.h5").read_bytes(), "m.h5", read_run),
        "checkpoint": (checkpoints[-1].read_bytes(), "m.h5", read_checkpoint),
    }


# ------------------------------------------------------------------------------------------------- data


def _of_data() -> dict[str, Seed]:
    images, labels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6, dtype=np.uint8) % 2
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    npz, packed = io.BytesIO(), io.BytesIO()
    np.savez(npz, **arrays)
    np.savez_compressed(packed, **arrays)
    csv = b"client,a,b,label\n" + b"".join(b"%d,%d,1.5,%d\n" % (i % 3, i, i % 2) for i in range(20))
    seeds: dict[str, Seed] = {
        "npz": (npz.getvalue(), "m.npz", _of_one_file("npz")),
        "npz, compressed": (packed.getvalue(), "m.npz", _of_one_file("npz")),
        "csv": (csv, "m.csv", _of_one_file("csv", label="label", client="client")),
        "hdf5": (_clients(images, labels), "m.h5", _of_one_file("hdf5")),
        "hdf5, compressed": (_clients(images, labels, compression="gzip"), "m.h5", _of_one_file("hdf5")),
    }
    whole = {"images": _idx(images), "labels": _idx(labels)}
    for part, data in whole.items():
        seeds[f"idx {part}"] = (data, "m.idx", _of_idx(part, whole))
        seeds[f"idx {part}, compressed"] = (gzip.compress(data, mtime=0), "m.idx", _of_idx(part, whole))
    return seeds


def _idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _clients(images: np.ndarray, labels: np.ndarray, **options: Any) -> bytes:
    """HDF5 with a group a client."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for client in range(N_CLIENTS):
            group = file.create_group(f"examples/client {client}")
            group.create_dataset("pixels", data=images[client::N_CLIENTS], **options)
            group.create_dataset("label", data=labels[:2].astype(np.int32), **options)
    return stream.getvalue()


def _population(data: dict[str, Any], partition: dict[str, Any], base_dir: Path) -> object:
    """Every shard of a population, or what it is refused with."""
    from fedsim import population

    base = configfile.load(ROOT / "configs" / "quickstart.yaml").model_dump()
    mapping = {**base, "data": data, "partition": partition, "model": {"kind": "logistic"}}
    people = population.build(configfile.from_mapping(mapping), base_dir)
    tests = [people.test_shard(client) for client in people.test_clients()]
    return [people.shard(client) for client in range(people.n_clients)], tests, people.central_test()


def _of_one_file(dataset: str, **rest: str) -> Callable[[Path], object]:
    natural = dataset in ("csv", "hdf5")
    partition = {"kind": "natural"} if natural else {"kind": "iid", "clients": 2}
    return lambda path: _population({"dataset": dataset, "path": str(path), **rest}, partition, path.parent)


def _of_idx(part: str, whole: dict[str, bytes]) -> Callable[[Path], object]:
    """One of the four files is the mutant."""

    def read(path: Path) -> object:
        data = {"dataset": "idx"}
        for name, content in whole.items():
            (path.parent / name).write_bytes(content)
            data[name] = data[f"test_{name}"] = name
        data[part] = path.name
        return _population(data, {"kind": "iid", "clients": 2}, path.parent)

    return read


# ------------------------------------------------------------------------------------------------- traces


def _of_traces() -> dict[str, Seed]:
    values = b"client,value\n" + b"".join(b"%d,%d.5\n" % (i % N_CLIENTS, i + 1) for i in range(12))
    windows = b"client,start_s,end_s\n" + b"".join(
        b"%d,%d,%d.25\n" % (i % N_CLIENTS, 10 * i, 10 * i + 4) for i in range(12)
    )
    law = {"law": "trace", "path": "m.csv"}
    latency = {"download": {"latency_s": law, "bytes_per_s": law}}
    there = {"kind": "trace", "path": "m.csv", "period_s": 200.0}
    return {
        "trace of times": (values, "m.csv", _of_devices({"compute": {"time": law, "slowness": law}})),
        "trace of links": (values, "m.csv", _of_devices(latency)),
        "trace of windows": (windows, "m.csv", _of_devices({"availability": {**there, "period_s": None}})),
        "trace of windows, repeated": (windows, "m.csv", _of_devices({"availability": there})),
    }


def _of_devices(devices: dict[str, Any]) -> Callable[[Path], object]:
    """Plans tasks and asks who is there, a few hundred times."""

    def read(path: Path) -> object:
        from fedsim.config import DevicesConfig
        from fedsim.population.devices import Devices

        made = Devices(DevicesConfig.model_validate(devices), 1, N_CLIENTS, path.parent, 1000, 1000)
        tasks = [made.plan(task % N_CLIENTS, task, 3, 30, 7.0 * task) for task in range(60)]
        assert all(plan.arrival_s == plan.arrival_s for plan in tasks)
        return tasks

    return read
