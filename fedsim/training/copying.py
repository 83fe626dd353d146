"""What fills the batches of a group, compiled: all slots in one call.

The numbers of rows and fields that `grouporders` has become part of the code that is kept here: whoever changes them
has to touch this file, too.
Shapes: `G` slots, `K` steps of a block, `B` batch, `R` = K B rows of a slot, `T` numbers of a target, `F` fields.
"""

from __future__ import annotations

from typing import Any

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import compiled
from fedsim.training.grouporders import BEGIN, FIRSTS, N_STEPS, SIZES, STARTS, STRIDES

NOTHING, LEFT = -1, -2  # in the place of a row's number: the row is emptied, or left as it is


@compiled
def fill(
    one_x: Any, one_y: Any, places_2G: Any, table_FG: Any, passes_7G: Any, orders_R: Any, rates_G: Any, first: int,
    n_block: int, n_slots: int, n_features: int, x: Any, targets: Any, padding_T: Any, scale_GKB: Any, n_valid_GK: Any,
    rows_GR: Any,
) -> None:  # fmt: skip
    """Fills a block of steps from `first` on, of the first slots.

    Which samples they have and in which order is said as in `fedsim.training.grouporders`. `places_2G` are addresses
    of inputs and of targets, row after row of numbers of the types of `one_x` and `one_y`; of a slot without, the
    numbers of its rows are put into `rows_GR` instead. `x` and `targets` hold the rows of all slots.
    """
    n_batch, n_rows, x_row = scale_GKB.shape[2], rows_GR.shape[1], x.size // rows_GR.size
    for s in range(n_slots):
        size, n_steps, has_place = table_FG[SIZES, s], table_FG[N_STEPS, s], places_2G[0, s] != 0
        per_pass = -(-size // n_batch)
        n_pass, at = divmod(passes_7G[STARTS, s] + first, per_pass)
        for k in range(n_block):
            n = min(n_batch, size - at * n_batch) if first + k < n_steps else 0
            weight = rates_G[s] / max(n, 1)
            for b in range(n_batch):
                scale_GKB[s, k, b] = weight if b < n else 0.0
            n_valid_GK[s, k] = n
            begin = passes_7G[FIRSTS, s] + (n_pass - passes_7G[BEGIN, s]) * passes_7G[STRIDES, s] + at * n_batch
            rows_B, r = orders_R[begin : begin + n], s * n_rows + k * n_batch
            if not has_place:
                rows_GR[s, k * n_batch : k * n_batch + n] = rows_B
                rows_GR[s, k * n_batch + n : (k + 1) * n_batch] = NOTHING if n else LEFT
            elif n:
                _gather(one_x, places_2G[0, s], rows_B, n_features, x[r * x_row :], x_row)
                _gather(one_y, places_2G[1, s], rows_B, padding_T.size, targets[r * padding_T.size :], padding_T.size)
                for b in range(r + n, r + n_batch):
                    x[b * x_row : b * x_row + n_features] = 0
                    targets[b * padding_T.size : (b + 1) * padding_T.size] = padding_T
            at += 1
            if at == per_pass:
                n_pass, at = n_pass + 1, 0
        if not has_place:
            rows_GR[s, n_block * n_batch :] = LEFT


@compiled
def _gather(one: Any, place: int, rows_B: Any, width: int, to: Any, stride: int) -> None:
    """Row after row of `to`, `stride` numbers apart, becomes the row of that number of a place."""
    n_bytes = array(pointer(one, place), (1,)).itemsize
    for b in range(rows_B.size):
        source = array(pointer(one, place + rows_B[b] * width * n_bytes), (width,))
        if width == 1:
            to[b * stride] = source[0]
            continue
        target = to[b * stride : b * stride + width]  # without which LLVM makes no vectors of them
        for i in range(width):
            target[i] = source[i]
