"""Values rounded at random to a few levels. Shapes: `P` parameters, `D` values in a bucket, `N` buckets."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedsim import seeding
from fedsim.compression.codec import Bytes, Key
from fedsim.seeding import Purpose
from fedsim.types import Float32

_VALUES_AT_ONCE = 2**18


class QsgdCodec:
    """Q(x_i) = ||x|| sign(x_i) l_i / s; with u_i = s |x_i| / ||x||, l_i is floor(u_i + r), r uniform in [0, 1).

    Reference: Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NIPS 2017,
    section 3.1, with the buckets of section 4: each run of `bucket` values has a norm of its own. E Q(x) = x, and
    E ||Q(x) - x||^2 <= min(D / s^2, sqrt(D) / s) ||x||^2 in a bucket of D values (lemma 3.1).
    s = 2^(bits - 1) - 1 levels. Deviations: a value takes `bits` bits, where the paper goes on to code it in a number
    of bits that depends on the values (Elias), which could not be known at a task's dispatch; the norm is rounded up
    to float32 once, and the levels are those of the rounded norm.
    The bytes: the norms as float32, then the codes l_i sign(x_i) + s, the first in the highest bits of a byte.
    """

    def __init__(self, n_parameters: int, bits: int, bucket: int | None) -> None:
        self.n_parameters = n_parameters
        self.levels = 2 ** (bits - 1) - 1
        self._bits = bits
        self._bucket = n_parameters if bucket is None else min(bucket, n_parameters)
        self._n_buckets = -(-n_parameters // self._bucket)
        self.n_bytes = 4 * self._n_buckets + -(-n_parameters * bits // 8)

    def encode(self, vector_P: Float32, key: Key) -> Bytes:
        norms_N = self._norms(vector_P)
        codes_P = np.empty(self.n_parameters, np.uint8)
        step = self._values_at_once()
        for start in range(0, self.n_parameters, step):
            part = vector_P[start : start + step]
            codes_P[start : start + step] = self._codes(part, self._spread(norms_N, start, part.size), start, key)
        return np.concatenate([norms_N.view(np.uint8), _squeezed(codes_P, self._bits)])

    def decode(self, data_B: Bytes, out_P: Float32) -> None:
        norms_N = data_B[: 4 * self._n_buckets].view("<f4")
        steps_N: Float32 = (norms_N / np.float32(self.levels)).astype(np.float32)
        codes_B = data_B[4 * self._n_buckets :]
        step = self._values_at_once()
        each = 8 // self._bits
        for start in range(0, self.n_parameters, step):
            out = out_P[start : start + step]
            codes = _spread_out(codes_B[start // each :][: -(-out.size // each)], self._bits)[: out.size]
            np.subtract(codes, np.float32(self.levels), out=out, dtype=np.float32)
            out *= self._spread(steps_N, start, out.size)

    def _values_at_once(self) -> int:
        """How many values a pass takes: of whole bytes, and of whole buckets where these are small."""
        least = math.lcm(self._bucket, 8)
        return _VALUES_AT_ONCE if least > _VALUES_AT_ONCE else least * (_VALUES_AT_ONCE // least)

    def _norms(self, vector_P: Float32) -> Float32:
        """The norm of each bucket (N,), rounded up."""
        sums_N = np.zeros(self._n_buckets)
        step = self._values_at_once()
        for start in range(0, self.n_parameters, step):
            squares = np.square(vector_P[start : start + step], dtype=np.float64)
            buckets = np.arange(start // self._bucket, -(-(start + squares.size) // self._bucket))
            sums_N[buckets] += np.add.reduceat(squares, np.maximum(buckets * self._bucket - start, 0))
        exact_N = np.sqrt(sums_N)
        norms_N = exact_N.astype(np.float32)
        if not np.isfinite(norms_N).all():
            raise OverflowError(f"the norm {exact_N.max():.6g} of a bucket is beyond float32")
        return np.where(norms_N < exact_N, np.nextafter(norms_N, np.float32(np.inf)), norms_N)

    def _spread(self, norms_N: Float32, start: int, n: int) -> Float32:
        """The norm of each value's bucket, for `n` values from `start`."""
        if self._n_buckets == 1:
            return norms_N
        return norms_N[np.arange(start, start + n) // self._bucket]

    def _codes(self, values: Float32, norms: Float32, start: int, key: Key) -> NDArray[np.uint8]:
        """l_i sign(x_i) + s of values from `start` on."""
        levels = np.abs(values, dtype=np.float64)
        levels *= self.levels / np.where(norms > 0.0, norms, np.float32(1.0)).astype(np.float64)
        levels += _uniforms(key, start, values.size)
        np.minimum(np.floor(levels, out=levels), self.levels, out=levels)
        np.copysign(levels, values, out=levels)
        levels += self.levels
        return levels.astype(np.uint8)


def _uniforms(key: Key, start: int, n: int) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) of 32 bits for `n` values from `start`, a multiple of 8: two of a word."""
    client, task = np.array([key.client], np.int64), np.array([key.task], np.int64)
    words = seeding.long_bits(key.seed, Purpose.COMPRESSION, client, task, -(-n // 2), start // 2, 0)
    uniforms: NDArray[np.float64] = words[0].view(np.uint32)[:n] * 2.0**-32
    return uniforms


def _squeezed(codes: NDArray[np.uint8], bits: int) -> Bytes:
    """Codes below 2^bits, 8 / bits of them in a byte, the first in its highest bits."""
    each = 8 // bits
    if codes.size % each:
        codes = np.concatenate([codes, np.zeros(-codes.size % each, np.uint8)])
    squeezed = np.zeros(codes.size // each, np.uint8)
    for i in range(each):
        squeezed |= codes[i::each] << np.uint8(8 - bits * (i + 1))
    return squeezed


def _spread_out(squeezed: Bytes, bits: int) -> NDArray[np.uint8]:
    """The inverse of `_squeezed`, with the zeros that fill up the last byte."""
    each = 8 // bits
    codes = np.empty(squeezed.size * each, np.uint8)
    for i in range(each):
        codes[i::each] = (squeezed >> np.uint8(8 - bits * (i + 1))) & np.uint8(2**bits - 1)
    return codes
