"""Vectors too large for one message, cut into pieces; both ends cut alike."""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 2**28  # elements: 1 GiB of float32, far below the 2**31 that MPI's counts can hold


def spans(n_elements: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Where each piece of a vector starts and stops, in order.

    >>> list(spans(10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    assert piece > 0
    for start in range(0, n_elements, piece):
        yield start, min(start + piece, n_elements)
