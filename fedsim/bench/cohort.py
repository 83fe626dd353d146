"""Large cohorts of tiny clients, summed by the workers: the same bits on 2, 3 and 5 ranks, and the bytes sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.errors import RecordError
from fedsim.record.reader import Run
from fedsim.record.summary import model_sha256

RANKS = (2, 3, 5)
SMALLER = 10  # times fewer clients in the cohort that the full one is compared with
VALUE_BYTES = 8  # sums are 64-bit fixed point
A_TASK = Target(most=128.0)  # bytes that the record adds

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, updates: int, cohort: int) -> Report:
    """The report: runs of `updates` on each number of ranks with the cohort, and with one that is ten times smaller.

    Raises:
        RecordError: two numbers of ranks reached different bits.
    """
    versions = max(2, updates // cohort)
    found: list[Found] = []
    for i in range(repeat):
        for n in (cohort, max(1, cohort // SMALLER)):
            runs = [_run(launcher, f"{n}-{ranks}-{i}", n, versions, ranks) for ranks in RANKS]
            if len({(run["model_sha256"], run["history"]) for run in runs}) != 1:
                raise RecordError(f"cohort of {n:,}: {RANKS} ranks reached different bits")
            found += runs
    return Report(
        bench="cohort",
        machine=launcher.machine,
        what=f"FedAvg with sums at the workers, {configs.TINY_PARAMETERS:,} parameters, {versions} versions of "
        f"{cohort:,} clients and of a tenth: {', '.join(map(str, RANKS))} ranks with the same bits",
        settings={"cohort": cohort, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(found, cohort),
        runs=found,
    )


def config_of(cohort: int, versions: int) -> dict[str, Any]:
    """Rounds of a tiny model in which all clients take part."""
    return configs.tiny(1, cohort) | {
        "schedule": {"policy": "sync", "cohort": cohort},
        "aggregation": {"rule": "fedavg"},
        "reduce": {"at": "workers", "norm_bound": 100},
        "stop": {"versions": versions},
        "placement": "dynamic",
    }


def _run(launcher: Launcher, name: str, cohort: int, versions: int, ranks: int) -> Found:
    run = launcher.run(name, config_of(cohort, versions), ranks - 1).run
    weights, totals = run.weights, run.totals()
    assert weights is not None
    n_bytes = _sent_bytes(run, ranks)
    sums_bytes = (ranks - 1) * versions * VALUE_BYTES * weights.size
    found = {
        "cohort": cohort,
        "ranks": ranks,
        "updates_per_s": totals.updates / totals.wall_s,
        "bytes_a_version": n_bytes / versions,
        "sums_a_version": sums_bytes / versions,
        "record_bytes_a_task": (n_bytes - sums_bytes) / totals.updates,
        "model_sha256": model_sha256(weights),
        "history": run.summary()["history_sha256"],
    }
    launcher.say(f"{name}: {found['updates_per_s']:,.0f} updates/s, {n_bytes / versions:,.0f} bytes a version")
    return found


def _sent_bytes(run: Run, ranks: int) -> float:
    """What all workers together sent to rank zero."""
    columns = run.columns("workers", ["worker", "sent_bytes"])
    return float(sum(columns["sent_bytes"][columns["worker"] == rank].max() for rank in range(1, ranks)))


def _figures(found: Sequence[Found], cohort: int) -> list[Figure]:
    figures = []
    for ranks in RANKS:
        own, less = (
            [run for run in found if run["ranks"] == ranks and (run["cohort"] == cohort) is is_full]
            for is_full in (True, False)
        )
        per_worker = [run["sums_a_version"] / (ranks - 1) / 1e3 for run in own]
        figures.append(Figure.of(f"{ranks} ranks", [run["updates_per_s"] for run in own], "updates/s"))
        figures.append(Figure.of(f"{ranks} ranks: model bytes a version and worker", per_worker, "kB"))
        added = [run["record_bytes_a_task"] for run in own]
        figures.append(Figure.of(f"{ranks} ranks: all else, a task", added, "bytes", A_TASK))
        growth = [_growth(a, b) for a, b in zip(own, less, strict=True)]
        figures.append(Figure.of(f"{ranks} ranks: growth with the cohort, a task", growth, "bytes", A_TASK))
    return figures


def _growth(large: Found, small: Found) -> float:
    """Bytes that a client more in the cohort costs rank zero a version."""
    more: float = large["bytes_a_version"] - small["bytes_a_version"]
    return more / float(large["cohort"] - small["cohort"])
