"""Runs that send updates and versions in fewer bytes, in one set of ranks: `python compressed.py FOLDER [--replay]`.

Prints a line of JSON a run: what has to be the same on any number of ranks, and the bytes that travelled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fedsim
from fedsim.engine.launching import find_world
from fedsim.engine.run import Caller, replay_run

KEPT = ("status", "model_sha256", "history_sha256", "versions", "updates", "metrics")
SMALLEST = {
    "server_updates_bytes": 0,
    "server_versions_bytes": 0,
    "worker_updates_bytes": 0,
    "worker_versions_bytes": 0,
}
BASE: dict[str, Any] = {
    "seed": 3,
    "data": {
        "dataset": "synthetic-images",
        "clients": 20,
        "shape": [64],
        "classes": 5,
        "samples": 20,
        "test_samples": 50,
    },
    "model": {"kind": "mlp", "hidden": [64]},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 10, "epochs": 1},
    "devices": {
        "compute": {"time": {"law": "exponential", "mean": 1.0}},
        "download": {"bytes_per_s": {"law": "constant", "mean": 1e4}},
        "upload": {"bytes_per_s": {"law": "lognormal", "mean": 1e4, "sigma": 1.0}},
        "loss_probability": 0.1,
    },
    "schedule": {"policy": "buffered", "concurrency": 6, "buffer": 3},
    "aggregation": {"rule": "fedbuff"},
    "evaluation": {"every_versions": None},
    "stop": {"updates": 30},
}
ASYNC = {"schedule": {"policy": "async", "concurrency": 6}, "aggregation": {"rule": "fedasync"}}
ROUNDS = {"schedule": {"policy": "sync", "cohort": 4, "over_selection": 1.5}, "aggregation": {"rule": "scaffold"}}
RUNS: dict[str, dict[str, Any]] = {
    "none": {},
    "float16": {"compression": {"updates": {"kind": "float16"}, "versions": "float16"}},
    "top-k-models": {**ASYNC, "compression": {"updates": {"kind": "top-k", "fraction": 0.02}, "versions": "bfloat16"}},
    "qsgd-dynamic": {
        "placement": "dynamic",
        "memory": SMALLEST,
        "compression": {"updates": {"kind": "qsgd", "bits": 4, "bucket": 100}},
    },
    "sign-scaffold": {**ROUNDS, "memory": SMALLEST, "compression": {"updates": {"kind": "sign"}}},
    "reduce": {"reduce": {"at": "workers", "norm_bound": 4.0}, "compression": {"versions": "bfloat16"}},
}

REPLAYED = ("top-k-models", "qsgd-dynamic")


def found_in(run: fedsim.Run) -> dict[str, Any]:
    """What has to be equal, what the workers say they sent and got, and the virtual times of a transfer."""
    summary = run.summary()
    columns = run.columns("workers", ["worker", "sent_bytes", "received_bytes"])
    workers = sorted(set(columns["worker"].tolist()) - {0})
    last = [np.flatnonzero(columns["worker"] == worker)[-1] for worker in workers]
    bytes_of = {name: float(columns[name][last].sum()) for name in ("sent_bytes", "received_bytes")}
    names = ("client", "virtual_upload_s", "virtual_download_s")
    times = {name: run.column("tasks", name).tolist() for name in names}
    return {"kept": {key: summary[key] for key in KEPT}, **bytes_of, **times}


def main(folder: Path, replays: bool) -> None:
    """One run after the other, on the same ranks."""
    world = find_world(os.environ)
    for name, sections in RUNS.items():
        run = fedsim.run({**BASE, "name": name, **sections}, folder / name, world=world)
        found = {} if run is None else found_in(run)
        if replays and name in REPLAYED:
            again = replay_run(folder / name, None, Caller(world))
            if again is not None:
                found["replayed"] = {key: fedsim.open_run(again.folder).summary()[key] for key in KEPT}
        if run is not None:
            print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--replay" in sys.argv)
