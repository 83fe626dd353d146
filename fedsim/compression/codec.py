"""What a codec is. Shapes: `P` parameters, `B` bytes of an encoded vector."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float32

Bytes = NDArray[np.uint8]

BLOCK = 32768  # elements: a pass goes in blocks that stay in a core's cache


class Key(NamedTuple):
    """Whose update it is: what a codec draws at random follows from it."""

    seed: int
    client: int
    task: int


class Codec(Protocol):
    """Encodes float32 vectors (P,) into `n_bytes` bytes, whatever their values, and decodes them."""

    n_parameters: int
    n_bytes: int

    def encode(self, vector_P: Float32, key: Key) -> Bytes:
        """The bytes (B,) of a vector of finite values. Raises OverflowError, with a text, for one out of range."""

    def decode(self, data_B: Bytes, out_P: Float32) -> None:
        """Writes the vector that the bytes stand for; nothing else is read, and no key."""
