"""Which training path a run takes, and how many clients train together: a rule over configuration and model.

It knows neither ranks nor timing nor the machine, so every rank comes to the same choice. A client's bits do not depend
on the group size; speed does: too small a group pays Python's overhead for too few clients, too large a one leaves the
cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fedsim.config import AdamOptimizer, PlainObjective, RunConfig, TrainingConfig
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.training.fused import machine, program
from fedsim.training.fused.graph import Node, UnsupportedError
from fedsim.training.fused.memory import padded
from fedsim.training.objectives import TaskLoss

CACHE_BYTES = 4 << 20  # of a core, with its share of what cores share: the measure for groups, not the machine's own
STACKED_LEAST = 16  # clients in the cache from which on torch.func is faster than the loop
MAX_GROUP = 64  # beyond it a step's overhead is below a hundredth
_FLOAT_BYTES = 4


class Choice(NamedTuple):
    """The path, the group size, and why."""

    path: str
    group_size: int
    reason: str


def choose_path(
    config: RunConfig,
    module: torch.nn.Module,
    sample_shape: tuple[int, ...],
    loss: TaskLoss,
    has_linear: bool = False,
) -> Choice:
    """The path that `training.path` asks for, or for `auto` the first of fused, stacked and loop that takes the module.

    Where the configuration says that there is a GPU (`device: cuda`), `auto` records the fused or stacked step as a
    CUDA graph: captured.

    `has_linear`: each task has a linear term in its objective, which is one more number a parameter.

    Raises ConfigError if the path asked for cannot take it, naming the layer.
    """
    training, refusals = config.training, list[str]()
    is_captured = training.path == "captured" or (training.path == "auto" and config.device == "cuda")
    if is_captured and config.device == "cpu":
        raise ConfigError("training.path: captured needs a GPU, but device is cpu; set device: cuda, or use auto")
    for path in ("fused", "stacked"):
        if training.path not in ("auto", "captured", path):
            continue
        try:
            client_bytes, least = _PATHS[path](training, module, sample_shape, loss, has_linear)
        except UnsupportedError as error:
            if training.path == path:
                raise ConfigError(
                    f"training.path: {path} cannot train this model: {error}; use auto or loop"
                ) from error
            refusals.append(f"not {path}: {error}")
            continue
        if is_captured:
            why = f"the {path} step as a CUDA graph, which no core's cache bounds"
            return Choice("captured", training.group_size or MAX_GROUP, "; ".join([*refusals, why]))
        reason = f"{client_bytes:,} bytes a client, of a cache of {CACHE_BYTES:,}"
        if path == "stacked" and training.path == "auto" and client_bytes > CACHE_BYTES // STACKED_LEAST:
            refusals.append(f"not stacked: {reason}, which is to hold {STACKED_LEAST}")
            continue
        if training.group_size is not None:
            return Choice(path, training.group_size, "; ".join([*refusals, "group size as configured"]))
        return Choice(path, group_size(client_bytes, least), "; ".join([*refusals, reason]))
    if training.path == "captured":
        raise ConfigError(f"training.path: captured cannot train this model: {'; '.join(refusals)}; use auto or loop")
    return Choice("loop", training.group_size or 1, "; ".join(refusals) or "as configured")


def _fused(
    training: TrainingConfig, module: torch.nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss, has_linear: bool
) -> tuple[int, int]:
    """Bytes a client, and the smallest group that makes sense."""
    nodes = machine.plan(module, sample_shape, loss)
    first, n_block = machine.block_of(training, nodes, has_linear=has_linear)
    if first is not None:
        client_bytes = ahead_client_bytes(training, nodes, Layout.of(module), first, n_block)
    else:
        client_bytes = fused_client_bytes(training, nodes, Layout.of(module), sample_shape, has_linear)
    return client_bytes, 2 if program.has_maps(nodes) else 1


def _stacked(
    training: TrainingConfig, module: torch.nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss, has_linear: bool
) -> tuple[int, int]:
    """Bytes a client, and the smallest group that makes sense. Activations are not known; samples stand for them."""
    from fedsim.training import stacked  # torch.func takes a while to load

    stacked.check(module, sample_shape, loss)
    n_values = (_n_slabs(training) + has_linear) * Layout.of(module).n_parameters
    return _FLOAT_BYTES * (n_values + 8 * training.batch_size * math.prod(sample_shape)), 2


_PATHS: dict[str, Callable[..., tuple[int, int]]] = {"fused": _fused, "stacked": _stacked}


def group_size(client_bytes: int, least: int) -> int:
    """How many clients fill the cache: a power of two from `least` to `MAX_GROUP`.

    >>> [group_size(n, 2) for n in (10, 65_536, 100_000, 900_000, 2**21, 2**30)]
    [64, 64, 32, 4, 2, 2]
    """
    n = max(CACHE_BYTES // client_bytes, least)
    return int(min(2 ** int(math.log2(n)), MAX_GROUP))


def fused_client_bytes(
    training: TrainingConfig,
    nodes: Sequence[Node],
    layout: Layout,
    sample_shape: tuple[int, ...],
    has_linear: bool = False,
) -> int:
    """Bytes that one client works on: weights and optimiser state, a batch, activations and their gradients."""
    n_weights = program.places_of(nodes, layout).n_floats
    n_values = 2 * sum(padded(math.prod(node.shape)) for node in nodes) + padded(math.prod(sample_shape))
    return _FLOAT_BYTES * (n_weights * (_n_slabs(training) + has_linear) + training.batch_size * n_values)


def ahead_client_bytes(
    training: TrainingConfig, nodes: Sequence[Node], layout: Layout, first: Node, n_block: int
) -> int:
    """The same where the first layer is computed ahead: its weights and the samples are met once a block, and not
    by several clients at once; what a step meets of it are outputs, their gradients, and products of samples.
    """
    own = program.parameter_names(first)
    n_weights = program.places_of(nodes, layout, [name for name in layout.names if name not in own]).n_floats
    n_rows, n_outputs = n_block * training.batch_size, padded(math.prod(first.shape))
    n_values = 2 * sum(padded(math.prod(node.shape)) for node in nodes)
    n_block_values = n_rows * n_outputs + training.batch_size * (n_outputs + padded(n_rows))
    return _FLOAT_BYTES * (n_weights * _n_slabs(training) + training.batch_size * n_values + n_block_values)


def _n_slabs(training: TrainingConfig) -> int:
    """How many numbers a parameter has: see `fedsim.training.fused.optimizers`."""
    optimizer, has_base = training.optimizer, not isinstance(training.objective, PlainObjective)
    if isinstance(optimizer, AdamOptimizer):
        return 5 + has_base
    if training.clip_norm is None and not has_base and (optimizer.momentum or not optimizer.weight_decay):
        return 2 if optimizer.momentum else 1
    return 3 + bool(optimizer.momentum) + has_base
