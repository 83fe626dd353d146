"""Convolutions of many clients as one, with a group of channels a client, channels last; or as some of such.

The library chooses how it sums by the sizes of a call, and the number of clients is one of them: of one input channel
each, three clients have other bits than two or four (oneDNN 3.12 at AVX2 takes them for the colours of an image), and
a large convolution is cut in other places from five on. So a shape is tried once, on noise: clients are taken together
if each has the bits that it would have as one of two, else as few at a time as it takes. Two are the least because one
alone is always another kernel's work.

Shapes: `B` batch, `g` slots, `C` channels and `O` outputs of one client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fedsim import seeding

_aten = torch.ops.aten
Size = tuple[int, ...]
Wanted = tuple[bool, bool, bool]
_LEAST = 2  # clients in a call
_MOST_TRIES = 32
_TRIED_NUMBERS = 4096  # of a result, over all tries: where sums are short, many of their bits are the same by any order


class How(NamedTuple):
    """What a call is told besides tensors; `groups` are those of one client."""

    stride: Size
    padding: Size
    dilation: Size
    groups: int

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None, n_slots: int) -> Tensor:
        """(B, n O, ...) of x (B, n C, ...), w (n O, ...) and b (n O,)."""
        return torch.conv2d(x, w, b, self.stride, self.padding, self.dilation, n_slots * self.groups)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, wanted: Wanted, n_slots: int) -> tuple[Tensor | None, ...]:
        """The gradients that are wanted of x, w and b; None for the others."""
        found = _aten.convolution_backward(
            dy, x, w, [w.shape[0]], self.stride, self.padding, self.dilation,
            False, [0, 0], n_slots * self.groups, wanted,
        )  # fmt: skip
        return cast("tuple[Tensor | None, ...]", found)


class Grouped:
    """The convolution of `n_slots` clients, of x_size (B, C, H, W) and w_size (O, C / groups, kh, kw) each."""

    def __init__(
        self, how: How, n_slots: int, x_size: Size, w_size: Size, *, has_bias: bool, wanted: Wanted,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        self._how, self._n_slots, self._wanted = how, n_slots, wanted
        is_tried = device.type == "cpu"  # elsewhere so many slots compute each time
        self._n_forward = most_alike(how, n_slots, x_size, w_size, has_bias, None, dtype) if is_tried else n_slots
        self._n_backward = most_alike(how, n_slots, x_size, w_size, has_bias, wanted, dtype) if is_tried else n_slots

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """(B, g O, ...), channels last, of x (B, g C, H, W), w (g O, ...) and b (g O,)."""
        n = self._n_forward
        if n == self._n_slots:
            return self._how.forward(x, w, b, n)
        parts = [
            self._how.forward(
                self._maps(x, s, n), self._part(w, 0, s, n), None if b is None else self._part(b, 0, s, n), n
            )
            for s in self._starts(n)
        ]
        return self._joined(parts, 1, n).contiguous(memory_format=torch.channels_last)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are wanted of x, w and b; None for the others."""
        n = self._n_backward
        if n == self._n_slots:
            return self._how.backward(dy, x, w, self._wanted, n)
        parts = [
            self._how.backward(self._maps(dy, s, n), self._maps(x, s, n), self._part(w, 0, s, n), self._wanted, n)
            for s in self._starts(n)
        ]
        dx, dw, db = (
            self._joined([part[i] for part in parts], int(i == 0), n) if is_wanted else None
            for i, is_wanted in enumerate(self._wanted)
        )
        return None if dx is None else dx.contiguous(memory_format=torch.channels_last), dw, db

    def _starts(self, n: int) -> list[int]:
        """Where runs of `n` slots begin; the last one in the run before, where it would else end behind all."""
        return [min(first, self._n_slots - n) for first in range(0, self._n_slots, n)]

    def _part(self, tensor: Tensor, axis: int, start: int, n: int) -> Tensor:
        n_each = tensor.shape[axis] // self._n_slots
        return tensor.narrow(axis, start * n_each, n * n_each)

    def _maps(self, maps: Tensor, start: int, n: int) -> Tensor:
        return self._part(maps, 1, start, n).contiguous(memory_format=torch.channels_last)

    def _joined(self, parts: Sequence[Tensor | None], axis: int, n: int) -> Tensor:
        """What runs of `n` slots gave; of slots that are in two of them, once."""
        *first, last = (part for part in parts if part is not None)
        n_each = last.shape[axis] // n
        n_left = n_each * (self._n_slots - n * len(first))
        return torch.cat([*first, last.narrow(axis, n * n_each - n_left, n_left)], axis)


@lru_cache(4096)
def most_alike(
    how: How, n_slots: int, x_size: Size, w_size: Size, has_bias: bool, wanted: Wanted | None, dtype: torch.dtype
) -> int:
    """How many of so many clients a call may take on the host: the most whose bits are those of two, or of all there
    are. `wanted` are the gradients, None for the way forward."""
    if wanted is not None and not any(wanted):
        return n_slots
    for n in range(n_slots, _LEAST, -1):
        if _are_alike(how, n, x_size, w_size, has_bias, wanted, dtype):
            return n
    return min(n_slots, _LEAST)


def _are_alike(
    how: How, n: int, x_size: Size, w_size: Size, has_bias: bool, wanted: Wanted | None, dtype: torch.dtype
) -> bool:
    """Whether each of `n` clients has the bits that it would have as one of two, tried on noise that all share."""
    nothing_x, nothing_w = (torch.empty(size, device="meta") for size in (x_size, w_size))
    y_size = how.forward(nothing_x, nothing_w, None, 1).shape
    noise, n_left, n_tries = seeding.generator(0, seeding.Purpose.TRIAL), _TRIED_NUMBERS, 0
    with _one_thread():
        while n_left > 0 and n_tries < _MOST_TRIES:
            x, w, b, dy = (
                torch.from_numpy(noise.standard_normal(size)).to(dtype) for size in (x_size, w_size, w_size[:1], y_size)
            )
            few, many = (_of_alike(how, x, w, b if has_bias else None, dy, wanted, n_) for n_ in (_LEAST, n))
            for pair, all_ in zip(few, many, strict=True):
                first = _bits(pair[:1])
                if not ((_bits(pair) == first).all() and (_bits(all_) == first).all()):
                    return False
            n_left, n_tries = n_left - min(one[0].numel() for one in few), n_tries + 1
    return True


def _of_alike(
    how: How, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor, wanted: Wanted | None, n: int
) -> list[Tensor]:
    """What a call gives of `n` clients, which all have these operands: the client's axis in front."""
    x, dy = (maps.repeat(1, n, 1, 1).contiguous(memory_format=torch.channels_last) for maps in (x, dy))
    w, b = w.repeat(n, 1, 1, 1), None if b is None else b.repeat(n)
    if wanted is None:
        return [_by_client(how.forward(x, w, b, n), 1, n)]
    found = how.backward(dy, x, w, wanted, n)
    return [_by_client(each, int(i == 0), n) for i, each in enumerate(found) if each is not None and wanted[i]]


def _by_client(tensor: Tensor, axis: int, n: int) -> Tensor:
    return torch.stack(tensor.chunk(n, axis))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype is torch.float32 else torch.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as clients train on: how a product is cut for several depends on their number."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
