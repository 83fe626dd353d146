"""What is reported of a group's tasks, compiled: the losses of their batches, and whether all numbers are finite.

The places of fields in `fedsim.tables` become part of the code that is kept here: whoever changes them has to touch
this file, too.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch; `table_FG` has a row a field of tasks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.tables import REPORT, REPORT_FIELDS, SENT, TASK_FIELDS, Records
from fedsim.training.fused.vectors import compiled
from fedsim.types import Float64, Int64

BEFORE, AFTER, BAD_STEP, BAD_LOSS = range(4)  # rows of `noted_4G`
_OF = ("task", "n_samples", "n_steps")
_TASK, _N_SAMPLES, _N_STEPS = map(TASK_FIELDS.__getitem__, _OF)
_TO_TASK, _TO_N_SAMPLES, _TO_N_STEPS = map(REPORT_FIELDS.__getitem__, _OF)
_TO_BEFORE, _TO_AFTER, _TO_NORM, _TO_TRAIN, _TO_SENT = map(
    REPORT_FIELDS.__getitem__, ("loss_before", "loss_after", "update_norm", "train_s", "sent")
)
_IN_TURN, _DEPTH = 128, 128  # numbers that numpy's sum does not cut in halves; of the stack, two a halving
_SENT = SENT


@compiled
def note(each_gKB: Any, n_valid_GK: Any, table_FG: Any, step: int, noted_4G: Any) -> None:
    """Notes what is reported of the losses of a block's samples, `step` being its first: the mean loss of a task's
    first batch and of its last, and the first step with one that is not finite. What nothing is noted of is NaN.
    """
    n_slots, n_block, n_batch = each_gKB.shape
    values_B = np.zeros(n_batch)
    for s in range(n_slots):
        last = table_FG[_N_STEPS, s] - 1
        for k in range(min(n_block, last + 1 - step)):
            n = n_valid_GK[s, k]
            values_B[:n] = each_gKB[s, k, :n]
            values_B[n:] = 0.0
            loss = _sum(values_B) / n
            if step + k == 0:
                noted_4G[BEFORE, s] = loss
            if step + k == last:
                noted_4G[AFTER, s] = loss
            if not math.isfinite(loss) and math.isnan(noted_4G[BAD_STEP, s]):
                noted_4G[BAD_STEP, s], noted_4G[BAD_LOSS, s] = step + k, loss


@compiled
def _sum(values: Any) -> float:
    """The sum of values, which it overwrites, rounded as numpy's `sum`: parts of more than 128 are cut in halves."""
    if values.size <= _IN_TURN:
        return float(_sum_in_turn(values))
    n_parts, sums, n_sums = 1, np.empty(_DEPTH), 0
    parts = np.empty((_DEPTH, 2), np.int64)  # still to be added up: first and number; none: add the last two sums
    parts[0] = 0, values.size
    while n_parts:
        n_parts -= 1
        first, n = parts[n_parts]
        if n == 0:
            sums[n_sums - 2] += sums[n_sums - 1]
            n_sums -= 1
        elif n <= _IN_TURN:
            sums[n_sums] = _sum_in_turn(values[first : first + n])
            n_sums += 1
        else:
            half = n // 2 - n // 2 % 8
            parts[n_parts] = 0, 0
            parts[n_parts + 1] = first + half, n - half
            parts[n_parts + 2] = first, half
            n_parts += 3
    total: float = sums[0]
    return total


@compiled
def _sum_in_turn(values: Any) -> float:
    """As numpy adds up so many values: eight sums side by side, in the first ones' places, then what is left."""
    total, n_eights = 0.0, values.size // 8 * 8
    if n_eights:
        for i in range(8, n_eights):
            values[i % 8] += values[i]
        total = (values[0] + values[1]) + (values[2] + values[3])
        total += (values[4] + values[5]) + (values[6] + values[7])
    for i in range(n_eights, values.size):
        total += values[i]
    return total


def reported(
    table_FG: Int64, noted_4G: Float64, norms_G: Float64, train_s: float, *, has_losses: bool
) -> tuple[Records, bool]:
    """The reports of the tasks in slots, and whether all their numbers are finite; without losses these are NaN."""
    whole_G8 = np.empty((norms_G.size, len(REPORT_FIELDS)), np.int64)
    is_finite = _report(whole_G8, whole_G8.view(np.float64), table_FG, noted_4G, norms_G, train_s, has_losses)
    return whole_G8.view(REPORT)[:, 0], is_finite


@compiled
def _report(
    whole_G8: Any, floats_G8: Any, table_FG: Any, noted_4G: Any, norms_G: Any, train_s: float, has_losses: bool
) -> bool:
    """Fills records of reports, given as whole numbers and as floats; whether all numbers are finite."""
    is_finite = True
    for s in range(norms_G.size):
        before, after = (noted_4G[BEFORE, s], noted_4G[AFTER, s]) if has_losses else (math.nan, math.nan)
        is_finite &= math.isnan(noted_4G[BAD_STEP, s]) and math.isfinite(norms_G[s])
        is_finite &= not has_losses or (math.isfinite(before) and math.isfinite(after))
        whole_G8[s, _TO_TASK], whole_G8[s, _TO_N_SAMPLES] = table_FG[_TASK, s], table_FG[_N_SAMPLES, s]
        whole_G8[s, _TO_N_STEPS], whole_G8[s, _TO_SENT] = table_FG[_N_STEPS, s], _SENT
        floats_G8[s, _TO_BEFORE], floats_G8[s, _TO_AFTER] = before, after
        floats_G8[s, _TO_NORM], floats_G8[s, _TO_TRAIN] = norms_G[s], train_s
    return is_finite
