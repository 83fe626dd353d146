"""A module's parameters in memory of their own, and the way between them and flat vectors on the host."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.layout import Layout, tensors_of
from fedsim.training.flat import Flat
from fedsim.types import Float32, Float64

_BLOCK = 32768  # elements that are worked on at once: three such arrays stay in a core's own cache


class Weights:
    """A private copy of a module on a device, each of its parameters at the start of an allocation.

    torch aligns allocations, so products see the same alignment in every process, whatever the given module's
    parameters are views of. Buffers that are no floating-point numbers, such as counts of batches, are what they were
    at first each time that a vector is loaded: nothing of a task is left for the next one. Shape: `P` values.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.module = copy.deepcopy(module).to(device)
        self.layout = Layout.of(self.module)
        self.parameters = list(self.module.parameters())
        self._tensors = [tensor for _, tensor in tensors_of(self.module)]
        for tensor in self._tensors:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        others = [buffer for buffer in self.module.buffers() if not buffer.is_floating_point()]
        self._counts = [(buffer, buffer.clone()) for buffer in others]
        self._parts = list(self.layout.slices.values())
        self._on_cpu = device.type == "cpu"
        self._views = [t.detach().numpy().reshape(-1) for t in self._tensors] if self._on_cpu else []

    def load(self, vector_P: Float32) -> None:
        """Copies a vector, float32 (P,), into the parameters and buffers."""
        assert vector_P.shape == (self.layout.n_parameters,) and vector_P.dtype == np.float32
        for buffer, first in self._counts:
            buffer.copy_(first)
        if not self._on_cpu:
            return self._load_device(vector_P)
        for view, part in zip(self._views, self._parts, strict=True):
            view[:] = vector_P[part]

    def split(self, vector_P: Float32) -> list[Tensor]:
        """A vector's parts, new tensors in the order and on the device of the parameters that are trained."""
        return [
            torch.from_numpy(vector_P[part].copy()).view_as(parameter).to(parameter.device)
            for parameter, part in zip(self.parameters, self._parts, strict=False)  # then come the buffers'
            if parameter.requires_grad
        ]

    def read(self, out_P: Float32) -> None:
        """Copies the parameters and buffers into a vector, float32 (P,)."""
        if not self._on_cpu:
            out_P[:] = torch.cat([t.detach().reshape(-1) for t in self._tensors]).cpu().numpy()
            return
        for view, part in zip(self._views, self._parts, strict=True):
            out_P[part] = view

    def _load_device(self, vector_P: Float32) -> None:
        flat = torch.from_numpy(vector_P.copy()).to(self.parameters[0].device)  # one transfer for all
        with torch.no_grad():
            for parameter, part in zip(self._tensors, self._parts, strict=True):
                parameter.copy_(flat[part].view_as(parameter))


class Finisher:
    """Makes updates of trained weights, in blocks, so that a difference is still in cache when it is squared."""

    def __init__(self, payload: Literal["delta", "model"]) -> None:
        self._is_delta = payload == "delta"
        self._difference = np.empty(_BLOCK, np.float32)
        room = np.empty(_BLOCK + 8)
        start = -room.ctypes.data % 64 // 8  # on a 64-byte boundary in every process: BLAS may sum by alignment
        self._exact = room[start : start + _BLOCK]

    def finish(self, out_P: Float32, base_P: Float32) -> float:
        """The Euclidean norm, summed in float64, of what training changed; makes `out_P` what the server asked for.

        `out_P`, float32 (P,), holds the trained weights; for payload `delta` they are replaced by their difference
        from `base_P`.
        """
        squares = 0.0
        for start in range(0, out_P.size, _BLOCK):
            block = out_P[start : start + _BLOCK]
            difference = block if self._is_delta else self._difference[: block.size]
            np.subtract(block, base_P[start : start + _BLOCK], out=difference)
            exact = self._exact[: block.size]
            np.copyto(exact, difference)
            squares += float(np.dot(exact, exact))
        return math.sqrt(squares)


def update_norms(rows: Flat, base: Flat | None) -> Float64:
    """The Euclidean norms of vectors, or of their differences from a base each: float64 (G,).

    A vector's norm does not depend on the others.
    """
    from fedsim.training.fused import moving  # compiled code takes a while to load

    one: Any = rows.dtype.type(1)
    base_G, norms_G = np.empty(0, np.int64) if base is None else base.addresses_G, np.empty(len(rows))
    moving.norms(one, rows.addresses_G, base_G, rows.n_values, norms_G)
    return norms_G
