"""The data that a worker keeps on its device: the shards used last, within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import DataError
from fedsim.training.objectives import TaskLoss
from fedsim.types import Shard


@dataclass(frozen=True)
class DeviceShard:
    """A shard as training reads it: inputs float32 (N, *sample_shape) and targets (N,), on one device."""

    x: Tensor
    y: Tensor

    @property
    def n_samples(self) -> int:
        return self.x.shape[0]

    @property
    def n_bytes(self) -> int:
        return self.x.nbytes + self.y.nbytes

    @cached_property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The same memory as arrays, if it is the host's: inputs (N, F), a row a sample, and targets (N,)."""
        return self.x.flatten(1).numpy(), self.y.numpy()


class ShardCache:
    """Shards on a device, least recently used first; those kept never hold more than `bound_bytes`.

    `vocabulary` is given where samples are tokens: whole numbers below it.
    """

    def __init__(self, bound_bytes: int, device: torch.device, loss: TaskLoss, vocabulary: int | None = None) -> None:
        self._vocabulary = vocabulary
        self._bound_bytes = bound_bytes
        self._device = device
        self._loss = loss
        self._kept: OrderedDict[Hashable, DeviceShard] = OrderedDict()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards kept."""
        return self._n_bytes

    def get(self, key: Hashable, make: Callable[[], Shard]) -> DeviceShard:
        """The shard of `key`, made if it is not kept; one larger than the bound is served and not kept."""
        shard = self._kept.get(key)
        if shard is not None:
            self._kept.move_to_end(key)
            return shard
        made = make()
        if self._vocabulary is not None:
            _check_tokens(made, self._vocabulary, key)
        shard = self._on_device(made)
        if shard.n_bytes <= self._bound_bytes:
            self._keep(key, shard)
        return shard

    def _keep(self, key: Hashable, shard: DeviceShard) -> None:
        while self._n_bytes + shard.n_bytes > self._bound_bytes:
            self._n_bytes -= self._kept.popitem(last=False)[1].n_bytes
        self._kept[key] = shard
        self._n_bytes += shard.n_bytes

    def _on_device(self, shard: Shard) -> DeviceShard:
        x = np.ascontiguousarray(shard.x, dtype=np.float32)
        x = x if x.flags.writeable else x.copy()  # torch warns of memory that it may not write
        return DeviceShard(torch.from_numpy(x).to(self._device), self._loss.targets(shard.y).to(self._device))


def vocabulary_of(module: torch.nn.Module) -> int | None:
    """How many tokens a module with embeddings knows; None for one without, whose samples are no tokens."""
    sizes = [layer.num_embeddings for layer in module.modules() if isinstance(layer, torch.nn.Embedding)]
    return min(sizes, default=None)


def _check_tokens(shard: Shard, vocabulary: int, key: Hashable) -> None:
    """Raises DataError for what an embedding cannot look up; in a group, it could find a neighbour's vector."""
    x = np.asarray(shard.x)
    with np.errstate(invalid="ignore"):
        is_good = (x >= 0) & (x < vocabulary) & (x == np.floor(x))
    if not is_good.all():
        place = tuple(int(i) for i in np.argwhere(~is_good)[0])
        where = f"{key[0]} samples of client {key[1]}" if isinstance(key, tuple) else f"{key} test samples"
        raise DataError(
            f"{where}: value at {place} is {x[place]:g}, but the model embeds tokens: "
            f"whole numbers from 0 to {vocabulary - 1} (model.vocabulary)"
        )
