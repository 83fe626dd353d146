"""The batches of a group: gathered from the clients' shards into fixed memory, a block of steps at a time.

Every batch has the configured size; what a shard does not fill is zeros, whose scale is zero. Samples are copied, never
slices of a shard: products over slices were seen to differ with the byte offset.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch, `F` numbers of a sample, `N` samples of a client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import TrainingConfig
from fedsim.training import copying
from fedsim.training.batches import GroupOrders, Numbers
from fedsim.training.shards import DeviceShard, Samples, places_of
from fedsim.types import Float64, Int64

_BLOCK_BYTES = 1 << 20  # of samples, about what a core's own cache holds
_MAX_STEPS = 64
_ROW = 16  # samples start on 64-byte boundaries


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
        self.n_features = n_features
        shape = (n_slots, self.n_steps, n_batch)
        self.x_GKBF = torch.zeros((*shape, stride), dtype=dtype, device=device)
        self.padding = padding.to(device)
        self.targets_GKB = self.padding.expand(*shape, *padding.shape).clone()
        self.scale_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.pieces_GKB = torch.zeros(shape, dtype=dtype, device=device)
        self.n_valid_GK: Int64 = np.zeros(shape[:2], dtype=np.int64)
        rows = (n_slots, self.n_steps * n_batch)
        self.rows_GR = np.empty(rows, np.int64)  # which of its shard's samples each row holds
        self.x_rows = list(self.x_GKBF.view(*rows, stride)[:, :, :n_features])
        self.target_rows = list(self.targets_GKB.view(*rows, *padding.shape))
        self._is_full = False
        self.is_on_host = device.type == "cpu"
        if self.is_on_host:
            self.x_arrays = [rows_NF.numpy() for rows_NF in self.x_rows]
            self.target_arrays = [rows_N.numpy() for rows_N in self.target_rows]
            self._scale, self._pieces = self.scale_GKB.numpy(), self.pieces_GKB.numpy()
            self._targets = self.targets_GKB.numpy()
            self._flat = [values.numpy().reshape(-1) for values in (self.x_GKBF, self.targets_GKB)]
            self._empty = [np.zeros(stride, self._flat[0].dtype), self.padding.numpy().reshape(-1)]
        else:
            self._scale = self.scale_GKB.cpu().numpy()

    def at(self, n_slots: int, k: int) -> Batch:
        """Step `k` of the first slots."""
        g = slice(n_slots)
        x_GKBF, targets_GKB, scale_GKB, pieces_GKB = self.x_GKBF, self.targets_GKB, self.scale_GKB, self.pieces_GKB
        return Batch(x_GKBF[g, k], targets_GKB[g, k], scale_GKB[g, k], pieces_GKB[g, k], self.n_features)

    def plan(self, orders: GroupOrders, numbers: Numbers, rates_G: Float64, first: int, n_block: int, g: int) -> None:
        """Takes the rows of a block of steps from `first` on, of the first slots; and what their samples weigh."""
        n_short = copying.plan(
            orders.orders_R, orders.firsts_G, orders.strides_G, orders.begin_G, orders.starts_G, numbers.sizes_G,
            numbers.n_steps_G, rates_G, first, n_block, g, self.rows_GR, self.n_valid_GK, self._scale,
        )  # fmt: skip
        self._is_full = n_short == 0
        if not self.is_on_host:
            self.scale_GKB[:g, :n_block].copy_(torch.from_numpy(self._scale[:g, :n_block]))

    def gather(self, sources: Sources, n_slots: int) -> None:
        """Copies the samples that `rows_GR` names to the first slots, on the host."""
        n_rows, n_all, rows_gR = self.rows_GR.shape[1], self.rows_GR.size, self.rows_GR[:n_slots]
        for kind, places_G, to, empty in zip(sources.kinds, sources.places, self._flat, self._empty, strict=True):
            copying.gather(
                kind.one, rows_gR, places_G, kind.n_bytes, kind.width, to, n_rows, to.size // n_all, empty
            )  # fmt: skip

    def take(self, shard: Samples, slot: int) -> None:
        """Copies the samples that `rows_GR` names to a slot, by the shard's own methods; none is left to `gather`."""
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
        self.rows_GR[slot] = copying.LEFT

    def kept(self, n_slots: int, n_steps: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the steps of the block left in `pieces_GKB`, and the targets, of the first slots, on the host."""
        if self.is_on_host:
            return self._pieces[:n_slots, :n_steps], self._targets[:n_slots, :n_steps]
        both = (self.pieces_GKB, self.targets_GKB)
        pieces, targets = (values[:n_slots, :n_steps].cpu().numpy() for values in both)
        return pieces, targets

    def losses(self, each_gKB: Float64, n_steps: int) -> Float64:
        """Mean loss of each batch, float64 (g, n_steps), from the samples' losses; NaN where a client has no step."""
        n_valid_gK = self.n_valid_GK[: each_gKB.shape[0], :n_steps]
        if self._is_full:
            means: Float64 = each_gKB.sum(axis=2)
            means /= self.n_batch
            return means
        is_valid_gKB = np.arange(self.n_batch) < n_valid_gK[..., None]
        sums: Float64 = np.where(is_valid_gKB, each_gKB, 0.0).sum(axis=2)
        with np.errstate(invalid="ignore"):
            return sums / np.where(n_valid_gK == 0, np.nan, n_valid_gK)


class Kind(NamedTuple):
    """The numbers of samples, or of targets: one of them, its bytes, and how many a sample has."""

    one: Any
    n_bytes: int
    width: int


class Sources:
    """Where the samples of a group lie that are kept on the host: addresses (G,) of inputs and of targets.

    `others` are the slots of shards that lie elsewhere, which have no address.
    """

    def __init__(self, shards: Sequence[Samples]) -> None:
        self.places = places_of(shards)
        inputs_G = self.places[0]
        self.others = [] if inputs_G.all() else np.flatnonzero(inputs_G == 0).tolist()
        some = next((shard for shard in shards if isinstance(shard, DeviceShard)), None)
        self.kinds = [] if some is None else [
            Kind(values.dtype.type(1), values.itemsize, math.prod(values.shape[1:])) for values in some.arrays
        ]  # fmt: skip


class Feed:
    """Puts the batches of a group's tasks, one a slot and longest first, into the memory, block after block.

    The scale of a sample is one over its batch's samples, times its task's `rates_G`.
    """

    def __init__(
        self,
        batches: GroupBatches,
        training: TrainingConfig,
        seed: int,
        numbers: Numbers,
        shards: Sequence[Samples],
        rates_G: Float64,
    ) -> None:
        self._batches, self._numbers, self._shards, self._rates_G = batches, numbers, shards, rates_G
        self._orders = GroupOrders(training, seed, numbers)
        self._sources = Sources(shards) if batches.is_on_host else None

    def fill(self, first: int, n_block: int, n_slots: int) -> None:
        """Fills the block with steps `first` to `first + n_block` of the first slots; some may have fewer left."""
        self._orders.reach(first, np.minimum(self._numbers.n_steps_G[:n_slots] - first, n_block))
        self._batches.plan(self._orders, self._numbers, self._rates_G, first, n_block, n_slots)
        others = range(n_slots) if self._sources is None else self._sources.others
        for slot in others:
            if slot < n_slots:
                self._batches.take(self._shards[slot], slot)
        if self._sources is not None and self._sources.kinds:
            self._batches.gather(self._sources, n_slots)
