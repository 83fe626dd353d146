"""`fedsim bench groups`: the group size that the rule chooses, against all others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.machine import this_machine
from fedsim.bench.sidebyside import Contest, Round, rounds
from fedsim.bench.workload import MODELS, config_of, module_of
from fedsim.training.choice import choose_path
from fedsim.training.objectives import task_loss

SIZES = (1, 2, 4, 8, 16, 32, 64)
NEAR = 0.85  # of the best: what the rule is meant to reach


def rule_of(model: str, variant: str, path: str) -> int:
    """The group size that the rule chooses."""
    _, shape, n_classes = MODELS[model]
    return choose_path(config_of(model, variant, path), module_of(model), shape, task_loss(n_classes)).group_size


def measure(names: Sequence[str], paths: Sequence[str], variants: Sequence[str], repeat: int) -> Report:
    """For each model, path and variant: updates a second in groups of each size, and how near the rule's comes."""
    figures: list[Figure] = []
    runs: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"models": list(names), "paths": list(paths), "repeat": repeat, "sizes": list(SIZES)}
    for model, path, variant in _each(names, paths, variants):
        rule = rule_of(model, variant, path)
        chosen = {f"{size}": (path, size) for size in sorted({*SIZES, rule})}
        found, _ = rounds(Contest(model, variant, False, chosen, repeat), clock=time.process_time)
        runs += [{"model": model, "path": path, "variant": variant, "rule": rule, **one} for one in found]
        figures.append(nearness(f"{model}, {path}, {variant}", rule, found))
    what = "updates a second of processor time in groups of the size that the rule chooses, over those of the best size"
    return Report("groups", this_machine(), what, settings, figures, runs)


def _each(*lists: Iterable[str]) -> Iterable[tuple[str, ...]]:
    from itertools import product

    return product(*lists)


def nearness(title: str, rule: int, found: Sequence[Round]) -> Figure:
    """The rule's size against the best one, which is that with the highest median; the name says which they are."""
    medians = {int(name): statistics.median(one[name] for one in found) for name in found[0] if name != "product"}
    best = max(medians, key=lambda size: medians[size])
    ratios = [one[f"{rule}"] / one[f"{best}"] for one in found]
    return Figure.of(f"{title}: {rule}, best {best}", ratios, "1", Target(least=NEAR))


def table(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Median updates a second by case and group size."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        cases.setdefault(f"{run['model']}, {run['path']}, {run['variant']}", []).append(run)
    return {
        case: {int(name): statistics.median(run[name] for run in found) for name in found[0] if name.isdecimal()}
        for case, found in cases.items()
    }
