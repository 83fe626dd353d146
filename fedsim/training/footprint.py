"""How much memory a worker needs, as a formula over configuration and model: an upper bound, in bytes.

What a group takes, of `G` clients with batches of `B` samples of `F` numbers each, `K` steps of a block, `P` parameters
and `V` numbers that the layers put out for a sample, each vector padded to 16 numbers, four bytes a number:

    weights      G P (1 for the vector it starts from, 1 for the weights, and the optimiser's: 1 for momentum, ...)
    activations  4 G B V: outputs, their gradients, and as much for other forms of both and for libraries at work;
                 for torch.func 12 G B (V + F)
    batches      G K B (F + 4)
    masks        G B (D + K' (D / 4 + 2 E)) with dropout, of D numbers in all masks of a sample and E in the largest,
                 drawn for K' steps at once: a mask, what is kept in each step, and the words that it is drawn from

Weights of convolutions and embeddings count once more, for gradients that are made before they are added. Where the
first layer is computed ahead, its weights count 5 times instead, and `activations` has its outputs and their gradients
for a whole block, and the samples' products with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import nn

from fedsim.config import AdamOptimizer, PlainObjective, RunConfig, TrainingConfig
from fedsim.layout import Layout
from fedsim.training import noise
from fedsim.training.fused import machine, program
from fedsim.training.fused.graph import Node, UnsupportedError, trace
from fedsim.training.fused.memory import padded
from fedsim.training.groupbatches import block_steps

FLOAT_BYTES = 4
LIBRARY_BYTES = 64 << 20  # what libraries keep for themselves once they have worked: packed operands, code, kernels
_FUSED_FORMS, _STACKED_FORMS = 4, 12
_MOST_EVALUATIONS = 32  # outstanding, each with a version


@dataclass(frozen=True)
class GroupBytes:
    """What a group takes while it trains."""

    weights: int
    activations: int
    batches: int
    masks: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.batches + self.masks


@dataclass(frozen=True)
class WorkerBytes:
    """What a worker takes beside Python and its libraries."""

    versions: int
    results: int
    group: int
    shards: int
    evaluation: int
    libraries: int = LIBRARY_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def n_slabs(training: TrainingConfig) -> int:
    """How many numbers a parameter has: see `fedsim.training.fused.optimizers`."""
    optimizer, has_base = training.optimizer, not isinstance(training.objective, PlainObjective)
    if isinstance(optimizer, AdamOptimizer):
        return 5 + has_base
    if training.clip_norm is None and not has_base and (optimizer.momentum or not optimizer.weight_decay):
        return 2 if optimizer.momentum else 1
    return 3 + bool(optimizer.momentum) + has_base


def group_bytes(
    training: TrainingConfig,
    module: nn.Module,
    sample_shape: tuple[int, ...],
    path: str,
    group_size: int,
    *,
    has_linear: bool = False,
) -> GroupBytes:
    """What a group of a path takes; for a module that cannot be traced, samples stand for what layers put out."""
    layout, n_inputs = Layout.of(module), padded(math.prod(sample_shape))
    try:
        nodes = trace(module, sample_shape)
    except UnsupportedError:
        nodes = []
    n_values = sum(padded(math.prod(node.shape)) for node in nodes)
    if path == "loop":
        n_floats = layout.n_parameters * (2 + n_slabs(training) + has_linear)
        n_batch = training.batch_size * (n_inputs + _FUSED_FORMS * (n_values + n_inputs))
        return GroupBytes(
            FLOAT_BYTES * n_floats, FLOAT_BYTES * n_batch, 0, _mask_bytes(training, module, sample_shape, 1)
        )
    per_parameter = 1 + n_slabs(training) + 2 * has_linear
    first, n_block, forms = None, 0, _FUSED_FORMS
    try:
        if path == "stacked":
            raise UnsupportedError("torch.func")
        program.check(nodes, layout)
        first, n_block = machine.block_of(training, nodes, has_linear=has_linear, on_host=path == "fused")
        places = program.places_of(nodes, layout)
    except UnsupportedError:  # the captured path takes torch.func, too
        places, forms, per_parameter = program.places_of([], layout), _STACKED_FORMS, per_parameter + 9
        n_values += n_inputs
    own = 0 if first is None else program.places_of(nodes, layout, program.parameter_names(first)).n_floats
    weights = (places.n_floats - own) * per_parameter + own * 5 + _gradient_floats(nodes)
    activations = forms * training.batch_size * n_values + _ahead_floats(training, first, n_block)
    n_steps = n_block or block_steps(group_size, training.batch_size, n_inputs * FLOAT_BYTES)
    batches = n_steps * training.batch_size * (n_inputs + 4)
    found = (FLOAT_BYTES * group_size * n for n in (weights, activations, batches))
    weight_bytes, activation_bytes, batch_bytes = found
    masks = _mask_bytes(training, module, sample_shape, group_size)
    return GroupBytes(weight_bytes, activation_bytes, batch_bytes, masks)


def _gradient_floats(nodes: Sequence[Node]) -> int:
    """Weights whose gradients are made in memory of their own before they go to their place."""
    made = [node.layer.weight for node in nodes if isinstance(node.layer, nn.Conv2d | nn.Embedding)]
    return sum(padded(weight.numel()) for weight in made)


def _mask_bytes(training: TrainingConfig, module: nn.Module, sample_shape: tuple[int, ...], n_slots: int) -> int:
    """Masks of dropout at hand, those of the steps to come, and the words that they are drawn from, use by use."""
    sizes = [math.prod(dropout.shape) for dropout in noise.find(module, sample_shape).dropouts]
    if not sizes:
        return 0
    n_rows = n_slots * training.batch_size
    n_steps = noise.block_steps(n_rows * sum(sizes))
    n_words = n_slots * padded(training.batch_size * max(sizes), 8)  # of 32 bits, and as many for those of one slot
    return n_rows * sum(sizes) * (FLOAT_BYTES + n_steps) + 2 * 4 * n_steps * n_words


def _ahead_floats(training: TrainingConfig, first: Node | None, n_block: int) -> int:
    if first is None:
        return 0
    n_rows = n_block * training.batch_size
    return n_rows * (3 * padded(math.prod(first.shape)) + padded(n_rows))


def worker_bytes(
    config: RunConfig,
    module: nn.Module,
    sample_shape: tuple[int, ...],
    group: GroupBytes,
    *,
    n_versions: int,
    n_results: int,
    data_bytes: int,
    group_data_bytes: int,
) -> WorkerBytes:
    """What a worker takes that keeps at most so many versions and results, and so many bytes of samples.

    Samples that are too many to keep are there while their group trains: `group_data_bytes`.
    """
    n_parameters = Layout.of(module).n_parameters
    try:
        n_values = sum(math.prod(node.shape) for node in trace(module, sample_shape))
    except UnsupportedError:
        n_values = _FUSED_FORMS * math.prod(sample_shape)
    n_evaluated = config.evaluation.batch_size * (n_values + math.prod(sample_shape))
    return WorkerBytes(
        versions=FLOAT_BYTES * n_parameters * min(n_versions, config.schedule.concurrency + _MOST_EVALUATIONS),
        results=FLOAT_BYTES * n_parameters * n_results,
        group=group.total,
        shards=min(config.memory.worker_data_bytes, data_bytes) + group_data_bytes,
        evaluation=FLOAT_BYTES * (2 * n_parameters + n_evaluated),
    )
