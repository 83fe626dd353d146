"""The data that a worker keeps on its device: the shards used last, within a bound.

Of what is large no shard is made: its batches are taken from where the data set lies (`fedsim.population.laid`), which
gives the same numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import DataError
from fedsim.population.laid import Laid
from fedsim.training.objectives import TaskLoss
from fedsim.types import Float32, Int64, Shard

_NO_SLOT = -1
_USED = 3  # the column of the last use
_LEAST_SLOTS = 64
_CHECKED_ROWS = 4096  # tokens of data that are mapped are looked at so many samples at a time


class Samples(Protocol):
    """A client's samples, as training reads them."""

    @property
    def n_samples(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def places(self) -> bytes:
        """Where the numbers of inputs and of targets begin, row after row without gaps, as two int64; zeros: they lie
        otherwise."""

    def batch(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, *sample_shape) and targets of some samples, int64 (B,) on the device, in memory of their own."""

    def gather(self, rows_B: Int64, x_BF: Float32, y_B: NDArray[Any]) -> None:
        """Writes inputs and targets of some samples to memory of the host, where the shard has to be, too."""


class DeviceShard:
    """A shard as training reads it: inputs float32 (N, *sample_shape) and targets (N,), on one device."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.n_samples: int = x.shape[0]  # asked of each shard of each group: to ask torch takes longer than to look up
        self.n_bytes = x.nbytes + y.nbytes
        self.device = x.device

    def batch(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Samples.batch`."""
        return self.x.index_select(0, rows_B), self.y.index_select(0, rows_B)

    def gather(self, rows_B: Int64, x_BF: Float32, y_B: NDArray[Any]) -> None:
        """See `Samples.gather`."""
        x_NF, y_N = self.arrays
        _take(x_NF, rows_B, x_BF)
        _take(y_N, rows_B, y_B)

    @cached_property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The same memory as arrays, if it is the host's: inputs (N, F), a row a sample, and targets (N,)."""
        return self.x.flatten(1).numpy(), self.y.numpy()

    @cached_property
    def places(self) -> bytes:
        """See `Samples.places`."""
        assert self.x.is_contiguous() and self.y.is_contiguous()
        return np.array([self.x.data_ptr(), self.y.data_ptr()], np.int64).tobytes()


class LaidShard:
    """Samples that stay where the data set lies, in the host's memory; only their targets are copied."""

    places = bytes(2 * 8)

    def __init__(self, laid: Laid, loss: TaskLoss) -> None:
        self._laid = laid
        self._shape = laid.inputs.shape[1:]
        self.y = loss.targets(laid.y)
        self.n_samples = laid.rows_N.size
        self.n_bytes = self.y.nbytes
        self.device = torch.device("cpu")

    def batch(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `Samples.batch`."""
        x = torch.empty((rows_B.numel(), *self._shape))  # torch's own memory: an array's may start anywhere
        self._laid.write(rows_B.numpy(), x.flatten(1).numpy())
        return x, self.y.index_select(0, rows_B)

    def gather(self, rows_B: Int64, x_BF: Float32, y_B: NDArray[Any]) -> None:
        """See `Samples.gather`."""
        self._laid.write(rows_B, x_BF)
        _take(self.y.numpy(), rows_B, y_B)


class Together:
    """The shards of a group, and in columns (G,) where their inputs and targets begin (`Samples.places`), and how many
    samples there are."""

    def __init__(self, shards: Sequence[Samples], columns_3G: Int64) -> None:
        self.shards = shards  # held: their memory is read by address
        self.places_2G: Int64 = columns_3G[:2]
        self.n_samples_G: Int64 = columns_3G[2]

    @classmethod
    def of(cls, shards: Sequence[Samples]) -> Together:
        """These, kept or not."""
        columns = [(*np.frombuffer(shard.places, np.int64), shard.n_samples) for shard in shards]
        return cls(shards, np.array(columns, np.int64).T.copy())


class ShardCache:
    """Shards on a device, least recently used first; those kept never hold more than `bound_bytes`.

    `vocabulary` is given where samples are tokens: whole numbers below it. On a CPU no shard is made of data that lie
    somewhere and are large, or of which `n_at_once` shards would not fit the bound.
    """

    def __init__(
        self,
        bound_bytes: int,
        device: torch.device,
        loss: TaskLoss,
        vocabulary: int | None = None,
        n_at_once: int = 1,
    ) -> None:
        self._vocabulary = vocabulary
        self._largest_bytes = bound_bytes // n_at_once
        self._bound_bytes = bound_bytes
        self._device = device
        self._loss = loss
        self._slots: dict[Hashable, int] = {}
        self._kept: list[DeviceShard | LaidShard | None] = []  # by slot
        self._free: list[int] = []
        self._columns_4S: Int64 = np.empty((4, 0), np.int64)  # see `Together`; and when each was used last
        self._queue: list[tuple[int, int, Hashable]] = []  # a heap: when each was used, or earlier
        self._n_uses = 0
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards kept."""
        return self._n_bytes

    def find_all(self, keys: Sequence[Hashable]) -> list[DeviceShard | LaidShard | None]:
        """The shards of `keys` that are kept, None for the others; they are then the last that were used, in order."""
        slots = [self._slots.get(key, _NO_SLOT) for key in keys]
        self._used(np.array([slot for slot in slots if slot != _NO_SLOT], np.int64))
        return [None if slot == _NO_SLOT else self._kept[slot] for slot in slots]

    def together(self, kind: str, clients: Sequence[int]) -> Together | None:
        """The shards of keys (kind, client), if all are kept; they are then the last that were used, in order."""
        slots = list(map(self._slots.get, zip(repeat(kind), clients)))
        if None in slots:
            return None
        slots_G = np.array(slots, np.int64)
        self._used(slots_G)
        shards = [shard for shard in map(self._kept.__getitem__, slots_G.tolist()) if shard is not None]
        assert len(shards) == len(slots)
        return Together(shards, self._columns_4S[:_USED].take(slots_G, 1))

    def _used(self, slots_G: Int64) -> None:
        """These were used one after the other."""
        used_S = self._columns_4S[_USED]
        used_S[slots_G] = np.arange(self._n_uses, self._n_uses + slots_G.size)
        self._n_uses += slots_G.size

    def get(
        self, key: Hashable, make: Callable[[], Shard], lay: Callable[[], Laid | None] = lambda: None
    ) -> DeviceShard | LaidShard:
        """The shard of `key`, made if it is not kept; one larger than the bound is served and not kept.

        `lay` says where its samples lie, if they do.
        """
        (shard,) = self.find_all([key])
        if shard is not None:
            return shard
        shard = self._laid(key, lay) or self._made(key, make)
        if shard.n_bytes <= self._bound_bytes:
            self._keep(key, shard)
        return shard

    def _made(self, key: Hashable, make: Callable[[], Shard]) -> DeviceShard:
        made = make()
        if self._vocabulary is not None:
            _check_tokens(np.asarray(made.x), self._vocabulary, key)
        return self._on_device(made)

    def _laid(self, key: Hashable, lay: Callable[[], Laid | None]) -> LaidShard | None:
        """The shard of samples that better stay where they lie."""
        laid = lay() if self._device.type == "cpu" else None
        if laid is None or not (laid.is_large or laid.n_bytes > self._largest_bytes):
            return None
        if self._vocabulary is not None:
            for first in range(0, laid.rows_N.size, _CHECKED_ROWS):
                part = laid.inputs[laid.rows_N[first : first + _CHECKED_ROWS]]
                _check_tokens(part, self._vocabulary, key, first)
        return LaidShard(laid, self._loss)

    def _keep(self, key: Hashable, shard: DeviceShard | LaidShard) -> None:
        while self._n_bytes + shard.n_bytes > self._bound_bytes:
            self._let_go_of_one()
        if not self._free:
            n_slots = len(self._kept)
            n_more = max(_LEAST_SLOTS, n_slots)
            self._free = list(range(n_slots, n_slots + n_more))
            self._kept += [None] * n_more
            self._columns_4S = np.pad(self._columns_4S, ((0, 0), (0, n_more)))
        slot = self._free.pop()
        self._slots[key], self._kept[slot] = slot, shard
        self._columns_4S[:, slot] = *np.frombuffer(shard.places, np.int64), shard.n_samples, self._n_uses
        heapq.heappush(self._queue, (self._n_uses, slot, key))
        self._n_uses += 1
        self._n_bytes += shard.n_bytes

    def _let_go_of_one(self) -> None:
        """The one whose last use is longest ago."""
        while True:
            used, slot, key = heapq.heappop(self._queue)
            last_used = int(self._columns_4S[_USED, slot])
            if used == last_used:
                break
            heapq.heappush(self._queue, (last_used, slot, key))
        shard = self._kept[slot]
        assert shard is not None
        self._n_bytes -= shard.n_bytes
        self._kept[slot] = None
        self._free.append(slot)
        del self._slots[key]

    def _on_device(self, shard: Shard) -> DeviceShard:
        x = np.ascontiguousarray(shard.x, dtype=np.float32)
        x = x if x.flags.writeable else x.copy()  # torch warns of memory that it may not write
        y, like = self._loss.targets(shard.y).contiguous(), self._loss.padding  # compiled code reads them as numbers
        assert (y.dtype, y.shape[1:]) == (like.dtype, like.shape)
        return DeviceShard(torch.from_numpy(x).to(self._device), y.to(self._device))


def vocabulary_of(module: torch.nn.Module) -> int | None:
    """How many tokens a module with embeddings knows; None for one without, whose samples are no tokens."""
    sizes = [layer.num_embeddings for layer in module.modules() if isinstance(layer, torch.nn.Embedding)]
    return min(sizes, default=None)


def _take(values: NDArray[Any], rows: Int64, out: NDArray[Any]) -> None:
    if values.dtype == out.dtype:
        values.take(rows, 0, out, "clip")  # "clip" spares a buffer; rows are in range
    else:
        out[...] = values[rows]


def _check_tokens(x: NDArray[Any], vocabulary: int, key: Hashable, first: int = 0) -> None:
    """Raises DataError for what an embedding cannot look up; in a group, it could find a neighbour's vector.

    `x` holds the samples from `first` on.
    """
    with np.errstate(invalid="ignore"):
        is_good = (x >= 0) & (x < vocabulary) & (x == np.floor(x))
    if not is_good.all():
        row, *rest = (int(i) for i in np.argwhere(~is_good)[0])
        place = (first + row, *rest)
        where = f"{key[0]} samples of client {key[1]}" if isinstance(key, tuple) else f"{key} test samples"
        raise DataError(
            f"{where}: value at {place} is {x[row, *rest]:g}, but the model embeds tokens: "
            f"whole numbers from 0 to {vocabulary - 1} (model.vocabulary)"
        )
