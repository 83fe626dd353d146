"""Copies of samples into the batches of a group, compiled: all slots in one call."""

from __future__ import annotations

from typing import Any

from fedsim.training.fused.vectors import array, compiled, pointer

NOTHING, LEFT = -1, -2  # in the place of a row's number: the row is emptied, or left as it is


@compiled
def gather(
    one: Any, rows_gR: Any, sources_g: Any, n_bytes: int, width: int, to: Any, n_rows: int, stride: int, empty: Any
) -> None:
    """Row r of slot s of `to`, which starts at number (s `n_rows` + r) `stride`, becomes row `rows_gR[s, r]` of s.

    `sources_g` are addresses of rows of `width` numbers of the type of `one`, `n_bytes` each.
    """
    for s in range(rows_gR.shape[0]):
        for r in range(n_rows):
            row, first = rows_gR[s, r], (s * n_rows + r) * stride
            if row == NOTHING:
                for i in range(width):
                    to[first + i] = empty[i]
            elif row >= 0:
                source = array(pointer(one, sources_g[s] + row * width * n_bytes), (width,))
                for i in range(width):
                    to[first + i] = source[i]
