"""Sums in 64-bit fixed point: adding whole numbers is associative, so any grouping of the same terms has the same bits.

A term is rint(weight * scale * value), and the scale a power of two that follows from a bound on the norms: no element
of an update of weight 1 comes to more than 2^36, and weights may sum to 2^26 before a sum could leave its 63 bits.
Against the float64 sums of the server each term is rounded by 2^-36 of the bound at most. Shape: `P` parameters.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.types import Float32, Float64, Int64

FRACTION_BITS = 36
MOST_WEIGHT = 2.0**26
_BLOCK = 32768


def scale_of(norm_bound: float) -> float:
    """The power of two by which values are multiplied, for updates with norms up to `norm_bound`, above 0.

    >>> [math.log2(scale_of(bound)) for bound in (0.75, 1.0, 10.0)]
    [36.0, 35.0, 32.0]
    """
    _, exponent = math.frexp(norm_bound)  # norm_bound < 2**exponent
    return math.ldexp(1.0, FRACTION_BITS - exponent)


class FixedSum:
    """A sum of weighted vectors (P,)."""

    def __init__(self, n_parameters: int, scale: float) -> None:
        self._scale = scale
        self._total_P: Int64 = np.zeros(n_parameters, np.int64)
        self._scratch = np.empty(_BLOCK)
        self._whole = np.empty(_BLOCK, np.int64)

    def add(self, vector_P: Float32, weight: float) -> None:
        """Adds weight * vector."""
        assert vector_P.shape == self._total_P.shape
        for start in range(0, vector_P.size, _BLOCK):
            total = self._total_P[start : start + _BLOCK]
            term, whole = self._scratch[: total.size], self._whole[: total.size]
            np.copyto(term, vector_P[start : start + _BLOCK])
            term *= weight * self._scale
            np.rint(term, out=term)
            np.copyto(whole, term, casting="unsafe")
            total += whole

    def take(self) -> Int64:
        """The sum so far (P,), which starts anew."""
        total_P, self._total_P = self._total_P, np.zeros_like(self._total_P)
        return total_P


def real(total_P: Int64, scale: float) -> Float64:
    """A sum as float64 (P,): rounded once, and the same whatever it was summed of."""
    values_P: Float64 = total_P.astype(np.float64)
    values_P /= scale
    return values_P
