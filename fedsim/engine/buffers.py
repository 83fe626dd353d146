"""What becomes of buffers and of layers that stay with the clients: the checks, the rule, and what is said of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from fedsim.aggregation.buffers import WithBuffers
from fedsim.config import RunConfig, SyncSchedule
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.training.clients.personal import local_tensors

if TYPE_CHECKING:
    import torch

    from fedsim import population
    from fedsim.aggregation import Rule

_SHOWN = 20


def treatment(config: RunConfig, layout: Layout) -> dict[str, str]:
    """What becomes of the tensors that the rule does not merge, by name: `local` or `averaged`."""
    averaged = dict.fromkeys(layout.buffers, "averaged")
    return averaged | dict.fromkeys(local_tensors(config, layout), "local")


def treatment_text(config: RunConfig, layout: Layout) -> str:
    """The same as JSON, for the record; `*` stands for all tensors."""
    of = treatment(config, layout)
    return json.dumps({"*": "local"} if list(of.values()).count("local") == len(layout.names) else of)


def treatment_lines(config: RunConfig, layout: Layout) -> list[tuple[str, str]]:
    """The same for `fedsim check`."""
    of = treatment(config, layout)
    lines = []
    for label, what in (("stay local", "local"), ("averaged apart", "averaged")):
        names = [name for name, is_what in of.items() if is_what == what]
        more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
        lines += [(label, ", ".join(names[:_SHOWN]) + more)] if names else []
    return lines


def with_buffers(config: RunConfig, layout: Layout, rule: Rule, n_eligible: int) -> Rule:
    """The rule, with what is done about buffers around it; no more tasks are in flight than `n_eligible` clients."""
    n_in_flight = None if isinstance(config.schedule, SyncSchedule) else min(config.schedule.concurrency, n_eligible)
    is_averaged = any(name not in local_tensors(config, layout) for name in layout.buffers)
    return WithBuffers(rule, layout.n_trained, n_in_flight, is_averaged)


def check_buffers(config: RunConfig, people: population.Population, module: torch.nn.Module, layout: Layout) -> None:
    """Refuses buffers of which the configuration does not say what becomes of them, and batches too small for them."""
    local = set(local_tensors(config, layout))
    kind = config.compression.updates.kind
    if kind != "none" and (local or layout.n_buffers):
        what = "parts of these updates stay with the clients" if local else "these updates carry statistics"
        raise ConfigError(
            f"compression.updates {kind}: {what}, which an encoding would mix with the rest; allowed: none"
        )
    if not layout.n_buffers:
        return
    unsaid = [name for name in layout.buffers if name not in local]
    if unsaid and getattr(config.model, "buffers", "refuse") == "refuse":
        layer = unsaid[0].rpartition(".")[0]
        raise ConfigError(
            f"model: layer '{layer}' ({type(module.get_submodule(layer)).__name__}) keeps statistics that are no "
            f"parameters ('{unsaid[0]}'): say what becomes of them by model.buffers: average or local, or use group or "
            "no normalisation"
        )
    if unsaid and config.attack is not None and config.attack.kind != "label-flip":
        raise ConfigError(
            f"attack {config.attack.kind}: attackers would send variances below zero, which no model takes; allowed: "
            "label-flip, model.buffers local, or another norm"
        )
    if config.reduce is not None:
        raise ConfigError("reduce: buffers are averaged beside the rule, at rank zero; allowed: no reduce")
    _check_batches(config, people, module)


def _check_batches(config: RunConfig, people: population.Population, module: torch.nn.Module) -> None:
    """Refuses batches of one sample where normalisation takes no statistics of one."""
    from fedsim.training.choice import takes_one_sample  # loads torch

    if takes_one_sample(module, people.sample_shape):
        return
    size, clients = config.training.batch_size, np.arange(people.n_clients)
    for some in np.array_split(clients, max(1, -(-clients.size // 100_000))):
        sizes = people.n_samples(some)
        bad = np.flatnonzero((sizes > 0) & ((sizes % size == 1) | (size == 1)))
        if bad.size:
            raise ConfigError(
                f"training.batch_size is {size}: client {int(some[bad[0]])} has {int(sizes[bad[0]])} samples, so that "
                "a batch has one sample, of which batch normalisation has no variance; use another size or norm"
            )
