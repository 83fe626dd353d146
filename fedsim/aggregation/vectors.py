"""Products, norms and sums over flat vectors, in float64, the same bits on every machine of one kind.

No BLAS: how it cuts a sum depends on the number of its threads. Products go in blocks that stay in a core's cache, each
summed pairwise by numpy. Shape: `P` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float32, Float64

Vector = NDArray[Any]

_BLOCK = 8192  # with the temporaries of some products, in the second-level cache


def dot(a_P: Vector, b_P: Vector) -> float:
    """The scalar product of two vectors (P,), of float32 or float64."""
    total = 0.0
    for part in blocks(a_P.size):
        total += float(np.multiply(a_P[part], b_P[part], dtype=np.float64).sum())
    return total


def norm(a_P: Vector) -> float:
    """The Euclidean norm of a vector (P,)."""
    return math.sqrt(dot(a_P, a_P))


def cosine(a_P: Vector, b_P: Vector, otherwise: float = 0.0) -> float:
    """The cosine of the angle between two vectors (P,), within [-1, 1]; `otherwise` where one of them is zero."""
    lengths = norm(a_P) * norm(b_P)
    return max(-1.0, min(1.0, dot(a_P, b_P) / lengths)) if lengths > 0.0 else otherwise


class Relation(NamedTuple):
    """Scalar products of the server's way m = w_t - w_base and an update v: m.m, m.v and v.v."""

    mm: float
    mv: float
    vv: float

    @property
    def cosine(self) -> float:
        """The cosine between the two; 0 where one of them is zero."""
        lengths = math.sqrt(self.mm) * math.sqrt(self.vv)
        return max(-1.0, min(1.0, self.mv / lengths)) if lengths > 0.0 else 0.0

    @property
    def distance(self) -> float:
        """||v - m||: how far the client's model lies from the server's."""
        return math.sqrt(max(0.0, self.vv - 2.0 * self.mv + self.mm))


def relation(weights_P: Float64, base_P: Float32, vector_P: Vector) -> Relation:
    """How the server's way since a base version and an update relate, in one pass over P.

    The way is that of the model as it is sent, float32: zero where the base is the current version.
    """
    mm = mv = vv = 0.0
    for part in blocks(weights_P.size):
        way, update = moved(weights_P[part], base_P[part]), vector_P[part].astype(np.float64)
        mm += float(np.square(way).sum())
        mv += float(np.multiply(way, update).sum())
        vv += float(np.square(update).sum())
    return Relation(mm, mv, vv)


def moved(weights_P: Float64, base_P: Float32) -> Float64:
    """How far the server's model, as it is sent, has moved since a base version: float64 (P,); zeros for the same."""
    return np.subtract(weights_P.astype(np.float32), base_P, dtype=np.float64)


def blocks(n: int) -> Iterator[slice]:
    """Slices of a vector of n values that stay in a core's cache."""
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def add(total_P: Float64, vector_P: Vector, factor: float = 1.0) -> None:
    """total <- total + factor * vector, in place, in one pass."""
    for part in blocks(total_P.size):
        total_P[part] += vector_P[part] if factor == 1.0 else np.multiply(vector_P[part], factor, dtype=np.float64)
