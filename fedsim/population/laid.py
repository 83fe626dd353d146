"""A client's samples where they lie: rows of a data set's arrays, of which batches are made without a shard of its own.

A large data set is mapped once a host (`fedsim.population.nodecache`). A shard is a copy, four times as large where the
data are bytes; so what is large stays where it is. Shapes: `N` samples, `B` batch, `F` numbers of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float32, Int64

LARGE_BYTES = 2**28  # as float32: what all shards of a data set may take before none is made of mapped data


@dataclass(frozen=True, slots=True)
class Laid:
    """Samples `rows_N` of `inputs`, (all samples, *sample_shape), which are float32, uint8 in 255ths, or other numbers.

    `y` holds the labels of these rows alone.
    """

    inputs: NDArray[np.generic]
    rows_N: Int64
    y: NDArray[Any]

    @property
    def n_bytes(self) -> int:
        """What the inputs would take as a shard."""
        return 4 * self.rows_N.size * int(np.prod(self.inputs.shape[1:]))

    @property
    def is_large(self) -> bool:
        """Whether the data set is one of which no shards should be made: mapped, and large."""
        return _is_mapped(self.inputs) and 4 * self.inputs.size >= LARGE_BYTES

    def write(self, order_B: Int64, out_BF: Float32) -> None:
        """Writes the inputs of samples `order_B` of the client to rows of `out_BF`, as `inputs_of` would give them."""
        chosen = self.inputs[self.rows_N[order_B]]
        out = out_BF.reshape(chosen.shape)
        assert np.may_share_memory(out, out_BF)
        if chosen.dtype == np.uint8:
            np.divide(chosen, np.float32(255), out=out, dtype=np.float32)
        else:
            out[...] = chosen.astype(np.float32, copy=False)


def _is_mapped(values: NDArray[np.generic]) -> bool:
    """Whether an array, or what it is a view of, is a mapped file."""
    base: Any = values
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False
