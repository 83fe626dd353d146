"""The random streams: Philox against its authors' known answers, bulk against single draws, keys against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import seeding
from fedsim.seeding import Purpose

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

numbers = st.integers(0, 2**48 - 1)
purposes = st.sampled_from(list(Purpose))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_authors_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = [np.array([word], dtype=np.uint64) for word in counter]
    found = seeding.philox(key[0] | key[1] << 32, words[0], words[1], words[2], words[3])
    assert tuple(int(word[0]) for word in found) == expected


@given(st.integers(0, 2**63 - 1), purposes, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_bulk_gives_what_one_at_a_time_gives(seed: int, purpose: Purpose, keys: list[tuple[int, int]]) -> None:
    clients, tasks = np.array(keys, dtype=np.int64).T
    bulk = seeding.bits(seed, purpose, clients, tasks, 7)
    for row, (client, task) in zip(bulk, keys, strict=True):
        np.testing.assert_array_equal(row, seeding.bits(seed, purpose, client, task, 7))


@given(numbers, numbers, st.integers(0, 20), st.integers(0, 20))
def test_a_stream_can_be_entered_anywhere(client: int, task: int, first: int, n: int) -> None:
    whole = seeding.bits(3, Purpose.BATCH_ORDER, client, task, first + n)
    np.testing.assert_array_equal(seeding.bits(3, Purpose.BATCH_ORDER, client, task, n, first), whole[first:])


@given(st.integers(0, 2**63 - 1), purposes, numbers, numbers)
def test_a_pair_is_the_first_two(seed: int, purpose: Purpose, client: int, task: int) -> None:
    pair = seeding.uniform_pair(seed, purpose, client, task)
    assert tuple(pair) == tuple(seeding.uniforms(seed, purpose, client, task, 2).tolist())


def test_streams_of_different_keys_differ() -> None:
    seen = {
        seeding.bits(seed, purpose, client, task, 1).item()
        for seed in (0, 1, 2**62)
        for purpose in Purpose
        for client in (0, 1, 2**32, 2**47)
        for task in (0, 1, 2**32, 2**47)
    }
    assert len(seen) == 3 * len(Purpose) * 16


def test_uniforms_are_uniform_and_orders_are_permutations() -> None:
    draws = seeding.uniforms(1, Purpose.SELECTION, 0, np.arange(20_000), 5)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    counts, _ = np.histogram(draws, bins=100, range=(0.0, 1.0))
    chi_square = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    assert 50.0 < chi_square < 160.0  # 99 degrees of freedom: outside with probability below 1e-4
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation - np.eye(5)).max() < 0.03  # four standard errors of 1/sqrt(20,000)
    orders = seeding.permutations(1, Purpose.BATCH_ORDER, np.arange(50), 3, 13)
    np.testing.assert_array_equal(np.sort(orders, axis=-1), np.broadcast_to(np.arange(13), (50, 13)))


def test_normals_are_normal() -> None:
    u = seeding.uniforms(2, Purpose.COMPUTE_TIME, 0, np.arange(100_000), 2)
    z = seeding.normals(u[:, 0], u[:, 1])
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1.0) < 4 * np.sqrt(2 / z.size)
    assert abs((z**4).mean() - 3.0) < 4 * np.sqrt(96 / z.size)


def test_a_generator_is_a_function_of_its_key() -> None:
    first = seeding.generator(5, Purpose.DATA_SAMPLES, 7, 2).standard_normal(4)
    np.testing.assert_array_equal(first, seeding.generator(5, Purpose.DATA_SAMPLES, 7, 2).standard_normal(4))
    for other in ((6, 7, 2), (5, 8, 2), (5, 7, 3)):
        assert seeding.generator(other[0], Purpose.DATA_SAMPLES, *other[1:]).standard_normal() != first[0]
