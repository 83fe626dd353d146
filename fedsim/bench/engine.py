"""Whether the engine keeps up: whole jobs against as many trainers alone, in turn; and what rank zero takes an update.

The jobs run rank zero beside the workers on the same cores, so a share of 100 % would mean that rank zero, the messages
and the waiting cost nothing at all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import share_of_time, steady

CLIENTS = 1000
CONCURRENCY = 256
BUFFER = 64
ALONE_S = 3.0


class Case(NamedTuple):
    """One kind of job: the model, what differs from FedAsync, how long a run is, and what is asked of it."""

    model: str
    changes: Mapping[str, Any]
    length: float  # of a run, in updates for each one of `--updates`: several for each client, whose data are made once
    share: float | None = None  # of the trainers alone, in per cent
    rate: float | None = None  # updates a second


_IN_FLIGHT = {"policy": "async", "concurrency": CONCURRENCY}
_BUFFERED = {"policy": "buffered", "concurrency": CONCURRENCY, "buffer": BUFFER}
_FEDBUFF = {"schedule": _BUFFERED, "aggregation": {"rule": "fedbuff"}}
CASES = {
    "cnn": Case("cnn", {"schedule": _IN_FLIGHT}, 0.07, share=90.0),
    "mlp": Case("mlp", {"schedule": _IN_FLIGHT}, 0.5, share=65.0),
    "cnn-buffered": Case("cnn", _FEDBUFF, 0.07, share=90.0),
    "mlp-buffered": Case("mlp", _FEDBUFF, 0.5, share=65.0),
    "tiny-sync": Case(
        "tiny", {"schedule": {"policy": "sync", "cohort": CONCURRENCY}, "aggregation": {"rule": "fedavg"}}, 4.0, 50.0
    ),
    "tiny-buffered": Case("tiny", _FEDBUFF, 4.0, 40.0),
    "tiny-fedasync": Case("tiny", {"schedule": _IN_FLIGHT}, 2.0, rate=10_000.0),
}

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, updates: int, workers: int, cases: Sequence[str]) -> Report:
    """The report: for each case `repeat` pairs of a job and the trainers alone."""
    found: list[Found] = []
    for i in range(repeat):
        for name in cases:
            config = config_of(CASES[name], max(20, int(CASES[name].length * updates)))
            alone = _alone(launcher, f"{name}-alone-{i}", config, workers)
            found.append({"case": name, "alone_per_s": alone, **_job(launcher, f"{name}-{i}", config, workers)})
    return Report(
        bench="engine",
        machine=launcher.machine,
        what=f"jobs of rank zero and {workers} workers against {workers} trainers alone, in turn, {repeat} times",
        settings={
            **{"workers": workers, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
            **{name: config_of(CASES[name], 0)["schedule"] for name in cases},
        },
        figures=[figure for name in cases for figure in _figures(name, [f for f in found if f["case"] == name])],
        runs=found,
    )


def config_of(case: Case, updates: int) -> dict[str, Any]:
    """The configuration of a case; any worker takes any task."""
    make = {"tiny": configs.tiny, "mlp": configs.mlp, "cnn": configs.cnn}[case.model]
    return make(updates, CLIENTS) | {"placement": "dynamic"} | dict(case.changes)


def _job(launcher: Launcher, name: str, config: Mapping[str, Any], workers: int) -> Found:
    run = launcher.run(name, {**config, "record": {"flush_s": 0.5}}, workers).run
    window = steady(run)
    cpu = share_of_time(run, 0, "cpu_s", window)
    busy = sum(share_of_time(run, rank, "busy_s", window) for rank in range(1, workers + 1)) / workers
    groups = run.columns("workers", ["worker", "n_tasks", "n_groups"])
    n_tasks, n_groups = (sum(groups[name][groups["worker"] > 0][-workers:]) for name in ("n_tasks", "n_groups"))
    launcher.say(f"{name}: {window.updates_per_s:,.0f} updates/s")
    return {
        "job_per_s": window.updates_per_s,
        "server_us": 1e6 * cpu / window.updates_per_s,
        "training": 100.0 * busy,
        "group": float(n_tasks) / float(n_groups),
    }


def _alone(launcher: Launcher, name: str, config: Mapping[str, Any], workers: int) -> float:
    """Updates a second of all trainers together."""
    path, out = launcher.written(name, config), launcher.folder / name
    program = [sys.executable, "-m", "fedsim.bench.alone", str(path), str(ALONE_S), str(out), *launcher.overrides]
    launcher.call(name, [*launcher.mpirun, "-n", str(workers), *program], {})
    rates = [json.loads((launcher.folder / f"{name}-{rank}.json").read_text("utf-8")) for rank in range(workers)]
    launcher.say(f"{name}: {sum(rates):,.0f} updates/s")
    return float(sum(rates))


def _figures(name: str, found: Sequence[Found]) -> list[Figure]:
    case = CASES[name]
    job, alone = [f["job_per_s"] for f in found], [f["alone_per_s"] for f in found]
    share = None if case.share is None else Target(least=case.share)
    rate = None if case.rate is None else Target(least=case.rate)
    return [
        Figure.of(f"{name}: trainers alone", alone, "updates/s"),
        Figure.of(f"{name}: through the engine", job, "updates/s", rate),
        Figure.of(f"{name}: share", [100.0 * ratio for ratio in paired_ratios(job, alone)], "%", share),
        Figure.of(f"{name}: rank zero", [f["server_us"] for f in found], "us CPU/update"),
        Figure.of(f"{name}: workers train", [f["training"] for f in found], "% of time"),
        Figure.of(f"{name}: tasks a group", [f["group"] for f in found], ""),
    ]
