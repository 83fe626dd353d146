"""What checkpoints cost: runs that write many beside runs that write none, in turn."""

from __future__ import annotations

from statistics import median

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.config import CheckpointConfig
from fedsim.record import checkpoint

CLIENTS = 64
_MIB = 2.0**20


def measure(launcher: Launcher, repeat: int, updates: int, workers: int) -> Report:
    """The report: wall seconds that a checkpoint adds to a run, and the share of a run at the default interval."""
    every = max(2, updates // 10)
    costs: list[float] = []
    size_bytes = 0
    for i in range(repeat):
        walls = {}
        for name, versions in (("none", None), ("many", every)):
            config = configs.mlp(updates, CLIENTS) | {"checkpoint": {"every_s": None, "every_versions": versions}}
            run = launcher.run(f"{name}-{i}", config, workers).run
            walls[name] = run.totals().wall_s
            numbers = checkpoint.numbers(run.path)
            if numbers:
                size_bytes = (run.path / checkpoint.name_of(numbers[-1])).stat().st_size
                costs.append((walls["many"] - walls["none"]) / numbers[-1])
        launcher.say(f"round {i}: {walls['none']:.2f} s without, {walls['many']:.2f} s with {numbers[-1]} checkpoints")
    interval_s = CheckpointConfig().every_s
    assert interval_s is not None
    return Report(
        bench="checkpoint",
        machine=launcher.machine,
        what=f"FedAsync, {configs.CONCURRENCY} tasks in flight, an MLP, {workers} workers: {updates:,} updates "
        f"with a checkpoint every {every:,} versions beside one without; a kill loses at most {interval_s:g} s and "
        "twice what writing one takes",
        settings={"workers": workers, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=[
            Figure.of("a checkpoint", [size_bytes / _MIB], "MiB"),
            Figure.of("adds to the run", costs, "s"),
            Figure.of(
                f"share of a run, one every {interval_s:g} s",
                [100 * cost / interval_s for cost in costs],
                "%",
                Target(most=1.0),
            ),
        ],
        runs=[{"cost_s": costs, "median_s": median(costs)}],
    )
