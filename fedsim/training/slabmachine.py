"""What the machines of the stacked paths have in common: weights in a slab, an optimiser's step, batches.

Shapes: `G` slots, `P` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.config import TrainingConfig
from fedsim.training.flat import Flat
from fedsim.training.fused import optimizers
from fedsim.training.fused.memory import Places, on_device
from fedsim.training.groupbatches import Batch, GroupBatches
from fedsim.training.noise import Dropout, Keys, Masks
from fedsim.training.objectives import TaskLoss
from fedsim.types import Float64

_MOST_KEPT = 256  # views of batches: a microsecond each to make, of which a step of a small model has a hundred


class SlabMachine:
    """Weights of `n_slots` clients; whoever derives from it adds `compute`. Fewer than `min_slots` are never at work.

    On a GPU all slots always compute (`is_fixed`), because a client's bits can depend on how many do. Slots without a
    task, and those whose task is through, rest: their samples weigh nothing, and their learning rate is zero.
    """

    def __init__(
        self,
        places: Places,
        sample_shape: tuple[int, ...],
        training: TrainingConfig,
        loss: TaskLoss,
        n_slots: int,
        min_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        has_linear: bool = False,
        n_block: int | None = None,
        dropouts: Sequence[Dropout] = (),
        is_fixed: bool = False,
    ) -> None:
        self.is_fixed = is_fixed or device.type != "cpu"
        self.has_linear = has_linear
        self.min_slots = min_slots
        self.n_slots = max(n_slots, min_slots)
        self.weights = places.slab(self.n_slots, dtype, device)
        self.stepper = optimizers.build(training, self.weights, has_linear)
        self.carries_rate = self.stepper.carries_rate
        self.n_features = math.prod(sample_shape)
        self.batches = GroupBatches(
            self.n_slots, training.batch_size, self.n_features, dtype, loss.padding, device, n_block
        )  # fmt: skip
        self.masks = Masks(dropouts, self.n_slots, training.batch_size, dtype, device)
        self._rates_G1 = torch.zeros((self.n_slots, 1), dtype=dtype, device=device)
        self._rates = self._rates_G1.numpy() if device.type == "cpu" else None  # the same, quicker to fill
        self._n_at_work = 0
        self._batch = lru_cache(_MOST_KEPT)(self.batches.at)

    def start(self, base: Flat, rates_G: Float64, keys: Keys, linear_GP: Tensor | None = None) -> None:
        """See `fedsim.training.group.Machine.start`."""
        n_slots = len(base)
        self.weights.load(base)
        if self._rates is None:
            self._rates_G1[:n_slots, 0] = torch.from_numpy(rates_G)
        else:
            self._rates[:n_slots, 0] = rates_G
        linear = None if linear_GP is None else on_device(linear_GP, self._rates_G1.device)
        self.stepper.start(n_slots, self._rates_G1, linear)
        self.masks.start(keys)
        self._n_at_work = self.n_slots
        self._rest(n_slots)

    def step(self, k: int, n_slots: int, n_most: int = 1) -> int:
        """See `fedsim.training.group.Machine.step`: one step."""
        self.prepare(n_slots)
        g = self.n_slots if self.is_fixed else max(n_slots, self.min_slots)
        self.take(self._batch(g, k))
        return 1

    def prepare(self, n_slots: int) -> None:
        """What a step does outside a recorded graph: it puts what is new into memory that `take` reads."""
        self._rest(n_slots)
        self.masks.advance(n_slots)
        self.stepper.advance()

    def take(self, batch: Batch) -> None:
        """The step itself, nothing but work on tensors."""
        self.compute(batch)
        self.stepper.step(batch.scale_gB.shape[0])

    def compute(self, batch: Batch) -> None:
        """Puts the gradients of a step's batches where the stepper wants them, and fills `batch.pieces_gB`."""
        raise NotImplementedError

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """See `fedsim.training.group.Machine.sample_losses`."""
        raise NotImplementedError

    def _rest(self, n_slots: int) -> None:
        """Lets slots from `n_slots` on rest: all that compute all the same."""
        n_computing = self._n_at_work if self.is_fixed else min(self._n_at_work, self.min_slots)
        if n_slots < n_computing:
            resting = slice(n_slots, n_computing)
            self.batches.scale_GKB[resting].zero_()
            self._rates_G1[resting].zero_()
            self._n_at_work = n_slots

    def begin_block(self, n_slots: int, n_block: int) -> None:
        """See `fedsim.training.group.Machine.begin_block`."""

    def end_block(self, n_slots: int) -> None:
        """See `fedsim.training.group.Machine.end_block`."""

    def finish(self) -> None:
        """See `fedsim.training.group.Machine.finish`."""

    def read(self, first: int, out: Flat) -> None:
        """See `fedsim.training.group.Machine.read`."""
        self.weights.read(first, out)

    def subtract(self, base: Flat, first: int, out: Flat) -> Float64 | None:
        """See `fedsim.training.group.Machine.subtract`."""
        return self.weights.subtract(base, first, out)
