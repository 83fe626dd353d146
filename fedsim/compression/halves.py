"""Numbers of 16 bits: IEEE 754's binary16 (float16) and the upper half of a float32 (bfloat16).

float16 has 11 significant bits and ends at 65,504; bfloat16 has 8 and float32's range (Kalamkar et al., "A study of
BFLOAT16 for deep learning training", 2019, arXiv:1905.12322). Both round to the nearest, ties to even. What is halved
is held as uint16, which any MPI can carry.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.compression.codec import BLOCK, Bytes, Key
from fedsim.types import Float32

Half = NDArray[np.uint16]
HalfForm = Literal["float16", "bfloat16"]

_BFLOAT16_NAN = np.uint16(0x7FC0)


def packed(vector_P: Float32, form: HalfForm) -> Half:
    """A vector (P,) rounded to 16 bits a value. Raises OverflowError for a finite value beyond the range; NaN stays."""
    half_P = np.empty(vector_P.shape, np.uint16)
    to_half = _to_float16 if form == "float16" else _to_bfloat16
    for start in range(0, vector_P.size, BLOCK):
        values, out = vector_P[start : start + BLOCK], half_P[start : start + BLOCK]
        to_half(values, out)
        most = np.uint16(0x7C00 if form == "float16" else 0x7F80)  # infinity
        gone = (out & np.uint16(0x7FFF)) == most
        if gone.any() and np.isfinite(values[gone]).any():
            value = float(values[gone][np.isfinite(values[gone])][0])
            end = "65,504" if form == "float16" else "3.39e38"
            raise OverflowError(f"{value:.6g} is beyond {form}, which ends at {end}")
    return half_P


def unpacked(half_P: Half, form: HalfForm, out_P: Float32 | None = None) -> Float32:
    """The float32 values, exactly; written to `out_P` if that is given."""
    vector_P = np.empty(half_P.shape, np.float32) if out_P is None else out_P
    if form == "float16":
        table = _float16_values()  # numpy converts one value in 6 ns, and looks one up in 1
        for start in range(0, half_P.size, BLOCK):
            np.take(table, half_P[start : start + BLOCK], out=vector_P[start : start + BLOCK], mode="clip")
    else:
        bits = vector_P.view(np.uint32)
        np.left_shift(half_P, np.uint32(16), out=bits, dtype=np.uint32)
    return vector_P


@cache
def _float16_values() -> Float32:
    table: Float32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    table.flags.writeable = False
    return table


def _to_float16(values: Float32, out: Half) -> None:
    with np.errstate(over="ignore"):  # found by the caller
        np.copyto(out.view(np.float16), values, casting="same_kind")


def _to_bfloat16(values: Float32, out: Half) -> None:
    bits = values.view(np.uint32)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)  # ties to even
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    np.copyto(out, rounded, casting="unsafe")
    out[np.isnan(values)] = _BFLOAT16_NAN  # rounding could carry one over


class HalfCodec:
    """16 bits a value, rounded to the nearest: relative errors up to 2^-11 (float16, normal values) or 2^-8."""

    def __init__(self, n_parameters: int, form: HalfForm) -> None:
        self.n_parameters, self.n_bytes = n_parameters, 2 * n_parameters
        self._form: HalfForm = form

    def encode(self, vector_P: Float32, key: Key) -> Bytes:
        return packed(vector_P, self._form).view(np.uint8)

    def decode(self, data_B: Bytes, out_P: Float32) -> None:
        unpacked(data_B.view(np.uint16), self._form, out_P)
