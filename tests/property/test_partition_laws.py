"""Laws of partitions: every sample has one client, equal arguments give equal bits, alpha decides the skew."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import DirichletPartition, IidPartition, QuantityPartition, ShardsPartition
from fedsim.errors import DataError
from fedsim.population.partition import Partition, n_test_of, split, stratified_test_mask

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(lambda v: np.array(v, dtype=np.int64))


@st.composite
def partitions(draw: st.DrawFn, n_samples: int) -> Any:
    clients = draw(st.integers(1, n_samples))
    alpha = draw(st.floats(1e-3, 1e6))
    shards_per_client = draw(st.integers(1, max(1, n_samples // clients)))
    return draw(
        st.sampled_from(
            [
                IidPartition(kind="iid", clients=clients),
                DirichletPartition(kind="dirichlet", clients=clients, alpha=alpha, min_samples=0),
                ShardsPartition(kind="shards", clients=clients, shards_per_client=shards_per_client),
                QuantityPartition(kind="quantity", clients=clients, alpha=alpha, min_samples=0),
            ]
        )
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data(), labels=LABELS, seed=st.integers(0, 2**63 - 1))
def test_every_sample_is_assigned_exactly_once(data: st.DataObject, labels: Any, seed: int) -> None:
    config = data.draw(partitions(labels.size))
    parts = split(labels, config, seed)
    rows = [parts.rows(client) for client in range(config.clients)]
    assert parts.n_clients == config.clients
    assert sorted(np.concatenate(rows).tolist()) == list(range(labels.size))
    assert parts.counts(np.arange(config.clients)).tolist() == [r.size for r in rows]
    again = split(labels.copy(), config, seed)
    assert again.order_N.tobytes() == parts.order_N.tobytes()
    assert again.offsets_C1.tobytes() == parts.offsets_C1.tobytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), labels=LABELS, seed=st.integers(0, 1000))
def test_iid_and_shards_cut_equally(data: st.DataObject, labels: Any, seed: int) -> None:
    clients = data.draw(st.integers(1, labels.size))
    sizes = split(labels, IidPartition(kind="iid", clients=clients), seed).counts(np.arange(clients))
    assert sizes.max() - sizes.min() <= 1
    each = labels.size // clients
    config = ShardsPartition(kind="shards", clients=clients, shards_per_client=each)
    sizes = split(labels, config, seed).counts(np.arange(clients))
    assert sizes.max() - sizes.min() <= each


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), wanted=st.integers(1, 20), kind=st.sampled_from(["dirichlet", "quantity"]))
def test_min_samples_is_kept(seed: int, wanted: int, kind: str) -> None:
    labels = np.arange(600) % 6
    types: dict[str, Any] = {"dirichlet": DirichletPartition, "quantity": QuantityPartition}
    config = types[kind](kind=kind, clients=10, alpha=2.0, min_samples=wanted)
    assert split(labels, config, seed).counts(np.arange(10)).min() >= wanted


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_test_sets_are_stratified(labels: Any, fraction: float, seed: int) -> None:
    mask = stratified_test_mask(labels, fraction, seed)
    for label in np.unique(labels):
        n, n_test = int((labels == label).sum()), int(mask[labels == label].sum())
        assert n_test == n_test_of(n, fraction)
        assert abs(n_test - fraction * n) <= 1.0
        assert n < 2 or 1 <= n_test < n


def skew(alpha: float, n_clients: int = 20, seed: int = 0) -> float:
    """Mean over clients of the distance (total variation) of their label distribution from the uniform one."""
    labels = np.arange(20_000) % 10
    config = DirichletPartition(kind="dirichlet", clients=n_clients, alpha=alpha, min_samples=1)
    parts = split(labels, config, seed)
    shares = [np.bincount(labels[parts.rows(i)], minlength=10) / parts.rows(i).size for i in range(n_clients)]
    return float(np.mean([0.5 * np.abs(share - 0.1).sum() for share in shares]))


def test_alpha_decides_the_label_skew() -> None:
    values = [skew(alpha) for alpha in (0.1, 0.5, 1.0, 10.0, 1000.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.5 and values[-1] < 0.03


def test_dirichlet_shares_have_the_stated_variance() -> None:
    """A client's share of a class is Beta(a, (C-1) a): variance (C-1) / (C^2 (C a + 1))."""
    labels, clients, alpha = np.zeros(100_000, dtype=np.int64), 10, 0.7
    config = DirichletPartition(kind="dirichlet", clients=clients, alpha=alpha, min_samples=0)
    shares = np.array([split(labels, config, seed).counts(np.arange(clients)) / labels.size for seed in range(150)])
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    np.testing.assert_allclose(shares.mean(axis=0), 0.1, atol=0.04)
    assert abs(shares.var() / expected - 1) < 0.2


def test_quantity_skews_sizes_and_not_labels() -> None:
    labels = np.arange(50_000) % 10
    parts = split(labels, QuantityPartition(kind="quantity", clients=10, alpha=0.5), 0)
    sizes = parts.counts(np.arange(10))
    assert sizes.max() > 5 * sizes.min()
    largest = parts.rows(int(sizes.argmax()))
    np.testing.assert_allclose(np.bincount(labels[largest], minlength=10) / largest.size, 0.1, atol=0.02)


def test_shards_limit_the_labels_of_a_client() -> None:
    labels = np.repeat(np.arange(10), 100)
    parts = split(labels, ShardsPartition(kind="shards", clients=50, shards_per_client=2), 0)
    seen = [len(set(labels[parts.rows(i)].tolist())) for i in range(50)]
    assert max(seen) == 2 and parts.counts(np.arange(50)).tolist() == [20] * 50


def test_partitions_depend_on_the_seed() -> None:
    labels = np.arange(100) % 5
    for config in (
        IidPartition(kind="iid", clients=5),
        DirichletPartition(kind="dirichlet", clients=5, alpha=1.0),
        ShardsPartition(kind="shards", clients=5),
        QuantityPartition(kind="quantity", clients=5, alpha=1.0),
    ):
        assert split(labels, config, 0).order_N.tolist() != split(labels, config, 1).order_N.tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IidPartition(kind="iid", clients=11), r"partition\.clients is 11, above .*10"),
        (DirichletPartition(kind="dirichlet", clients=11, alpha=1.0), r"partition\.clients is 11, above .*10"),
        (DirichletPartition(kind="dirichlet", clients=11, alpha=1.0, min_samples=0), r"partition\.clients is 11"),
        (QuantityPartition(kind="quantity", clients=5, alpha=1.0, min_samples=3), r"min_samples is 15, above .*10"),
        (ShardsPartition(kind="shards", clients=5, shards_per_client=3), r"shards_per_client is 15, above .*10"),
        (DirichletPartition(kind="dirichlet", clients=5, alpha=1e-6, min_samples=2), r"no dirichlet .*raise alpha"),
        (DirichletPartition(kind="dirichlet", clients=5, alpha=1e308), r"partition\.alpha is 1e\+308"),
    ],
)
def test_impossible_partitions_are_refused_in_one_line(config: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split(np.arange(10) % 2, config, 0)
    assert "\n" not in str(caught.value)


def test_rows_of_a_client_keep_the_order_of_the_data() -> None:
    parts = Partition.from_owners(np.array([2, 0, 2, 0, 2]), 4)
    assert [parts.rows(i).tolist() for i in range(4)] == [[1, 3], [], [0, 2, 4], []]
