"""A bit a parameter. Shape: `P` parameters."""

from __future__ import annotations

import math

import numpy as np

from fedsim.compression.codec import BLOCK, Bytes, Key
from fedsim.types import Float32


class SignCodec:
    """(||x||_1 / P) sign(x): the mean magnitude as float32, then a bit a parameter; sign(0) is +1.

    Reference: Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019,
    equation 1 and algorithm 1 (EF-SIGNSGD); the error feedback is `fedsim.training.clients.coding`'s. One bit with
    error feedback is Seide et al., "1-bit stochastic gradient descent", Interspeech 2014, who keep two means, of the
    positive and of the negative values of each column. It is a contraction: ||x - C(x)||^2 =
    (1 - ||x||_1^2 / (P ||x||_2^2)) ||x||^2. Deviation: one scale for the whole vector, not one a layer.
    """

    def __init__(self, n_parameters: int) -> None:
        self.n_parameters = n_parameters
        self.n_bytes = 4 + -(-n_parameters // 8)

    def encode(self, vector_P: Float32, key: Key) -> Bytes:
        parts = (vector_P[start : start + BLOCK] for start in range(0, vector_P.size, BLOCK))
        total = math.fsum(float(np.abs(part).sum(dtype=np.float64)) for part in parts)
        scale = np.array([total / self.n_parameters], "<f4")
        return np.concatenate([scale.view(np.uint8), np.packbits(vector_P >= 0.0)])

    def decode(self, data_B: Bytes, out_P: Float32) -> None:
        scale = data_B[:4].view("<f4")[0]
        for start in range(0, self.n_parameters, BLOCK):  # a block begins with a whole byte
            out = out_P[start : start + BLOCK]
            bits = np.unpackbits(data_B[4 + start // 8 :][: -(-out.size // 8)], count=out.size)
            np.take(np.array([-scale, scale], np.float32), bits, out=out, mode="clip")
