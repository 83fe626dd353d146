"""Softmax cross-entropy and its gradient in one pass over the outputs, on the host, compiled.

Operands are addresses; strides are in numbers. Slots are taken one after the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import compiled


@compiled
def step(
    one: Any, n_slots: int, n_batch: int, n_out: int, y: int, dy: int, y_slot: int, y_row: int,
    targets: int, targets_slot: int, scale: int, scale_slot: int, pieces: int, pieces_slot: int, n_bytes: int,
) -> None:  # fmt: skip
    """Fills the gradient `dy` of the outputs, and `pieces` with the log probability of each sample's target."""
    for s in range(n_slots):
        targets_B = array(pointer(np.int64(1), targets + 8 * s * targets_slot), (n_batch,))
        scale_B = array(pointer(one, scale + n_bytes * s * scale_slot), (n_batch,))
        pieces_B = array(pointer(one, pieces + n_bytes * s * pieces_slot), (n_batch,))
        for b in range(n_batch):
            at = n_bytes * (s * y_slot + b * y_row)
            y_O = array(pointer(one, y + at), (n_out,))
            dy_O = array(pointer(one, dy + at), (n_out,))
            most, total = y_O[0], one - one
            for o in range(n_out):
                most = y_O[o] if y_O[o] > most else most
            for o in range(n_out):
                dy_O[o] = math.exp(y_O[o] - most)
                total += dy_O[o]
            target, factor = targets_B[b], scale_B[b]
            pieces_B[b] = y_O[target] - most - math.log(total)
            own = dy_O[target] / total - one
            for o in range(n_out):
                dy_O[o] = dy_O[o] / total * factor
            dy_O[target] = own * factor
