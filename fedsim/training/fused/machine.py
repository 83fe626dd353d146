"""The fused path: a machine for `GroupTrainer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.config import TrainingConfig
from fedsim.layout import Layout
from fedsim.training import noise
from fedsim.training.flat import Flat
from fedsim.training.fused import ahead, convolution, pooled, program
from fedsim.training.fused.graph import Node, UnsupportedError, trace
from fedsim.training.fused.losses import fused_loss
from fedsim.training.fused.optimizers import PlainSgd
from fedsim.training.fused.values import Arena, Context
from fedsim.training.groupbatches import Batch
from fedsim.training.objectives import TaskLoss
from fedsim.training.slabmachine import SlabMachine
from fedsim.types import Float64


def plan(module: torch.nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss) -> list[Node]:
    """The nodes of a module that the fused path can train. Raises UnsupportedError, naming the layer, if it cannot."""
    nodes = trace(module, sample_shape)
    program.check(nodes, Layout.of(module))
    if fused_loss(loss) is None:
        raise UnsupportedError(f"the loss {type(loss).__name__} has no fused form")
    dropping = [node for node in nodes if isinstance(node.layer, program.DROPOUTS) and node.layer.p > 0.0]
    found = noise.find(module, sample_shape)
    if found.is_global or [node.layer.p for node in dropping] != [dropout.rate for dropout in found.dropouts]:
        raise UnsupportedError(
            f"{type(module).__name__} draws random numbers that are not those of its layers of dropout"
        )
    return nodes


def block_of(
    training: TrainingConfig, nodes: Sequence[Node], *, has_linear: bool, on_host: bool = True
) -> tuple[Node | None, int]:
    """The layer whose steps are taken a block at a time (`fedsim.training.fused.ahead`), and steps of a block.

    None and 0 if there is none. On a GPU there is none: passes over weights are cheap there, and calls are not.
    """
    node = ahead.first_layer(nodes) if on_host and not program.has_maps(nodes) else None
    n_block = ahead.block_steps(training, node, has_linear=has_linear)
    return (node, n_block) if n_block else (None, 0)


class FusedMachine(SlabMachine):
    """Stacked weights of `n_slots` clients, and a program for each number of them at work, built when first met."""

    def __init__(
        self,
        module: torch.nn.Module,
        sample_shape: tuple[int, ...],
        training: TrainingConfig,
        loss: TaskLoss,
        n_slots: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        has_linear: bool = False,
        is_fixed: bool = False,
    ) -> None:
        nodes = plan(module, sample_shape, loss)
        self._on_host = on_host = device.type == "cpu" and not is_fixed  # what is captured is torch's own operations
        self._nodes = pooled.joined(convolution.joined(nodes), sample_shape) if on_host else nodes
        layout, min_slots = Layout.of(module), 2 if program.has_maps(self._nodes) else 1
        ahead_of, n_block = block_of(training, self._nodes, has_linear=has_linear, on_host=on_host)
        own = program.parameter_names(ahead_of) if ahead_of is not None else []
        places = program.places_of(self._nodes, layout, [name for name in layout.names if name not in own])
        dropouts = noise.find(module, sample_shape).dropouts
        super().__init__(
            places, sample_shape, training, loss, n_slots, min_slots, device, dtype, has_linear, n_block or None,
            dropouts, is_fixed,
        )  # fmt: skip
        self._ahead: ahead.Ahead | None = None
        if ahead_of is not None:
            own_places = program.places_of(self._nodes, layout, own)
            self._ahead = ahead.Ahead(ahead_of, own_places, training, self.batches, carries_rate=self.carries_rate)
        self._sample_shape = sample_shape
        kind = fused_loss(loss, is_compiled=on_host)
        assert kind is not None
        self._loss = kind
        self._arena = Arena(dtype, device)
        # a step is what its program does, for the slots at work alone
        self._is_bare = isinstance(self.stepper, PlainSgd) and self.min_slots == 1 and not self.is_fixed
        self._programs: dict[int, program.Program] = {}
        self._at_work = self._program(self.n_slots)  # the largest first, so that the arena is allocated once

    def start(self, base: Flat, rates_G: Float64, keys: noise.Keys, linear_GP: Tensor | None = None) -> None:
        """See `fedsim.training.group.Machine.start`."""
        super().start(base, rates_G, keys, linear_GP)
        if self._ahead is not None:
            self._ahead.start(base, self._rates_G1[: len(base)])

    def begin_block(self, n_slots: int, n_block: int) -> None:
        """See `fedsim.training.group.Machine.begin_block`."""
        if self._ahead is not None:
            self._ahead.begin(n_slots, n_block)

    def end_block(self, n_slots: int) -> None:
        """See `fedsim.training.group.Machine.end_block`."""
        if self._ahead is not None:
            self._ahead.end(n_slots)

    def finish(self) -> None:
        """See `fedsim.training.group.Machine.finish`."""
        if self._ahead is not None:
            self._ahead.finish()

    def read(self, first: int, out: Flat) -> None:
        """See `fedsim.training.group.Machine.read`."""
        super().read(first, out)
        if self._ahead is not None:
            self._ahead.read(first, out)

    def subtract(self, base: Flat, first: int, out: Flat) -> Float64 | None:
        """See `fedsim.training.group.Machine.subtract`."""
        norms_G = super().subtract(base, first, out)
        if self._ahead is not None:
            self._ahead.subtract(first, out)
        return norms_G

    def step(self, k: int, n_slots: int, n_most: int = 1) -> int:
        """See `fedsim.training.group.Machine.step`."""
        if self._ahead is not None:
            self._ahead.k = k
        whole = self._program(n_slots).whole if self._is_bare else None
        if whole is None:
            return super().step(k, n_slots)
        n_steps = min(n_most, whole.n_together)
        whole(self._batch(n_slots, k), n_steps)
        return n_steps

    def compute(self, batch: Batch) -> None:
        """See `SlabMachine.compute`."""
        found = self._program(batch.scale_gB.shape[0])
        if found is not self._at_work:
            self._at_work.forget()
            self._at_work = found
        found.step(batch)

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """See `fedsim.training.group.Machine.sample_losses`."""
        return self._loss.losses(*self.batches.kept(n_slots, n_steps))

    def _program(self, n_slots: int) -> program.Program:
        if n_slots not in self._programs:
            n_batch, target, masks = self.batches.n_batch, self.stepper.target, self.masks.now
            ctx = Context(n_slots, n_batch, self._arena, self.weights, target, self._ahead, masks, self._on_host)
            self._programs[n_slots] = program.Program(ctx, self._nodes, self._sample_shape, self._loss)
        return self._programs[n_slots]
