"""What fills the batches of a group, compiled: all slots in one call.

Shapes: `G` slots, `K` steps of a block, `B` batch, `R` = K B rows of a slot.
"""

from __future__ import annotations

from typing import Any

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import compiled

NOTHING, LEFT = -1, -2  # in the place of a row's number: the row is emptied, or left as it is


@compiled
def plan(
    orders_R: Any, firsts_G: Any, strides_G: Any, begin_G: Any, starts_G: Any, sizes_G: Any, n_steps_G: Any,
    rates_G: Any, first: int, n_block: int, n_slots: int, rows_GR: Any, n_valid_GK: Any, scale_GKB: Any,
) -> int:  # fmt: skip
    """Says for a block of steps from `first` on which sample each row holds (see `fedsim.training.batches.GroupOrders`
    for the orders), how many samples of a batch are real and what each weighs; how many batches are short.
    """
    n_batch, n_short = scale_GKB.shape[2], 0
    for s in range(n_slots):
        size, per_pass, filled = sizes_G[s], -(-sizes_G[s] // n_batch), 0
        n_pass, at = divmod(starts_G[s] + first, per_pass)
        for k in range(n_block):
            n = min(n_batch, size - at * n_batch) if first + k < n_steps_G[s] else 0
            weight = rates_G[s] / max(n, 1)
            for b in range(n_batch):
                scale_GKB[s, k, b] = weight if b < n else 0.0
            n_valid_GK[s, k] = n
            n_short += n < n_batch
            if n == 0:
                continue
            source = firsts_G[s] + (n_pass - begin_G[s]) * strides_G[s] + at * n_batch
            for b in range(n):
                rows_GR[s, filled + b] = orders_R[source + b]
            for b in range(n, n_batch):
                rows_GR[s, filled + b] = NOTHING
            filled += n_batch
            at += 1
            if at == per_pass:
                n_pass, at = n_pass + 1, 0
        for r in range(filled, rows_GR.shape[1]):
            rows_GR[s, r] = LEFT
    return n_short


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
                if width == 1:
                    to[first] = source[0]
                    continue
                target = to[first : first + width]  # without which LLVM makes no vectors of them
                for i in range(width):
                    target[i] = source[i]
