"""Where each parameter of a module lies in the flat float32 vector that crosses rooms and ranks.

The vector holds the parameters in the module's own order, each in C order, without gaps; then the floating-point
buffers, such as batch normalisation's statistics, if there are any. Shape: `P` values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from fedsim.errors import ConfigError
from fedsim.types import Float32

if TYPE_CHECKING:
    import torch


_BATCH_NORMS = tuple(f"{kind}Norm{n}d" for kind in ("Batch", "Instance") for n in (1, 2, 3))
_NORMS = ("GroupNorm", "LayerNorm", "RMSNorm", *_BATCH_NORMS)  # layers that FedBN leaves with the clients


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and offsets of a module's tensors in the flat vector of `n_parameters` float32 values.

    The last `n_buffers` of the tensors are buffers: nobody trains them, and `model.buffers` says what becomes of them.
    `norm_layers` are the names of the normalisation layers.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    n_parameters: int
    n_buffers: int = 0
    norm_layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: torch.nn.Module) -> Layout:
        """The layout of a module. Raises ConfigError for one with parameters or buffers that are not float32."""
        _check(module)
        names, shapes = zip(*((name, tuple(tensor.shape)) for name, tensor in tensors_of(module)), strict=True)
        *offsets, total = accumulate((math.prod(shape) for shape in shapes), initial=0)
        norms = tuple(name for name, child in module.named_modules() if type(child).__name__ in _NORMS)
        return cls(names, shapes, tuple(offsets), total, len(names) - len(list(module.parameters())), norms)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of the buffers."""
        return self.names[len(self.names) - self.n_buffers :]

    @property
    def n_trained(self) -> int:
        """How many of the values are parameters; they come first."""
        return self.offsets[len(self.names) - self.n_buffers] if self.n_buffers else self.n_parameters

    @property
    def slices(self) -> dict[str, slice]:
        """The part of the vector that belongs to each parameter, by name."""
        ends = (*self.offsets[1:], self.n_parameters)
        return {name: slice(*ends) for name, *ends in zip(self.names, self.offsets, ends, strict=True)}

    @property
    def checksum(self) -> str:
        """SHA-256, hexadecimal, of names, shapes and dtype: equal on two ranks if their vectors mean the same."""
        lines = (f"{name} float32 {shape}\n" for name, shape in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def flatten(self, module: torch.nn.Module) -> Float32:
        """A new vector of the module's values: float32 (P,)."""
        vector_P = np.empty(self.n_parameters, dtype=np.float32)
        for parameter, part in self._parts(module):
            vector_P[part] = parameter.detach().cpu().numpy().reshape(-1)
        return vector_P

    def load(self, module: torch.nn.Module, vector_P: Float32) -> None:
        """Copies a vector, float32 (P,), into the module, in place and on whatever device it is."""
        assert vector_P.shape == (self.n_parameters,) and vector_P.dtype == np.float32
        for parameter, part in self._parts(module):
            values = vector_P[part].reshape(tuple(parameter.shape))
            if parameter.device.type == "cpu":
                np.copyto(parameter.detach().numpy(), values)
            else:
                _send(parameter, values)

    def _parts(self, module: torch.nn.Module) -> Iterator[tuple[torch.Tensor, slice]]:
        parts = self.slices
        for name, tensor in tensors_of(module):
            yield tensor, parts[name]


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What the flat vector holds of a module, by name: its parameters, then its floating-point buffers."""
    yield from module.named_parameters()
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer


def _send(parameter: torch.Tensor, values: Float32) -> None:
    import torch

    parameter.detach().copy_(torch.from_numpy(values.copy()))  # a copy: torch warns of memory that it may not write


def _check(module: torch.nn.Module) -> None:
    """Refuses what the flat vector cannot carry, so that nothing of a model is left behind unnoticed."""
    kinds = {name: type(child).__name__ for name, child in module.named_modules()}
    for name, buffer in module.named_buffers():
        layer, _, attribute = name.rpartition(".")
        carried = str(buffer.dtype) == "torch.float32" or not (buffer.is_floating_point() or buffer.is_complex())
        if not carried or getattr(module.get_submodule(layer), "momentum", 0.0) is None:
            what = "counts batches for its averages (momentum=None)" if carried else f"is {buffer.dtype}"
            raise ConfigError(
                f"model: layer '{layer}' ({kinds[layer]}) keeps values outside its parameters ('{attribute}'), which "
                f"updates cannot carry: it {what}; use a momentum, float32, GroupNorm or LayerNorm"
            )
    n_found = 0
    for name, parameter in module.named_parameters():
        layer, _, attribute = name.rpartition(".")
        n_found += 1
        if str(parameter.dtype) != "torch.float32":
            raise ConfigError(
                f"model: parameter '{attribute}' of layer '{layer}' ({kinds[layer]}) is {parameter.dtype}; "
                "updates are float32: use module.float()"
            )
    if not n_found:
        raise ConfigError(f"model: {type(module).__name__} has no parameters, so there is nothing to train")
