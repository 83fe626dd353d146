"""Whether a host holds its data once: proportional memory (PSS) of many ranks, with and without the data set."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.errors import LaunchError
from fedsim.population.nodecache import VARIABLE

SHAPE = (3, 32, 32)
CLIENTS = 512
FEW_SAMPLES = CLIENTS  # of the data set that counts as empty: one a client
WORKER_DATA_BYTES = 2**21  # what each worker may keep of shards, beside the data
RATIO = Target(most=1.3)
COHORT = 32  # so that what updates wait at rank zero is little beside the data
VERSIONS = 400  # a run is long enough to be looked at several times
_MIB = 2.0**20
_EVERY_S = 0.1


def measure(launcher: Launcher, repeat: int, megabytes: int, ranks: int) -> Report:
    """The report: PSS that the data set adds to one rank and to `ranks` of them, summed, and its ratio."""
    n_samples = max(FEW_SAMPLES, megabytes * 10**6 // int(np.prod(SHAPE)))
    large, small = (_archive(launcher.folder / f"data-{n}.npz", n) for n in (n_samples, FEW_SAMPLES))
    runs: list[Mapping[str, Any]] = []
    with _environment(VARIABLE, str(launcher.folder / "copies")):
        _pss_bytes(launcher, "warm-up", large, ranks)  # the copy is made here, by one rank, with all of it in memory
        for i in range(repeat):
            one, many = (
                _pss_bytes(launcher, f"{n}-full-{i}", large, n) - _pss_bytes(launcher, f"{n}-empty-{i}", small, n)
                for n in (1, ranks)
            )
            runs.append({"one_bytes": one, "many_bytes": many})
            launcher.say(f"{i}: the data set adds {one / _MIB:,.0f} MiB to one rank, {many / _MIB:,.0f} to {ranks}")
    return Report(
        bench="node",
        machine=launcher.machine,
        what=f"{n_samples:,} images of {SHAPE} bytes in an NPZ file; {COHORT} of {CLIENTS} clients take one step each "
        f"in each of {VERSIONS} versions; PSS without libraries, summed over all ranks, at its highest, less that of "
        f"the same ranks with {FEW_SAMPLES} images",
        settings={"megabytes": megabytes, "ranks": ranks, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(runs, ranks),
        runs=runs,
    )


def _figures(runs: Sequence[Mapping[str, Any]], ranks: int) -> list[Figure]:
    one, many = ([run[key] for run in runs] for key in ("one_bytes", "many_bytes"))
    return [
        Figure.of("data set, one rank", [value / _MIB for value in one], "MiB"),
        Figure.of(f"data set, {ranks} ranks", [value / _MIB for value in many], "MiB"),
        Figure.of(f"ratio of {ranks} to one", [a / b for a, b in zip(many, one, strict=True)], "1", RATIO),
    ]


def _archive(path: Path, n_samples: int) -> Path:
    """An NPZ file of images that hold their sample's number, and of labels; few test images."""
    images = np.empty((n_samples, *SHAPE), np.uint8)
    images[:] = (np.arange(n_samples) % 251)[:, None, None, None]
    labels = (np.arange(n_samples) % 10).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:10], "test_labels": labels[:10]}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stubs take the names for `allow_pickle`
    return path


def _config(data: Path) -> dict[str, Any]:
    return {
        "data": {"dataset": "npz", "path": str(data), "classes": 10},
        "partition": {"kind": "iid", "clients": CLIENTS},
        "model": {"kind": "logistic"},
        "training": {
            "optimizer": {"kind": "sgd", "learning_rate": 0.001},
            "batch_size": 1,
            "steps": 1,
        },
        "schedule": {"policy": "sync", "cohort": COHORT},
        "aggregation": {"rule": "fedavg"},
        "evaluation": {"every_versions": None},
        "memory": {"worker_data_bytes": WORKER_DATA_BYTES},
        "stop": {"versions": VERSIONS},
        "device": "cpu",
    }


def _pss_bytes(launcher: Launcher, name: str, data: Path, ranks: int) -> int:
    """The highest sum of all ranks' PSS while a run lasts."""
    sampler = _Sampler(str(launcher.folder / f"{name}.yaml"))
    with sampler:
        launcher.run(name, _config(data), ranks - 1)
    if not sampler.most_bytes:
        raise LaunchError("no rank's memory could be read: /proc/PID/smaps is needed (Linux)")
    return sampler.most_bytes


class _Sampler(threading.Thread):
    """Reads the PSS of the processes whose command line has `mark`, again and again, while the `with` block lasts."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._mark = mark.encode()
        self._ended = threading.Event()

    def run(self) -> None:
        """The thread's work."""
        while not self._ended.wait(_EVERY_S):
            self.most_bytes = max(self.most_bytes, sum(map(_pss_of, self._ranks())))

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()

    def _ranks(self) -> Iterator[Path]:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if self._mark in words and b"fedsim.bench.rank" in words[:3]:
                yield folder


def _pss_of(process: Path) -> int:
    """A process's PSS in bytes, less that of libraries, which other processes of this host have mapped too."""
    try:
        text = (process / "smaps").read_text("utf-8", "replace")
    except OSError:  # it has just ended
        return 0
    total, counts = 0, True
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # ADDRESSES PERMISSIONS OFFSET DEVICE INODE [PATH]
            counts = ".so" not in rest.rpartition("/")[2]
        elif counts and key == "Pss:":
            total += int(rest.split()[0]) * 1024
    return total


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for the runs that are started meanwhile."""
    former = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if former is None:
            del os.environ[name]
        else:
            os.environ[name] = former
