"""A module's parameters in memory of their own, and the way between them and flat vectors on the host."""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import torch

from fedsim.layout import Layout
from fedsim.types import Float32, Float64

_BLOCK = 32768  # elements that are worked on at once: three such arrays stay in a core's own cache


class Weights:
    """A private copy of a module on a device, each of its parameters at the start of an allocation.

    torch aligns allocations, so products see the same alignment in every process, whatever the given module's
    parameters are views of. Shape: `P` parameters.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.module = copy.deepcopy(module).to(device)
        self.layout = Layout.of(self.module)
        self.parameters = list(self.module.parameters())
        for parameter in self.parameters:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self._parts = list(self.layout.slices.values())
        self._on_cpu = device.type == "cpu"
        self._views = [p.detach().numpy().reshape(-1) for p in self.parameters] if self._on_cpu else []

    def load(self, vector_P: Float32) -> None:
        """Copies a vector, float32 (P,), into the parameters."""
        assert vector_P.shape == (self.layout.n_parameters,) and vector_P.dtype == np.float32
        if not self._on_cpu:
            return self._load_device(vector_P)
        for view, part in zip(self._views, self._parts, strict=True):
            view[:] = vector_P[part]

    def read(self, out_P: Float32) -> None:
        """Copies the parameters into a vector, float32 (P,)."""
        if not self._on_cpu:
            out_P[:] = torch.cat([p.detach().reshape(-1) for p in self.parameters]).cpu().numpy()
            return
        for view, part in zip(self._views, self._parts, strict=True):
            out_P[part] = view

    def _load_device(self, vector_P: Float32) -> None:
        flat = torch.from_numpy(vector_P.copy()).to(self.parameters[0].device)  # one transfer for all
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self._parts, strict=True):
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


def update_norms(rows_GP: Float32, base_GP: Float32 | None) -> Float64:
    """The Euclidean norms, summed in float64, of vectors (G, P), or of their differences from a base, (G, P) or (1, P).

    A row's sum does not depend on the other rows: each is added up on its own, in blocks of fixed length.
    """
    n_rows, n_columns = rows_GP.shape
    squares_G = np.zeros(n_rows)
    room = np.empty((n_rows, min(n_columns, _BLOCK)))
    for start in range(0, n_columns, _BLOCK):
        block = rows_GP[:, start : start + _BLOCK]
        squared = room[:, : block.shape[1]]
        if base_GP is None:
            np.copyto(squared, block)
        else:
            np.subtract(block, base_GP[:, start : start + _BLOCK], out=squared)
        squares_G += np.square(squared, out=squared).sum(axis=1)
    return np.sqrt(squares_G)
