"""A large model, asynchronously: rank zero's peak memory against the bound that `fedsim check` states beforehand.

What Python and its libraries take is measured, by the same run with a small model, and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import configfile
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import steady

RULES: dict[str, dict[str, Any]] = {
    "fedasync": {"schedule": {"policy": "async", "concurrency": 3}, "aggregation": {"rule": "fedasync"}},
    "fedbuff": {"schedule": {"policy": "buffered", "concurrency": 3, "buffer": 2}, "aggregation": {"rule": "fedbuff"}},
}
SMALL = 1000
WITHIN = Target(most=1.0)
_GB = 1e9

Found = Mapping[str, Any]


def config_of(rule: str, n_parameters: int, updates: int) -> dict[str, Any]:
    """About so many parameters: a layer as wide as its input. One sample a task, since memory is what is measured.

    Room for a single update and two versions at rank zero, so that the bound is not met by chance.
    """
    width = max(1, round(math.sqrt(n_parameters + 36.0) - 6.0))  # width^2 + 11 width + 10 parameters
    return {
        "seed": 1,
        "data": {"dataset": "synthetic-images", "clients": 6, "shape": [width], "samples": 1, "test_samples": 4,
                 "classes": 10},
        "model": {"kind": "mlp", "hidden": [width]},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.01}, "batch_size": 1, "steps": 1,
                     "path": "loop", "group_size": 1},
        "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}},
        "evaluation": {"every_versions": None},
        "stop": {"updates": updates},
        "memory": {"server_updates_bytes": 0, "server_versions_bytes": 8 * (width * width + 11 * width + 10),
                   "worker_updates_bytes": 0, "worker_versions_bytes": 0},
        "record": {"flush_s": 0.5},
        "checkpoint": {"every_s": None},
        "device": "cpu",
        **RULES[rule],
    }  # fmt: skip


def measure(launcher: Launcher, repeat: int, updates: int, parameters: int) -> Report:
    """The report: for each rule a run on rank zero and a worker, and the bound that its plan states."""
    found: list[Found] = []
    for i in range(repeat):
        for rule in RULES:
            found.append(_measured(launcher, f"{rule}-{i}", rule, updates, parameters))
    return Report(
        bench="large",
        machine=launcher.machine,
        what=f"a model of {found[0]['parameters']:,} parameters, {updates} updates, 1 worker: rank zero's peak "
        "memory, less that of the same run with a small model, and the bound that its plan states",
        settings={"parameters": parameters, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=[figure for rule in RULES for figure in _figures(rule, [run for run in found if run["rule"] == rule])],
        runs=found,
    )


def _measured(launcher: Launcher, name: str, rule: str, updates: int, parameters: int) -> Found:
    little = config_of(rule, SMALL, updates)
    little["memory"]["piece_bytes"] = SMALL  # in pieces, too: with the same libraries
    small = launcher.run(f"{name}-small", little, 1).peak_bytes[0]
    config = config_of(rule, parameters, updates)
    bound, n_parameters = _stated(name, config)
    ran = launcher.run(name, config, 1)
    peak = ran.peak_bytes[0] - small
    launcher.say(f"{name}: rank zero's peak {peak / _GB:.2f} GB above {small / _GB:.2f}, stated {bound / _GB:.2f} GB")
    update_s = 1.0 / steady(ran.run).updates_per_s
    return {"rule": rule, "parameters": n_parameters, "peak_bytes": peak, "small_bytes": small, "bound_bytes": bound,
            "update_s": update_s}  # fmt: skip


def _stated(name: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """What the plan of a run says of rank zero's memory, with one worker, and its number of parameters."""
    from fedsim.engine.plan import plan, updates_a_version
    from fedsim.engine.servermemory import server_memory

    made = plan(configfile.from_mapping({"name": name, **config}), Path())
    memory = server_memory(made, updates_a_version(made.config, made.concurrency))
    return memory.total(n_workers=1), made.layout.n_parameters


def _figures(rule: str, runs: Sequence[Found]) -> list[Figure]:
    def of(key: str, unit: float) -> list[float]:
        return [run[key] / unit for run in runs]

    shares = [run["peak_bytes"] / run["bound_bytes"] for run in runs]
    return [
        Figure.of(f"{rule}: an update", of("update_s", 1.0), "s"),
        Figure.of(f"{rule}: rank zero's peak", of("peak_bytes", _GB), "GB"),
        Figure.of(f"{rule}: rank zero's stated bound", of("bound_bytes", _GB), "GB"),
        Figure.of(f"{rule}: peak over bound", shares, "1", WITHIN),
    ]
