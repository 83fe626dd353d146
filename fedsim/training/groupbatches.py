"""The batches of a group: gathered from the clients' shards into fixed memory, a block of steps at a time.

Every batch has the configured size; what a shard does not fill is zeros, whose scale is zero. Samples are copied, never
slices of a shard: products over slices were seen to differ with the byte offset.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch, `F` numbers of a sample, `N` samples of a client.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import TrainingConfig
from fedsim.training import copying
from fedsim.training.grouporders import GroupOrders
from fedsim.training.shards import Samples, Together
from fedsim.types import Float64, Int64

_BLOCK_BYTES = 1 << 20  # of samples, about what a core's own cache holds
_MAX_STEPS = 64
_ROW = 16  # samples start on 64-byte boundaries
_ONE_X = np.float32(1)  # of the type of all shards' inputs


def block_steps(n_slots: int, n_batch: int, sample_bytes: int) -> int:
    """How many steps of a group's samples fit the cache, one at least."""
    return min(max(_BLOCK_BYTES // (n_slots * n_batch * sample_bytes), 1), _MAX_STEPS)


class Batch:
    """A step's batches of the first slots: views of the group's, with the axes (g, B) in front."""

    def __init__(
        self,
        x_gBF: torch.Tensor,
        targets_gB: torch.Tensor,
        scale_gB: torch.Tensor,
        pieces_gB: torch.Tensor,
        n_features: int,
    ) -> None:
        self.x_gBF, self.targets_gB, self.scale_gB, self.pieces_gB = x_gBF, targets_gB, scale_gB, pieces_gB
        self.samples_gBF = x_gBF[:, :, :n_features]  # without their padding

    @cached_property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Targets, scale and pieces with an axis for the numbers of a target, or of an output."""
        scale_gB = self.scale_gB
        return self.targets_gB.reshape(*scale_gB.shape, -1), scale_gB.unsqueeze(2), self.pieces_gB.unsqueeze(2)

    @cached_property
    def places(self) -> Int64:
        """Of samples, targets, scale and pieces the address and the strides of a slot and of a block's step: (12,)."""
        every = (self.x_gBF, self.targets_gB, self.scale_gB, self.pieces_gB)
        numbers = [(tensor.data_ptr(), tensor.stride(0), tensor.shape[1] * tensor.stride(1)) for tensor in every]
        return np.array(numbers, np.int64).reshape(-1)


class GroupBatches:
    """Memory for a block of steps; `n_valid_GK` says how many samples of each batch are real.

    The others are zeros, and their targets `padding`, which is given in a shard's type. `targets_GKB` has the axes of
    its shape behind its own.
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
        self.n_features = n_features
        shape = (n_slots, self.n_steps, n_batch)
        self.x_GKBF = torch.zeros((*shape, stride), dtype=dtype, device=device)
        self.padding = padding.to(device, dtype if padding.is_floating_point() else None)
        self.targets_GKB = self.padding.expand(*shape, *padding.shape).clone()
        self.scale_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.pieces_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.n_valid_GK: Int64 = np.zeros(shape[:2], dtype=np.int64)
        rows = (n_slots, self.n_steps * n_batch)
        self.rows_GR = np.empty(rows, np.int64)  # which of its shard's samples each row holds
        self.x_rows = list(self.x_GKBF.view(*rows, stride)[:, :, :n_features])
        self.target_rows = list(self.targets_GKB.view(*rows, *padding.shape))
        self._one_y = padding.numpy().dtype.type(1)
        self.is_on_host = device.type == "cpu"
        if self.is_on_host:
            self.x_arrays = [rows_NF.numpy() for rows_NF in self.x_rows]
            self.target_arrays = [rows_N.numpy() for rows_N in self.target_rows]
            self._scale, self._pieces = self.scale_GKB.numpy(), self.pieces_GKB.numpy()
            self._targets = self.targets_GKB.numpy()
            self._filled = [v.numpy().reshape(-1) for v in (self.x_GKBF, self.targets_GKB, self.padding)]
        else:
            self._scale = self.scale_GKB.cpu().numpy()
            self._filled = [v.reshape(-1)[:0].cpu().numpy() for v in (self.x_GKBF, self.targets_GKB, self.padding)]

    def at(self, n_slots: int, k: int) -> Batch:
        """Step `k` of the first slots."""
        g = slice(n_slots)
        x_GKBF, targets_GKB, scale_GKB, pieces_GKB = self.x_GKBF, self.targets_GKB, self.scale_GKB, self.pieces_GKB
        return Batch(x_GKBF[g, k], targets_GKB[g, k], scale_GKB[g, k], pieces_GKB[g, k], self.n_features)

    def fill(
        self, table_FG: Int64, orders: GroupOrders, places_2G: Int64, rates_G: Float64, first: int, n_block: int, g: int
    ) -> None:
        """Takes a block of steps from `first` on, of the first slots: what samples weigh, and the samples themselves
        where they have places on the host; `rows_GR` names those of the others."""
        x, targets, padding_T = self._filled
        copying.fill(
            _ONE_X, self._one_y, places_2G, table_FG, orders.passes_7G, orders.orders_R, rates_G, first, n_block, g,
            self.n_features, x, targets, padding_T, self._scale, self.n_valid_GK, self.rows_GR,
        )  # fmt: skip
        if not self.is_on_host:
            self.scale_GKB[:g, :n_block].copy_(torch.from_numpy(self._scale[:g, :n_block]))

    def take(self, shard: Samples, slot: int) -> None:
        """Copies the samples that `rows_GR` names to a slot, by the shard's own methods."""
        rows_R = self.rows_GR[slot]
        rows_R = rows_R[rows_R != copying.LEFT]
        edges = np.flatnonzero(np.diff(rows_R == copying.NOTHING)) + 1
        for start, stop in pairwise([0, *edges.tolist(), rows_R.size]):
            if rows_R[start] == copying.NOTHING:
                self.x_rows[slot][start:stop] = 0
                self.target_rows[slot][start:stop] = self.padding
            elif self.is_on_host:
                x_BF, y_B = self.x_arrays[slot][start:stop], self.target_arrays[slot][start:stop]
                shard.gather(rows_R[start:stop], x_BF, y_B)
            else:
                x, y = shard.batch(torch.from_numpy(rows_R[start:stop]).to(shard.device))
                self.x_rows[slot][start:stop] = x.flatten(1)
                self.target_rows[slot][start:stop] = y

    def kept(self, n_slots: int, n_steps: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the steps of the block left in `pieces_GKB`, and the targets, of the first slots, on the host."""
        if self.is_on_host:
            return self._pieces[:n_slots, :n_steps], self._targets[:n_slots, :n_steps]
        both = (self.pieces_GKB, self.targets_GKB)
        pieces, targets = (values[:n_slots, :n_steps].cpu().numpy() for values in both)
        return pieces, targets


class Feed:
    """Puts the batches of a group's tasks, one a slot and longest first, into the memory, block after block.

    The scale of a sample is one over its batch's samples, times its task's `rates_G`.
    """

    def __init__(self, batches: GroupBatches, training: TrainingConfig, seed: int) -> None:
        self._batches = batches
        self._orders = GroupOrders(training, seed)
        self._others: list[tuple[int, Samples]] = []  # shards that compiled code does not read, with their slots

    def start(self, table_FG: Int64, data: Together, rates_G: Float64) -> None:
        """Takes the tasks of a group, and their shards."""
        self._table_FG, self._rates_G = table_FG, rates_G
        self._orders.start(table_FG)
        self._places_2G = data.places_2G if self._batches.is_on_host else np.zeros_like(data.places_2G)
        if not self._places_2G[0].all():
            self._others = [(slot, data.shards[slot]) for slot in np.flatnonzero(self._places_2G[0] == 0).tolist()]

    def finish(self) -> None:
        """All steps are taken, or left: shards that nobody else keeps go before those of the next group are made."""
        self._others = []
        self._orders.finish()

    def fill(self, first: int, n_block: int, n_slots: int) -> None:
        """Fills the block with steps `first` to `first + n_block` of the first slots; some may have fewer left."""
        self._orders.reach(first, n_block, n_slots)
        self._batches.fill(self._table_FG, self._orders, self._places_2G, self._rates_G, first, n_block, n_slots)
        for slot, shard in self._others:
            if slot < n_slots:
                self._batches.take(shard, slot)
