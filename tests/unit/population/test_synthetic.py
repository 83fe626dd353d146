"""The two synthetic sets: made on demand, equal bits whoever asks, nothing that grows with the clients."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from fedsim.config import SyntheticImagesData, SyntheticLeafData
from fedsim.errors import DataError
from fedsim.population.datasets import synthetic_images
from fedsim.population.datasets.synthetic_images import SyntheticImages
from fedsim.population.datasets.synthetic_leaf import SyntheticLeaf
from fedsim.population.population import Population


def images(seed: int = 0, **options: Any) -> SyntheticImages:
    return SyntheticImages(SyntheticImagesData(dataset="synthetic-images", **options), seed)


def leaf(seed: int = 0, **options: Any) -> SyntheticLeaf:
    return SyntheticLeaf(SyntheticLeafData(dataset="synthetic-leaf", **options), seed)


def same(a: Any, b: Any) -> bool:
    return a.x.tobytes() == b.x.tobytes() and a.y.tobytes() == b.y.tobytes()


@pytest.mark.parametrize("make", [images, leaf])
def test_same_bits_in_any_order_of_calls(make: Any) -> None:
    first, second = make(clients=20), make(clients=20)
    forward = [first.shard(i) for i in range(20)]
    backward = [second.shard(i) for i in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not any(same(forward[0], other) for other in forward[1:])
    assert not same(forward[3], make(seed=1, clients=20).shard(3))


@pytest.mark.parametrize("make", [images, leaf])
def test_shards_are_what_training_expects(make: Any) -> None:
    people = make(clients=7)
    sizes = people.n_samples(np.arange(7))
    assert sizes.dtype == np.int64
    for client in range(7):
        shard = people.shard(client)
        assert shard.x.dtype == np.float32 and shard.x.flags.c_contiguous and shard.y.dtype == np.int64
        assert shard.x.shape == (sizes[client], *people.sample_shape) and shard.y.shape == (sizes[client],)
        assert shard.y.min() >= 0 and shard.y.max() < people.n_classes


@pytest.mark.parametrize("make", [images, leaf])
def test_ten_million_clients_cost_what_ten_do(make: Any) -> None:
    tracemalloc.start()
    people = make(clients=10**7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert same(people.shard(3), make(clients=10).shard(3))
    assert people.shard(10**7 - 1).y.size == people.n_samples(np.array([10**7 - 1]))[0]


@pytest.mark.parametrize("make", [images, leaf])
@pytest.mark.parametrize("client", [-1, 5])
def test_numbers_of_nobody_are_refused(make: Any, client: int) -> None:
    people: Population = make(clients=5)
    with pytest.raises(IndexError, match=r"0 \.\. 4"):
        people.shard(client)
    with pytest.raises(DataError, match="allowed: 0 to 4"):
        people.client_named(str(client))
    assert people.client_named("4") == 4


def test_images_limit_the_classes_of_a_client() -> None:
    people = images(clients=50, classes=10, classes_per_client=2, samples=30, shape=[4])
    seen = [set(people.shard(i).y.tolist()) for i in range(50)]
    assert max(map(len, seen)) == 2 and set.union(*seen) == set(range(10))


def test_images_test_set_has_all_classes_and_is_nobodys() -> None:
    people = images(clients=3, classes=4, classes_per_client=1, test_samples=200, shape=[2, 3])
    test = people.central_test()
    assert test.x.shape == (200, 2, 3) and set(test.y.tolist()) == {0, 1, 2, 3}
    assert tuple(people.test_clients()) == ()
    assert same(test, people.central_test())
    with pytest.raises(IndexError, match="no test set"):
        people.test_shard(0)


def test_images_do_not_depend_on_how_centres_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = images(clients=4, shape=[8, 8])
    expected = [kept.shard(i) for i in range(4)]
    monkeypatch.setattr(synthetic_images, "_TABLE_BYTES", 0)
    drawn = images(clients=4, shape=[8, 8])
    assert all(same(drawn.shard(i), expected[i]) for i in range(4))


def test_hashes_name_the_recipe() -> None:
    assert images().data_sha256() == images().data_sha256()
    different = [images(), images(seed=1), images(samples=41), leaf()]
    assert len({people.data_sha256() for people in different}) == 4


def test_a_shard_beyond_memory_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.samples x data\.shape would need .* bytes"):
        images(samples=2**40)
    with pytest.raises(DataError, match=r"data\.max_samples x data\.features"):
        leaf(features=2**40)
    with pytest.raises(DataError, match=r"data\.classes x data\.features"):
        leaf(features=2**24, classes=10_000, max_samples=50)


def test_leaf_sizes_in_bulk_are_those_of_single_clients() -> None:
    people = leaf(clients=200_000)
    chosen = np.array([0, 5, 65_535, 65_536, 199_999, 5])
    bulk = people.n_samples(np.arange(200_000))
    assert people.n_samples(chosen).tolist() == bulk[chosen].tolist()
    assert [int(people.n_samples(np.array([c]))[0]) for c in chosen] == bulk[chosen].tolist()
    assert people.n_samples(chosen.reshape(2, 3)).shape == (2, 3)


def test_leaf_sizes_and_test_sets() -> None:
    people = leaf(clients=40, min_samples=10, max_samples=60, test_fraction=0.25)
    assert list(people.test_clients()) == list(range(40))
    for client in range(40):
        n_train, n_test = people.shard(client).y.size, people.test_shard(client).y.size
        assert 10 <= n_train + n_test <= 60
        assert abs(n_test - 0.25 * (n_train + n_test)) <= 0.5


def test_leaf_clients_of_one_sample_have_no_test_set() -> None:
    people = leaf(clients=5, min_samples=1, max_samples=1)
    assert list(people.test_clients()) == [] and people.n_samples(np.arange(5)).tolist() == [1] * 5
    with pytest.raises(IndexError, match="no test set"):
        people.test_shard(0)
