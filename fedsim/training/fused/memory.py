"""Where a group's numbers lie: rows of 64-byte blocks, so that a client's bits depend on no slot and no neighbour.

Products of stacked operands were seen to change with the slot in a fifth of all shapes when rows had odd lengths, and
in none once every row starts on a 64-byte boundary. Products go over the padding, too, which holds zeros: one with 10
columns took four times as long as one with 16. Each parameter has a tensor of its own for all slots, without gaps,
because torch takes stacked products one by one where the result has gaps. Elementwise kernels work through blocks of
up to 64 floats and end with a scalar tail of other rounding, so they are given whole blocks.
Shapes: `G` slots, `g` slots at work, `P` parameters, `Q` floats of a parameter with its padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.layout import Layout
from fedsim.training.flat import Flat
from fedsim.training.fused import moving
from fedsim.types import Float64

ROW = 16  # floats of a 64-byte block
BLOCK = 64  # floats that the widest elementwise kernel takes at once


def padded(n: int, multiple: int = ROW) -> int:
    """`n` raised to a multiple.

    >>> padded(1), padded(16), padded(17), padded(65, BLOCK)
    (16, 16, 32, 128)
    """
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: in the flat vector from `source` on; in its slab as rows of `stride` floats.

    A matrix has `n_padded` rows there, the last of them zeros; another parameter is one row.
    """

    source: int
    n_rows: int
    n_columns: int
    stride: int
    n_padded: int

    @property
    def n_floats(self) -> int:
        """Floats of a client's part, with padding: Q."""
        return self.n_padded * self.stride


class Places:
    """The places of a layout's parameters, all or some; those in `in_rows` are matrices whose rows are padded."""

    def __init__(self, layout: Layout, in_rows: Sequence[str], names: Sequence[str] | None = None) -> None:
        self.by_name: dict[str, Place] = {}
        self.matrices = [i for i, shape in enumerate(layout.shapes) if len(shape) > 1]  # weights, by their number
        for name, shape, source in zip(layout.names, layout.shapes, layout.offsets, strict=True):
            if names is not None and name not in names:
                continue
            n_rows = shape[0] if name in in_rows else 1
            n_columns = math.prod(shape) // n_rows
            n_padded = padded(n_rows) if name in in_rows else 1
            self.by_name[name] = Place(source, n_rows, n_columns, padded(n_columns), n_padded)
        self.n_floats = sum(place.n_floats for place in self.by_name.values())

    def slab(self, n_slots: int, dtype: torch.dtype, device: torch.device) -> Slab:
        """New zeros for `n_slots` clients."""
        return Slab(self, n_slots, dtype, device)


