"""`fedsim bench footprint`: what training takes of memory, against the formula of `fedsim.training.footprint`."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from typing import Any

from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.machine import this_machine
from fedsim.bench.sidebyside import product_rate
from fedsim.bench.workload import MODELS, Path, clients_of, config_of, module_of
from fedsim.errors import LaunchError
from fedsim.training.footprint import FLOAT_BYTES, LIBRARY_BYTES, group_bytes

_MIB = 2.0**20


def measure(names: Sequence[str], paths: Sequence[str], variants: Sequence[str], repeat: int) -> Report:
    """For each model, path and variant: the growth of a process that trains all clients, over the formula."""
    figures: list[Figure] = []
    runs: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for model in names:
        for path in paths:
            for variant in variants:
                found = []
                for _ in range(repeat):
                    with context.Pool(1) as pool:  # a process each: what one took is not there for the next
                        found.append(pool.apply(growth, (model, path, variant)))
                runs += found
                title = f"{model}, {path}, {variant}"
                formula = found[0]["formula_bytes"] / _MIB
                figures.append(Figure.of(f"{title}: peak", [one["peak_bytes"] / _MIB for one in found], "MiB"))
                ratios = [one["peak_bytes"] / one["formula_bytes"] for one in found]
                figures.append(Figure.of(f"{title}: of {formula:.1f} MiB", ratios, "1", Target(most=1.0)))
    what = "peak memory of training a group, over a process that has all libraries loaded, against the formula"
    settings = {"models": list(names), "paths": list(paths), "variants": list(variants), "repeat": repeat}
    return Report("footprint", this_machine(), what, settings, figures, runs)


def growth(model: str, path: str, variant: str) -> dict[str, Any]:
    """Bytes that building a trainer and training every client add to this process at their peak, and the formula's."""
    small = "cnn" if "cnn" in model else "tiny"
    warm = Path(config_of("tiny", variant, path), clients_of("tiny"), module_of("tiny"))
    warm.train(range(4))
    if small == "cnn":  # the library of convolutions, in groups of one
        Path(config_of("cnn", variant, "loop"), clients_of("cnn"), module_of("cnn")).train(range(1))
    product_rate()
    clients, module = clients_of(model), module_of(model)
    gc.collect()
    before = reset_peak()
    own = Path(config_of(model, variant, path), clients, module)
    own.train(range(clients.n_clients))
    peak = status_bytes("VmHWM") - before
    n_parameters = sum(p.numel() for p in module.parameters())
    group = group_bytes(config_of(model, variant, path).training, module, MODELS[model][1], path, own.group_size)
    rows = FLOAT_BYTES * n_parameters * (own.group_size + 2)  # results, the version, and the module's copy
    return {
        "model": model, "path": path, "variant": variant, "group_size": own.group_size, "peak_bytes": peak,
        "formula_bytes": group.total + rows + LIBRARY_BYTES,
    }  # fmt: skip


def reset_peak() -> int:
    """Bytes resident now, from where on the peak is counted.

    Raises:
        LaunchError: the system cannot do that; Linux can.
    """
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError as error:
        raise LaunchError(f"bench footprint: /proc/self/clear_refs: {error.strerror}; it needs Linux") from error
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """A figure of this process's memory, as Linux tells it."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    raise LaunchError(f"bench footprint: /proc/self/status has no {name}")
