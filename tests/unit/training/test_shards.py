"""The bounded cache of shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import DataError
from fedsim.population.laid import Laid
from fedsim.training.objectives import BinaryCrossEntropy, Cox, CrossEntropy, MeanSquaredError, TaskLoss
from fedsim.training.shards import DeviceShard, LaidShard, ShardCache, Together, vocabulary_of
from fedsim.types import Shard

CPU = torch.device("cpu")
BYTES = 4 * 3 * 4 + 4 * 8  # four samples of three float32 values, and their int64 labels


def _shard(value: int) -> Shard:
    return Shard(np.full((4, 3), value, np.float32), np.arange(4))


def _get(cache: ShardCache, client: int, made: list[int]) -> torch.Tensor:
    def make() -> Shard:
        made.append(client)
        return _shard(client)

    return cache.get(client, make).x


def test_evicts_the_shard_used_longest_ago() -> None:
    cache, made = ShardCache(2 * BYTES, CPU, CrossEntropy()), list[int]()
    for client in (0, 1, 0, 2, 0, 1):
        assert (_get(cache, client, made) == client).all()
        assert cache.n_bytes <= 2 * BYTES
    assert made == [0, 1, 2, 1]
    assert cache.n_bytes == 2 * BYTES


def test_serves_a_shard_above_the_bound_and_keeps_the_others() -> None:
    cache, made = ShardCache(BYTES, CPU, CrossEntropy()), list[int]()
    _get(cache, 1, made)
    big = cache.get("big", lambda: Shard(np.ones((100, 3), np.float32), np.zeros(100, np.int64)))
    assert big.n_samples == 100 and cache.n_bytes == BYTES
    _get(cache, 1, made)
    assert made == [1]


def test_with_no_room_everything_is_made_anew() -> None:
    cache, made = ShardCache(0, CPU, CrossEntropy()), list[int]()
    for _ in range(2):
        assert _get(cache, 1, made).shape == (4, 3)
    assert made == [1, 1] and cache.n_bytes == 0


def test_targets_take_the_losss_form(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard(5, (3,), 2)
    assert ShardCache(10**6, CPU, BinaryCrossEntropy()).get(0, lambda: shard).y.dtype == torch.float32
    assert ShardCache(10**6, CPU, CrossEntropy()).get(0, lambda: shard).y.dtype == torch.int64


def test_takes_read_only_and_strided_arrays() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    y = np.arange(4)
    x.flags.writeable = y.flags.writeable = False
    kept = ShardCache(10**6, CPU, CrossEntropy()).get(0, lambda: Shard(x, y))
    assert np.array_equal(kept.x.numpy(), x) and np.array_equal(kept.y.numpy(), y)


@pytest.mark.parametrize("loss", [Cox(), MeanSquaredError(2)], ids=["cox", "mse"])
def test_targets_by_columns_are_kept_by_rows(loss: TaskLoss) -> None:
    y = np.asfortranarray(np.arange(8, dtype=np.float32).reshape(4, 2))
    cache = ShardCache(10**6, CPU, loss)
    kept = cache.get(("train", 0), lambda: Shard(np.ones((4, 3), np.float32), y))
    assert kept.y.is_contiguous() and np.array_equal(kept.y.numpy(), y) and cache.together("train", [0]) is not None


@pytest.mark.parametrize("value", [-1.0, 7.0, 2.5, float("nan")])
def test_what_is_no_token_is_named(value: float) -> None:
    x = np.array([[0, 6, 3], [1, 2, 5]], np.float32)
    cache = ShardCache(10**6, CPU, CrossEntropy(), vocabulary_of(torch.nn.Embedding(7, 2)))
    cache.get(("train", 4), lambda: Shard(x, np.array([0, 1])))
    x[1, 2] = value
    named = rf"^train samples of client 5: value at \(1, 2\) is {value:g}, .* 0 to 6 \(model"
    with pytest.raises(DataError, match=named):
        cache.get(("train", 5), lambda: Shard(x, np.array([0, 1])))
    with pytest.raises(DataError, match=r"^central test samples: "):
        cache.get("central", lambda: Shard(x, np.array([0, 1])))
    assert vocabulary_of(torch.nn.Linear(3, 2)) is None


def test_what_a_group_finds_was_used_last_in_its_order() -> None:
    cache, made = ShardCache(3 * BYTES, CPU, CrossEntropy()), list[int]()
    for client in (0, 1, 2):
        _get(cache, client, made)
    found = cache.find_all([1, 5, 0])
    assert [None if shard is None else shard.n_samples for shard in found] == [4, None, 4]
    made.clear()
    for client in (3, 4):  # in place of 2, then of 1
        _get(cache, client, made)
        assert cache.n_bytes == 3 * BYTES
    assert [shard is None for shard in cache.find_all([0, 1, 2, 3, 4])] == [False, True, True, False, False]
    _get(cache, 5, made)  # in place of 0
    assert [shard is None for shard in cache.find_all([0, 3, 4, 5])] == [True, False, False, False]
    assert made == [3, 4, 5]


def test_places_of_shards_wherever_they_lie() -> None:
    cache = ShardCache(10**6, CPU, CrossEntropy())
    for client in (0, 1):
        _get(cache, client, [])
    laid = LaidShard(Laid(np.ones((4, 3), np.float32), np.arange(4), np.arange(4)), CrossEntropy())
    first, second = cache.find_all([0, 1])
    assert isinstance(first, DeviceShard) and isinstance(second, DeviceShard)
    data = Together.of([second, laid, first])
    x_G, y_G = data.places_2G
    assert x_G.tolist() == [second.x.data_ptr(), 0, first.x.data_ptr()] and x_G.flags.c_contiguous
    assert y_G.tolist() == [second.y.data_ptr(), 0, first.y.data_ptr()] and y_G.flags.c_contiguous
    assert data.n_samples_G.tolist() == [4, 4, 4] and data.shards == [second, laid, first]


def test_shards_found_together_are_those_that_are_kept() -> None:
    cache, make = ShardCache(3 * BYTES, CPU, CrossEntropy()), partial(_shard, 0)
    kept = [cache.get(("train", client), make) for client in (0, 1, 2)]
    assert cache.together("train", [1, 3]) is None and cache.together("test", [1]) is None
    data = cache.together("train", [2, 0, 2])
    assert data is not None and list(data.shards) == [kept[2], kept[0], kept[2]]
    whole = Together.of([kept[2], kept[0], kept[2]])
    assert np.array_equal(data.places_2G, whole.places_2G) and np.array_equal(data.n_samples_G, whole.n_samples_G)
    cache.get(("train", 3), make)  # in place of 1
    assert cache.together("train", [1]) is None and cache.together("train", [0, 2, 3]) is not None


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=60))
def test_those_used_longest_ago_go_first(groups: list[list[int]]) -> None:
    cache, make = ShardCache(6 * BYTES, CPU, CrossEntropy()), partial(_shard, 0)
    order = list[int]()  # those kept, by their last use
    for group in groups:
        is_kept = all(client in order for client in group)
        assert (cache.together("train", group) is not None) == is_kept
        for client in group:
            if not is_kept:
                cache.get(("train", client), make)
            order = [*(other for other in order if other != client), client][-6:]
        assert all(shard is not None for shard in cache.find_all([("train", client) for client in order]))
