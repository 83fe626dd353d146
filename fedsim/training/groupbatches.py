"""The batches of a group: gathered from the clients' shards into fixed memory, a block of steps at a time.

Every batch has the configured size; what a shard does not fill is zeros, whose scale is zero. Samples are copied, never
slices of a shard: products over slices were seen to differ with the byte offset.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch, `F` numbers of a sample, `N` samples of a client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedsim.config import TrainingConfig
from fedsim.training import copying
from fedsim.training.batches import Pass, group_passes
from fedsim.training.plan import batches_per_pass
from fedsim.training.shards import DeviceShard, Samples
from fedsim.types import Float64, Int64, Task

_BLOCK_BYTES = 1 << 20  # of samples, about what a core's own cache holds
_MAX_STEPS = 64
_ROW = 16  # samples start on 64-byte boundaries


def block_steps(n_slots: int, n_batch: int, sample_bytes: int) -> int:
    """How many steps of a group's samples fit the cache, one at least."""
    return min(max(_BLOCK_BYTES // (n_slots * n_batch * sample_bytes), 1), _MAX_STEPS)


class GroupBatches:
    """Memory for a block of steps; `n_valid_GK` says how many samples of each batch are real.

    The others are zeros, and their targets `padding`, which has a target's type and shape. `targets_GKB` has the axes
    of that shape behind its own.
    A block has `n_steps` steps, or as many as fit the cache.
    """

    def __init__(
        self,
        n_slots: int,
        n_batch: int,
        n_features: int,
        dtype: torch.dtype,
        padding: torch.Tensor,
        device: torch.device,
        n_steps: int | None = None,
    ) -> None:
        stride = -(-n_features // _ROW) * _ROW
        self.n_steps = n_steps or block_steps(n_slots, n_batch, stride * dtype.itemsize)
        self.n_batch = n_batch
        shape = (n_slots, self.n_steps, n_batch)
        self.x_GKBF = torch.zeros((*shape, stride), dtype=dtype, device=device)
        self.padding = padding.to(device)
        self.targets_GKB = self.padding.expand(*shape, *padding.shape).clone()
        self.scale_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.pieces_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.n_valid_GK: Int64 = np.zeros(shape[:2], dtype=np.int64)
        rows = (n_slots, self.n_steps * n_batch)
        self.x_rows = list(self.x_GKBF.view(*rows, stride)[:, :, :n_features])
        self.target_rows = list(self.targets_GKB.view(*rows, *padding.shape))
        self.is_on_host = device.type == "cpu"
        if self.is_on_host:
            self.rows_GR = np.empty(rows, np.int64)  # which of its shard's samples each row holds; see `gather`
            self.x_arrays = [rows_NF.numpy() for rows_NF in self.x_rows]
            self.target_arrays = [rows_N.numpy() for rows_N in self.target_rows]
            self._flat = [values.numpy().reshape(-1) for values in (self.x_GKBF, self.targets_GKB)]
            self._empty = [np.zeros(stride, self._flat[0].dtype), self.padding.numpy().reshape(-1)]

    def gather(self, shards: Sequence[Samples]) -> None:
        """Copies the samples that `rows_GR` names from the first slots' shards, on the host."""
        kept = [shard if isinstance(shard, DeviceShard) else None for shard in shards]
        some = next((shard for shard in kept if shard is not None), None)
        if some is None:
            return
        places = np.array([(0, 0) if shard is None else shard.addresses for shard in kept], np.int64)
        n_rows = self.rows_GR.shape[1]
        widths = (some.arrays[0].shape[1], math.prod(some.arrays[1].shape[1:]))
        for i, (source, width, to, empty) in enumerate(zip(some.arrays, widths, self._flat, self._empty, strict=True)):
            one, stride = source.dtype.type(1), to.size // self.rows_GR.size
            copying.gather(
                one, self.rows_GR[: len(kept)], places[:, i], source.itemsize, width, to, n_rows, stride, empty
            )

    def losses(self, each_gKB: Float64, n_steps: int) -> Float64:
        """Mean loss of each batch, float64 (g, n_steps), from the samples' losses; NaN where a client has no step."""
        n_valid_gK = self.n_valid_GK[: each_gKB.shape[0], :n_steps]
        is_valid_gKB = np.arange(self.n_batch) < n_valid_gK[..., None]
        sums: Float64 = np.where(is_valid_gKB, each_gKB, 0.0).sum(axis=2)
        with np.errstate(invalid="ignore"):
            return sums / np.where(n_valid_gK == 0, np.nan, n_valid_gK)


class Feed:
    """Puts the batches of a group's tasks, one a slot and longest first, into the memory, block after block.

    The scale of a sample is one over its batch's samples, times the learning rate if `carries_rate`.
    """

    def __init__(
        self,
        batches: GroupBatches,
        training: TrainingConfig,
        seed: int,
        tasks: Sequence[Task],
        shards: Sequence[Samples],
        *,
        carries_rate: bool,
    ) -> None:
        self._batches = batches
        self._shards = shards
        self._passes = group_passes(training, seed, tasks)
        self._current: list[Pass | None] = [None] * len(tasks)
        per_pass = [batches_per_pass(training, task.n_samples) for task in tasks]
        self._n_steps = [task.n_steps for task in tasks]
        self._per_pass_G = np.array(per_pass)
        first_G = [task.first_step for task in tasks] if training.order == "continued" else [0] * len(tasks)
        self._first_G = np.array(first_G) % self._per_pass_G
        self._n_last_G = np.array([task.n_samples for task in tasks]) - (self._per_pass_G - 1) * training.batch_size
        self._rates_G = np.array([task.learning_rate if carries_rate else 1.0 for task in tasks])

    def fill(self, first: int, n_block: int, n_slots: int) -> None:
        """Fills the block with steps `first` to `first + n_block` of the first slots; some may have fewer left."""
        n_left = [min(n_block, n - first) for n in self._n_steps[:n_slots]]
        self._set_scale(first, n_block, np.array(n_left))
        for slot, n in enumerate(n_left):
            self._fill_slot(slot, n)
        if self._batches.is_on_host:
            self._batches.gather(self._shards[:n_slots])

    def _set_scale(self, first: int, n_block: int, n_left_g: Int64) -> None:
        batches, g = self._batches, n_left_g.size
        size, steps_K = batches.n_batch, np.arange(n_block)
        per_pass_g1 = self._per_pass_G[:g, None]
        is_last_gK = (self._first_G[:g, None] + first + steps_K) % per_pass_g1 == per_pass_g1 - 1
        n_valid_gK = np.where(is_last_gK, self._n_last_G[:g, None], size)
        n_valid_gK[steps_K >= n_left_g[:, None]] = 0
        batches.n_valid_GK[:g, :n_block] = n_valid_gK
        scale_gK = self._rates_G[:g, None] / np.maximum(n_valid_gK, 1)
        scale_gKB = np.where(np.arange(size) < n_valid_gK[..., None], scale_gK[..., None], 0.0)
        batches.scale_GKB[:g, :n_block].copy_(torch.from_numpy(scale_gKB))

    def _fill_slot(self, slot: int, n_steps: int) -> None:
        """Gathers a task's next `n_steps` batches, pass by pass: only a pass's last batch can be short."""
        size, shard, step = self._batches.n_batch, self._shards[slot], 0
        current = self._current[slot]
        is_kept = self._batches.is_on_host and isinstance(shard, DeviceShard)  # else where the data set lies
        while step < n_steps:
            if current is None:
                current = next(self._passes[slot])
            order_N, start, stop = current
            n = min(stop - start, n_steps - step)
            rows = order_N[start * size : (start + n) * size]
            if is_kept:
                to_R, end = self._batches.rows_GR[slot], step * size + rows.size
                to_R[step * size : end] = rows
                to_R[end : (step + n) * size] = copying.NOTHING
            else:
                _gather(self._batches, slot, shard, rows, step * size, (step + n) * size)
            current = Pass(order_N, start + n, stop) if start + n < stop else None
            step += n
        self._current[slot] = current
        if self._batches.is_on_host:
            self._batches.rows_GR[slot, n_steps * size if is_kept else 0 :] = copying.LEFT


def _gather(batches: GroupBatches, slot: int, shard: Samples, rows: Int64, first: int, end: int) -> None:
    """Copies samples to the slot's rows from `first`, and zeros to those that are left before `end`."""
    stop = first + rows.size
    if batches.is_on_host:
        shard.gather(rows, batches.x_arrays[slot][first:stop], batches.target_arrays[slot][first:stop])
    else:
        x, y = shard.batch(torch.from_numpy(rows).to(shard.device))
        batches.x_rows[slot][first:stop] = x.flatten(1)
        batches.target_rows[slot][first:stop] = y
    if stop < end:
        batches.x_rows[slot][stop:end] = 0
        batches.target_rows[slot][stop:end] = batches.padding
