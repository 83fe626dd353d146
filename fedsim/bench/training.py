"""`fedsim bench training`: local training alone, every path beside a plain PyTorch loop, in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.machine import this_machine
from fedsim.bench.sidebyside import PLAIN, Contest, Round, side_by_side
from fedsim.bench.workload import BATCH, MODELS, N_SAMPLES, VARIANTS, module_of
from fedsim.training.fused.graph import trace

RATIO_TARGETS = {
    ("tiny", "plain"): 25.0,
    ("mlp", "plain"): 2.2,
    ("cnn", "plain"): 2.0,
    ("tiny", VARIANTS[1]): 20.0,
    ("mlp", VARIANTS[1]): 1.7,
    ("cnn", VARIANTS[1]): 1.8,
}
LIMIT_TARGETS = {("mlp", "plain"): 0.42, ("cnn", "plain"): 0.75}


def operations(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a task: forward pass, weight gradients, and input gradients but the first."""
    products = []
    for node in trace(module, sample_shape):
        if isinstance(node.layer, nn.Linear):
            products.append(math.prod(node.shape) * node.layer.in_features)
        elif isinstance(node.layer, nn.Conv2d):
            products.append(math.prod(node.shape) * node.layer.weight[0].numel())
    return 2 * N_SAMPLES * (3 * sum(products) - products[0])


def measure(
    model: str, paths: Sequence[str], repeat: int, group_size: int | None = None, n_processes: int = 1
) -> Report:
    """Updates a second of each path and of the plain loop, their ratios, and the share of the product rate."""
    n_operations = operations(module_of(model), MODELS[model][1])
    figures: list[Figure] = []
    runs: list[dict[str, Any]] = []
    settings: dict[str, Any] = {
        "model": model, "paths": list(paths), "repeat": repeat, "batch": BATCH, "ranks": n_processes,
        "operations an update": n_operations,
    }  # fmt: skip
    for variant in VARIANTS:
        chosen = {path: (path, group_size if path != "loop" else None) for path in paths}
        rounds, sizes = side_by_side(Contest(model, variant, True, chosen, repeat), n_processes)
        settings |= {f"group size, {variant}, {path}": size for path, size in sizes.items()}
        runs += [{"variant": variant, **found} for found in rounds]
        figures += figures_of(model, variant, paths, rounds, n_operations)
    where = "one core" if n_processes == 1 else f"{n_processes} processes side by side"
    return Report("training", this_machine(), f"local training of {model} on {where}", settings, figures, runs)


def figures_of(
    model: str, variant: str, paths: Sequence[str], rounds: Sequence[Round], n_operations: int
) -> list[Figure]:
    """The figures of a variant's rounds. The limit is what the product rate allows: one update takes `n_operations`."""
    columns = {name: [found[name] for found in rounds] for name in rounds[0]}
    rates = columns.pop("product")
    limits = [rate / n_operations for rate in rates]
    figures = [
        Figure.of(f"{variant}: product rate", [rate / 1e9 for rate in rates], "GFLOP/s"),
        Figure.of(f"{variant}: limit", limits, "updates/s"),
    ]
    figures += [Figure.of(f"{variant}: {name}", values, "updates/s") for name, values in columns.items()]
    against = (("PyTorch", columns[PLAIN], RATIO_TARGETS), ("limit", limits, LIMIT_TARGETS))
    for path in paths:
        for what, other, targets in against:
            least = targets.get((model, variant)) if path == "fused" else None
            target = None if least is None else Target(least=least)
            figures.append(Figure.of(f"{variant}: {path} / {what}", paired_ratios(columns[path], other), "1", target))
    figures.append(Figure.of(f"{variant}: PyTorch / limit", paired_ratios(columns[PLAIN], limits), "1"))
    return figures
