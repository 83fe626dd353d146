"""The schedule alone (`training: none`): tasks a second on one core, record included, and its growth with clients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher

POPULATIONS = (10**4, 10**5, 10**6, 10**7)
TASKS_PER_S = Target(least=300_000.0)
PEAK_GB = Target(most=2.0)
_GB = 1e9

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, updates: int, concurrency: int) -> Report:
    """The report: a run of each population in turn, `repeat` times."""
    _run(launcher, "warm-up", 1000, POPULATIONS[0], concurrency)  # the loop is compiled once a machine: ten seconds
    found = [_run(launcher, f"{n}-{i}", updates, n, concurrency) for i in range(repeat) for n in POPULATIONS]
    return Report(
        bench="schedule",
        machine=launcher.machine,
        what=f"FedAsync without training, {concurrency:,} tasks in flight, {updates:,} updates, one process, record "
        f"included: {', '.join(f'{n:,}' for n in POPULATIONS)} clients, {repeat} times in turn",
        settings={"concurrency": concurrency, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(found),
        runs=found,
    )


def _run(launcher: Launcher, name: str, updates: int, clients: int, concurrency: int) -> Found:
    config = configs.tiny(updates, clients) | {
        "training": "none",
        "schedule": {"policy": "async", "concurrency": concurrency},
    }
    start_s = time.perf_counter()
    ran = launcher.run(name, config, 0)
    process_s = time.perf_counter() - start_s
    totals = ran.run.totals()
    rate, peak_bytes = totals.updates / totals.wall_s, ran.peak_bytes[0]
    launcher.say(f"{name}: {rate:,.0f} tasks/s, peak {peak_bytes / _GB:.3f} GB")
    whole = totals.updates / process_s
    return {"clients": clients, "tasks_per_s": rate, "process_tasks_per_s": whole, "peak_bytes": peak_bytes}


def _figures(found: Sequence[Found]) -> list[Figure]:
    figures = []
    for n in POPULATIONS:
        runs = [run for run in found if run["clients"] == n]
        figures.append(Figure.of(f"{n:,} clients", [run["tasks_per_s"] for run in runs], "tasks/s", TASKS_PER_S))
        whole = [run["process_tasks_per_s"] for run in runs]
        figures.append(Figure.of(f"{n:,} clients, the process's whole life", whole, "tasks/s"))
        peak = PEAK_GB if n == max(POPULATIONS) else None
        figures.append(Figure.of(f"{n:,} clients, peak", [run["peak_bytes"] / _GB for run in runs], "GB", peak))
    return figures
