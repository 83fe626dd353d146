"""Flat vectors of a group, each wherever it lies: what compiled code takes by address, and torch as one tensor.

A group's bases are versions that may be anywhere in memory, and its updates may be wanted in rows that do not lie
together. Shapes: `G` vectors of `P` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.types import Int64
from fedsim.whereabouts import address, addresses

Vector = NDArray[Any]


class Flat:
    """Vectors (P,) of one type, each without gaps, or an array (G, P); `addresses_G` are where they begin."""

    def __init__(self, vectors: Sequence[Vector] | Vector, addresses_G: Int64 | None = None) -> None:
        """`addresses_G` where they are known."""
        self.vectors: Any = vectors
        self._rows_GP = vectors if isinstance(vectors, np.ndarray) else None  # where they lie together
        self.is_one = self._rows_GP is None and all(map(is_, vectors, repeat(vectors[0])))
        if addresses_G is None:
            addresses_G = np.full(len(vectors), address(vectors[0])) if self.is_one else addresses(vectors)
        self.addresses_G: Int64 = addresses_G

    @classmethod
    def of(cls, tensor_GP: Tensor) -> Flat:
        """Those of a tensor on the host, whose rows have no gaps."""
        if tensor_GP.stride(0) == 0:
            return cls([tensor_GP[0].numpy()] * tensor_GP.shape[0])
        return cls(tensor_GP.numpy())

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def n_values(self) -> int:
        """Numbers of each: P."""
        n: int = self.vectors[0].size
        return n

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of their numbers."""
        found: np.dtype[Any] = self.vectors[0].dtype
        return found

    def ordered(self, order_G: Int64) -> Flat:
        """The same vectors, that of number `order_G[i]` at place i."""
        return Flat([self.vectors[i] for i in order_G.tolist()], self.addresses_G[order_G])

    def part(self, start: int, stop: int) -> Flat:
        """Some of them."""
        if start == 0 and stop == len(self.vectors):
            return self
        return Flat(self.vectors[start:stop], self.addresses_G[start:stop])

    def one(self, i: int) -> Flat:
        """One of them."""
        return self.part(i, i + 1)

    def tensor(self) -> Tensor:
        """The vectors (G, P); one that all are is there once, with a stride of zero. A copy, not to be written to."""
        if self.is_one:
            return torch.from_numpy(self.vectors[0][None].copy()).expand(len(self.vectors), -1)
        return torch.from_numpy(np.stack(self.vectors))

    def take(self, values_GP: Tensor) -> None:
        """Writes values (G, P), wherever they are, to the vectors."""
        if self._rows_GP is not None:
            torch.from_numpy(self._rows_GP).copy_(values_GP)  # one transfer
            return
        for vector, values in zip(self.vectors, values_GP.cpu().numpy(), strict=True):
            vector[:] = values
