"""Compiled code gives, to the last bit, what the code gives that it stands for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import philox, seeding
from fedsim.aggregation.accumulate import Kernels, fresh

ORDERS = st.lists(st.tuples(st.integers(1, 150), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=4)
FACTORS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1.0 / 3.0, 1e-30, 7.0])
KEYS = st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=4)


@given(st.integers(0, 2**63), KEYS, KEYS, st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_words_of_random_streams(seed: int, clients: list[int], tasks: list[int], n: int) -> None:
    n_keys = min(len(clients), len(tasks))
    keys = np.array(clients[:n_keys]), np.array(tasks[:n_keys])
    purpose = seeding.Purpose.BATCH_ORDER
    assert np.array_equal(philox.bits(seed, purpose, *keys, n), seeding.bits(seed, purpose, *keys, n))


@given(st.integers(0, 2**63), ORDERS, st.booleans())
@settings(max_examples=50, deadline=None)
def test_orders_of_samples(seed: int, keys: list[tuple[int, int, int]], is_one_stream: bool) -> None:
    sizes, firsts, counts = np.array(keys).T.copy()
    clients, tasks, purpose = np.arange(len(keys)) + 2**40, 7 * np.arange(len(keys)), seeding.Purpose.BATCH_ORDER
    key = np.uint64(seeding.stream_key(seed, purpose))
    orders, starts = philox.draw_orders(clients, tasks, sizes, firsts, counts, is_one_stream, key)
    for client, task, start, (n, first, count) in zip(clients, tasks, starts, keys, strict=True):
        for i in range(count):
            task_or_pass, at = (task, n * (first + i)) if is_one_stream else (task + first + i, 0)
            words = seeding.bits(seed, purpose, client, task_or_pass, n, at)
            found = orders[start + i * n : start + (i + 1) * n]
            assert np.array_equal(found, np.argsort(words, kind="stable"))


@given(
    st.lists(st.tuples(st.booleans(), FACTORS, FACTORS, FACTORS, FACTORS), max_size=6), st.sampled_from([1, 7, 70_001])
)
@settings(max_examples=40, deadline=None)
def test_passes_over_updates(calls: list[tuple[bool, float, float, float, float]], n: int) -> None:
    found = []
    for is_hasty in (False, True):
        draws, kernels = np.random.default_rng(n), Kernels()
        if is_hasty:
            kernels.hasten()
        state = fresh(draws.standard_normal(n).astype(np.float32))
        published = [np.zeros(0, np.float32)]
        for completes, weight, kept, keep, scale in calls:
            vector_P = (draws.standard_normal(n) * 1e3).astype(np.float32)
            if completes:
                published.append(kernels.complete(state, vector_P, weight, kept=kept, keep=keep, scale=scale))
            else:
                kernels.add(state, vector_P, weight, keep=kept)
                state.n_accumulated += 1
        found.append([state.weights_P, state.accumulator_P, *published])
    for plain, compiled in zip(*found, strict=True):
        assert plain.tobytes() == compiled.tobytes()
