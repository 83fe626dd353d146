"""What is noted of a group's losses, against numpy's own means of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.tables import TASK
from fedsim.training.reporting import AFTER, BAD_LOSS, BAD_STEP, BEFORE, note


@given(
    n_steps=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    n_batch=st.one_of(st.integers(1, 20), st.integers(100, 600)),
    n_block=st.integers(1, 4),
    is_full=st.booleans(),
    bad=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_means_of_batches_to_the_last_bit(
    n_steps: list[int], n_batch: int, n_block: int, is_full: bool, bad: list[tuple[int, int]], seed: int
) -> None:
    n_steps.sort(reverse=True)
    draws, n_slots, longest = np.random.default_rng(seed), len(n_steps), n_steps[0]
    each_GKB = draws.standard_normal((n_slots, longest, n_batch)).astype(np.float32).astype(np.float64)
    n_valid_GK = draws.integers(n_batch if is_full else 1, n_batch + 1, (n_slots, longest))
    for slot, k in bad:
        each_GKB[slot % n_slots, k % longest, 0] = np.inf
    each_GKB[np.arange(n_batch) >= n_valid_GK[..., None]] = np.nan  # what a short batch leaves counts for nothing
    means_GK = np.where(np.isnan(each_GKB), 0.0, each_GKB).sum(axis=2) / n_valid_GK
    tasks = np.zeros(n_slots, TASK)
    tasks["n_steps"] = n_steps
    table_FG = np.ascontiguousarray(tasks.view(np.int64).reshape(n_slots, -1).T)
    noted_4G = np.full((4, n_slots), np.nan)
    for step in range(0, longest, n_block):
        g, block = sum(n > step for n in n_steps), slice(step, step + n_block)
        note(each_GKB[:g, block].copy(), n_valid_GK[:g, block].copy(), table_FG, step, noted_4G)
    for slot, n in enumerate(n_steps):
        losses = means_GK[slot, :n]
        assert noted_4G[[BEFORE, AFTER], slot].tolist() == losses[[0, -1]].tolist()
        bad_steps = np.flatnonzero(~np.isfinite(losses)).tolist()
        first = [float(bad_steps[0]), losses[bad_steps[0]]] if bad_steps else [np.nan, np.nan]
        np.testing.assert_array_equal(noted_4G[[BAD_STEP, BAD_LOSS], slot], first)