class Slab:
    """One number a parameter and client, such as the weights, with padding that stays zero."""

    def __init__(self, places: Places, n_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.places = places
        self.matrices = places.matrices
        self.n_slots = n_slots
        self._dtype, self._device = dtype, device
        self._flat = {
            name: torch.zeros(padded(n_slots * place.n_floats, BLOCK), dtype=dtype, device=device)
            for name, place in places.by_name.items()
        }
        self._table = np.array(
            [
                (place.source, place.n_rows, place.n_columns, place.stride, place.n_floats, flat.data_ptr())
                for place, flat in zip(places.by_name.values(), self._flat.values(), strict=True)
            ],
            np.int64,
        ).reshape(-1, 6)
        self._one, self._n_bytes = (np.float32(1) if dtype is torch.float32 else np.float64(1)), dtype.itemsize
        self._is_compiled = device.type == "cpu" and dtype in (torch.float32, torch.float64)

    @cached_property
    def n_values(self) -> int:
        """Values of a client without padding: P."""
        return sum(place.n_rows * place.n_columns for place in self.places.by_name.values())

    def like(self) -> Slab:
        """Zeros of the same form."""
        return Slab(self.places, self.n_slots, self._dtype, self._device)

    def blocks(self, n_slots: int) -> list[Tensor]:
        """Each parameter of the first slots, raised to whole blocks, as a vector for elementwise work."""
        return [
            flat[: padded(n_slots * place.n_floats, BLOCK)]
            for flat, place in zip(self._flat.values(), self.places.by_name.values(), strict=True)
        ]

    def parts(self, n_slots: int) -> list[Tensor]:
        """Each parameter of the first slots: views (n_slots, Q), for what differs by client."""
        return [
            flat[: n_slots * place.n_floats].view(n_slots, place.n_floats)
            for flat, place in zip(self._flat.values(), self.places.by_name.values(), strict=True)
        ]

    def zero(self, n_slots: int) -> None:
        """Sets the first slots to zero."""
        for part_gQ in self.parts(n_slots):
            part_gQ.zero_()

    def rows(self, name: str, n_slots: int) -> Tensor:
        """A parameter of the first slots as matrices without padding: a view (n_slots, n_rows, n_columns)."""
        place = self.places.by_name[name]
        return self.full(name, n_slots)[:, : place.n_rows, : place.n_columns]

    def full(self, name: str, n_slots: int) -> Tensor:
        """A parameter of the first slots as matrices with their padding: a view (n_slots, n_padded, stride)."""
        place = self.places.by_name[name]
        return self._flat[name][: n_slots * place.n_floats].view(n_slots, place.n_padded, place.stride)

    def flat(self, name: str, n_slots: int) -> Tensor:
        """A parameter that is no matrix, without its padding: a view (n_slots, n_values)."""
        assert self.places.by_name[name].n_rows == 1
        return self.rows(name, n_slots).squeeze(1)

    def load(self, vectors: Flat) -> None:
        """Copies flat vectors into the first slots."""
        if self._takes(vectors):
            moving.load(self._one, self._table, vectors.addresses_G, self._n_bytes)
            return
        self._put(on_device(vectors.tensor(), self._device))

    def put(self, vectors_GP: Tensor) -> None:
        """`load`, of vectors that are on the slab's device."""
        if self._device.type == "cpu":
            self.load(Flat.of(vectors_GP))
        else:
            self._put(vectors_GP)

    def _put(self, vectors_GP: Tensor) -> None:
        for name, place in self.places.by_name.items():
            self.rows(name, vectors_GP.shape[0]).copy_(_part(vectors_GP, place))

    def subtract(self, base: Flat, first: int, out: Flat) -> Float64 | None:
        """Writes slots `first` and on, less their base, to the parameters' places in `out`; the norms of these vectors,
        if that is all of them and compiled code does it."""
        if self._takes(base) and self._takes(out):
            is_all = self.n_values == out.n_values
            norms_G, places = np.empty(len(out) if is_all else 0), (base.addresses_G, out.addresses_G)
            moving.subtract(self._one, self._table, first, *places, self._n_bytes, out.n_values, norms_G)
            return norms_G if is_all else None
        base_GP = on_device(base.tensor(), self._device)
        self._write(out, lambda name, place: self._from(name, first, out) - _part(base_GP, place))
        return None

    def read(self, first: int, out: Flat) -> None:
        """Writes slots `first` and on to the parameters' places in `out`."""
        if self._takes(out):
            moving.read(self._one, self._table, first, out.addresses_G, self._n_bytes)
            return
        self._write(out, lambda name, place: self._from(name, first, out))

    def _from(self, name: str, first: int, out: Flat) -> Tensor:
        return self.rows(name, first + len(out))[first:]

    def _write(self, out: Flat, values_of: Callable[[str, Place], Tensor]) -> None:
        """Writes what torch computes to the vectors, in one transfer where that is all of them."""
        places = list(self.places.by_name.items())
        if not places:
            return
        values_GV = torch.cat([values_of(name, place).reshape(len(out), -1) for name, place in places], dim=1)
        if values_GV.shape[1] == out.vectors[0].size:
            out.take(values_GV)
            return
        on_host, start = values_GV.cpu().numpy(), 0
        for _, place in places:
            n = place.n_rows * place.n_columns
            for vector, row in zip(out.vectors, on_host, strict=True):
                vector[place.source : place.source + n] = row[start : start + n]
            start += n

    def _takes(self, vectors: Flat) -> bool:
        """Whether compiled code can move these vectors: to or from a slab on the host, of the same type."""
        return self._is_compiled and vectors.dtype == (np.float32 if self._n_bytes == 4 else np.float64)


def on_device(vectors_GP: Tensor, device: torch.device) -> Tensor:
    """Vectors on a device; one that is given for all slots is sent once."""
    if vectors_GP.stride(0) == 0:
        return vectors_GP[:1].to(device).expand(vectors_GP.shape)
    return vectors_GP.to(device)


def _part(vectors_GP: Tensor, place: Place) -> Tensor:
    """A parameter's values in flat vectors, as matrices: a view (G, n_rows, n_columns)."""
    stride_G, stride_P = vectors_GP.stride()
    assert stride_P == 1
    size = (vectors_GP.shape[0], place.n_rows, place.n_columns)
    return vectors_GP.as_strided(size, (stride_G, place.n_columns, 1), vectors_GP.storage_offset() + place.source)
