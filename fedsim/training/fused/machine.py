"""The fused path: a machine for `GroupTrainer`. Shapes: `G` slots, `P` parameters, `B` batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.config import TrainingConfig
from fedsim.layout import Layout
from fedsim.training.fused import optimizers, program
from fedsim.training.fused.graph import Node, UnsupportedError, trace
from fedsim.training.fused.losses import fused_loss
from fedsim.training.fused.values import Arena, Context
from fedsim.training.groupbatches import GroupBatches
from fedsim.training.objectives import TaskLoss
from fedsim.types import Float64


def plan(module: torch.nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss) -> list[Node]:
    """The nodes of a module that the fused path can train. Raises UnsupportedError, naming the layer, if it cannot."""
    nodes = trace(module, sample_shape)
    program.check(nodes, Layout.of(module))
    if fused_loss(loss) is None:
        raise UnsupportedError(f"the loss {type(loss).__name__} has no fused form")
    return nodes


class FusedMachine:
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
    ) -> None:
        self._nodes = plan(module, sample_shape, loss)
        self._sample_shape = sample_shape
        kind = fused_loss(loss)
        assert kind is not None
        self._loss = kind
        self._min_slots = 2 if program.has_maps(self._nodes) else 1
        self._n_slots = max(n_slots, self._min_slots)
        places = program.places_of(self._nodes, Layout.of(module))
        self._weights = places.slab(self._n_slots, dtype, device)
        self._stepper = optimizers.build(training, self._weights)
        self.carries_rate = self._stepper.carries_rate
        self._arena = Arena(dtype, device)
        n_features = int(np.prod(sample_shape))
        target_type = torch.int64 if loss.targets(np.zeros(1, np.int64)).dtype == torch.int64 else dtype
        self.batches = GroupBatches(self._n_slots, training.batch_size, n_features, dtype, target_type, device)
        self._rates_G1 = torch.zeros((self._n_slots, 1), dtype=dtype, device=device)
        self._programs: dict[int, program.Program] = {}
        self._program(self._n_slots)  # the largest first, so that the arena is allocated once

    def start(self, base_GP: Tensor, rates_G1: Tensor) -> None:
        """See `fedsim.training.group.Machine.start`."""
        n_slots = base_GP.shape[0]
        self._weights.load(base_GP)
        self._rates_G1[:n_slots] = rates_G1
        self._stepper.start(n_slots, self._rates_G1)
        self.batches.scale_GKB[n_slots : self._min_slots].zero_()

    def step(self, k: int, n_slots: int) -> None:
        """See `fedsim.training.group.Machine.step`."""
        g, batches = max(n_slots, self._min_slots), self.batches
        self._program(g).step(
            batches.x_GKBF[:g, k],
            batches.targets_GKB[:g, k].unsqueeze(2),
            batches.scale_GKB[:g, k].unsqueeze(2),
            batches.pieces_GKB[:g, k].unsqueeze(2),
        )
        self._stepper.step(g)

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """See `fedsim.training.group.Machine.sample_losses`."""
        pieces = self.batches.pieces_GKB[:n_slots, :n_steps].cpu().numpy().astype(np.float64)
        targets = self.batches.targets_GKB[:n_slots, :n_steps].cpu().numpy().astype(np.float64)
        return self._loss.losses(pieces, targets)

    def read(self, first: int, out_GP: Tensor) -> None:
        """See `fedsim.training.group.Machine.read`."""
        self._weights.read(first, out_GP)

    def subtract(self, base_GP: Tensor, first: int, out_GP: Tensor) -> None:
        """See `fedsim.training.group.Machine.subtract`."""
        self._weights.subtract(base_GP, first, out_GP)

    def _program(self, n_slots: int) -> program.Program:
        if n_slots not in self._programs:
            target = self._stepper.target
            ctx = Context(n_slots, self.batches.n_batch, self._arena, self._weights, target)
            self._programs[n_slots] = program.Program(ctx, self._nodes, self._sample_shape, self._loss)
        return self._programs[n_slots]
