"""The largest values of an update and where they are. Shapes: `P` parameters, `K` values kept."""

from __future__ import annotations

import math

import numpy as np

from fedsim.compression.codec import Bytes, Key
from fedsim.types import Float32


class TopKCodec:
    """The k = ceil(fraction P) values of largest magnitude, exactly; all others become 0.

    Reference: Stich et al., "Sparsified SGD with memory", NeurIPS 2018, definition 2.2; with the memory of its
    algorithm 1, which is the error feedback of `fedsim.training.clients.coding`. It is a contraction:
    ||x - C(x)||^2 <= (1 - k/P) ||x||^2. Among equal magnitudes the lowest positions are kept.
    The bytes: positions in ascending order, as uint32 each or as a bit a parameter, whichever takes less; then the
    values as float32. Vectors of 2^32 parameters or more always take the bits.
    """

    def __init__(self, n_parameters: int, fraction: float) -> None:
        self.n_parameters = n_parameters
        self.n_kept = max(1, math.ceil(fraction * n_parameters))
        mask_bytes = -(-n_parameters // 8)
        self._as_mask = mask_bytes <= 4 * self.n_kept or n_parameters > 2**32
        self._where_bytes = mask_bytes if self._as_mask else 4 * self.n_kept
        self.n_bytes = self._where_bytes + 4 * self.n_kept

    def encode(self, vector_P: Float32, key: Key) -> Bytes:
        where_K = self._largest(vector_P)
        if self._as_mask:
            mask_P = np.zeros(self.n_parameters, np.bool_)
            mask_P[where_K] = True
            where = np.packbits(mask_P)
        else:
            where = where_K.astype("<u4").view(np.uint8)
        return np.concatenate([where, vector_P[where_K].view(np.uint8)])

    def decode(self, data_B: Bytes, out_P: Float32) -> None:
        where, values_K = data_B[: self._where_bytes], data_B[self._where_bytes :].view(np.float32)
        out_P[:] = 0.0
        if self._as_mask:
            out_P[np.unpackbits(where, count=self.n_parameters).view(np.bool_)] = values_K
        else:
            out_P[where.view("<u4")] = values_K

    def _largest(self, vector_P: Float32) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Positions in ascending order (K,): above the k-th largest magnitude, then the first that equal it.

        Which of equal ones a partition puts first depends on the processor; the magnitude itself does not.
        """
        size_P = np.abs(vector_P)
        least = np.partition(size_P, self.n_parameters - self.n_kept)[self.n_parameters - self.n_kept]
        above = np.flatnonzero(size_P > least)
        equal = np.flatnonzero(size_P == least)[: self.n_kept - above.size]
        return np.sort(np.concatenate([above, equal]))
