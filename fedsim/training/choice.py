"""Which training path a run takes, and how many clients train together: a rule over configuration and model.

It knows neither ranks nor timing nor the machine, so every rank comes to the same choice. A client's bits do not depend
on the group size; speed does: too small a group pays Python's overhead for too few clients, too large a one leaves the
cache, and takes rank zero's room for updates. So a group is the smallest power of two, from `FEW` to `MAX_GROUP`, with
`STEP_OPERATIONS` in a step, or the largest whose working set fits `memory.worker_cache_bytes`, if that is smaller, but
`LEAST` even where so many leave the cache (two where a client takes more than `LARGE_BYTES`); on a GPU, `MAX_GROUP`.
Whatever its size, what it takes in all has to fit `memory.worker_group_bytes`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from fedsim.config import RunConfig, TrainingConfig, UserObjective
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.training.footprint import group_bytes, n_slabs
from fedsim.training.fused import machine, program
from fedsim.training.fused.graph import Node, UnsupportedError, trace
from fedsim.training.fused.memory import padded
from fedsim.training.objectives import TaskLoss

STACKED_BYTES = 1 << 18  # of a client: up to here torch.func over groups is faster than the loop
STEP_OPERATIONS = 1 << 27  # floating-point operations: about two milliseconds, beside which calls are a few per cent
FEW = 8  # fewer clients than this are worse in some model, however much they have to do
LEAST = 4  # of models that no cache holds; two were up to a fifth slower in some, with Adam
LARGE_BYTES = 1 << 26  # of a client: above it memory counts more
MAX_GROUP = 64  # more were no faster in any
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
        fitting = partial(_fitting, config, module, sample_shape, has_linear, least)
        if is_captured:
            why = f"the {path} step as a CUDA graph, which no core's cache bounds"
            return fitting(Choice("captured", training.group_size or MAX_GROUP, "; ".join([*refusals, why])))
        if path == "stacked" and training.path == "auto" and client_bytes > STACKED_BYTES:
            refusals.append(f"not stacked: {client_bytes:,} bytes a client, above {STACKED_BYTES:,}")
            continue
        cache_bytes = config.memory.worker_cache_bytes
        operations = step_operations(training, module, sample_shape) if path == "fused" else 0
        size, reason = (
            group_size(client_bytes, least, cache_bytes, operations),
            f"{client_bytes:,} bytes a client at work",
        )
        reason = "group size as configured" if training.group_size else f"{reason}, of a cache of {cache_bytes:,}"
        return fitting(Choice(path, training.group_size or size, "; ".join([*refusals, reason])))
    if training.path == "captured":
        raise ConfigError(f"training.path: captured cannot train this model: {'; '.join(refusals)}; use auto or loop")
    return Choice("loop", training.group_size or 1, "; ".join(refusals) or "as configured")


def _fitting(
    config: RunConfig,
    module: torch.nn.Module,
    sample_shape: tuple[int, ...],
    has_linear: bool,
    least: int,
    choice: Choice,
) -> Choice:
    """The choice, with the largest group that fits `memory.worker_group_bytes` where the rule's does not.

    Raises ConfigError if a configured size does not fit, or no group at all.
    """
    path, size, reason = choice
    bound, given = config.memory.worker_group_bytes, config.training.group_size

    def n_bytes(n: int) -> int:
        return group_bytes(config.training, module, sample_shape, path, n, has_linear=has_linear).total

    if n_bytes(max(size, least)) <= bound:
        return choice
    fit = 0
    for n in reversed(range(least, size)):
        if n_bytes(n) <= bound:
            fit = n
            break
    if given is None and fit:
        return Choice(path, fit, f"{reason}; as many as fit memory.worker_group_bytes")
    what = f"training.group_size: {given} clients take" if given else f"a group of {least} on the path {path} takes"
    allowed = f"{fit} fit; set training.group_size to it, or" if fit else "no group fits; set training.path: loop, or"
    raise ConfigError(
        f"{what} {n_bytes(max(given or least, least)):,} bytes, above memory.worker_group_bytes {bound:,}: {allowed} "
        "memory.worker_group_bytes to more"
    )


def _fused(
    training: TrainingConfig, module: torch.nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss, has_linear: bool
) -> tuple[int, int]:
    """Bytes a client, and the smallest group that makes sense."""
    _refuse_own(training)
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

    _refuse_own(training)
    stacked.check(module, sample_shape, loss)
    n_values = (n_slabs(training) + has_linear) * Layout.of(module).n_parameters
    return _FLOAT_BYTES * (n_values + 8 * training.batch_size * math.prod(sample_shape)), 2


def _refuse_own(training: TrainingConfig) -> None:
    if isinstance(training.objective, UserObjective):
        raise UnsupportedError("an objective from a file of your own is differentiated by torch, a client at a time")


_PATHS: dict[str, Callable[..., tuple[int, int]]] = {"fused": _fused, "stacked": _stacked}


def takes_one_sample(module: torch.nn.Module, sample_shape: tuple[int, ...]) -> bool:
    """Whether a module can be trained on a batch of one sample: batch normalisation of vectors cannot."""
    probe = copy.deepcopy(module).cpu().train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            probe(torch.zeros((1, *sample_shape)))
    except ValueError:
        return False
    return True


def group_size(client_bytes: int, least: int, cache_bytes: int, operations: int = 0) -> int:
    """How many clients fill the cache, or have enough to do: a power of two from `least` to `MAX_GROUP`.

    `operations` are those of a client's step; 0 where nobody knows.

    >>> [group_size(n, 2, 2**22) for n in (10, 65_536, 100_000, 900_000, 2**21, 2**30)]
    [64, 64, 32, 4, 4, 2]
    >>> [group_size(10, 1, 2**22, n) for n in (10**5, 2 * 10**6, 7 * 10**6, 10**9)]
    [64, 64, 32, 8]
    """
    fitting = max(cache_bytes // client_bytes, least, LEAST if client_bytes <= LARGE_BYTES else 2)
    wanted = 2 ** math.ceil(math.log2(STEP_OPERATIONS / operations)) if operations else MAX_GROUP
    return int(max(least, min(2 ** int(math.log2(fitting)), max(wanted, FEW), MAX_GROUP)))


def step_operations(training: TrainingConfig, module: torch.nn.Module, sample_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a client's step: forward pass and gradients of linear layers and convolutions."""
    products = 0
    for node in trace(module, sample_shape):
        if isinstance(node.layer, nn.Linear | nn.Conv2d):
            products += math.prod(node.shape) * node.layer.weight[0].numel()
    return 6 * training.batch_size * products


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
    return _FLOAT_BYTES * (n_weights * (n_slabs(training) + has_linear) + training.batch_size * n_values)


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
    return _FLOAT_BYTES * (n_weights * n_slabs(training) + training.batch_size * n_values + n_block_values)
