"""How samples are dealt to clients: pure functions of labels, configuration and seed.

Each kind gives every sample an owner, so that every sample is assigned exactly once by construction. A client's
samples are kept in the order of the data. Shapes: `N` samples, `C` clients, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.config import DirichletPartition, IidPartition, PartitionConfig, QuantityPartition, ShardsPartition
from fedsim.errors import DataError
from fedsim.seeding import Purpose, generator
from fedsim.types import Float64, Int64

MAX_TRIES = 1000


@dataclass(frozen=True, slots=True)
class Partition:
    """Which samples each client has: client k holds rows `order_N[offsets_C1[k] : offsets_C1[k + 1]]`."""

    order_N: Int64
    offsets_C1: Int64

    @classmethod
    def from_owners(cls, owner_N: Int64, n_clients: int) -> Partition:
        """The partition in which sample i belongs to client `owner_N[i]`, rows of a client in ascending order.

        >>> Partition.from_owners(np.array([1, 0, 1]), 2).rows(1)
        array([0, 2])
        """
        counts_C = np.bincount(owner_N, minlength=n_clients)
        offsets_C1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_C, dtype=np.int64)])
        return cls(np.argsort(owner_N, kind="stable"), offsets_C1)

    @property
    def n_clients(self) -> int:
        """Clients, those without a sample included."""
        return self.offsets_C1.size - 1

    def counts(self, clients: Int64) -> Int64:
        """Samples of each of `clients`: the same shape, int64."""
        result: Int64 = self.offsets_C1[clients + 1] - self.offsets_C1[clients]
        return result

    def rows(self, client: int) -> Int64:
        """Row numbers of the client's samples, ascending, int64."""
        return self.order_N[self.offsets_C1[client] : self.offsets_C1[client + 1]]


def split(labels_N: Int64, config: PartitionConfig, seed: int) -> Partition:
    """The partition that `config` asks for, the same for the same labels, configuration and seed.

    Raises DataError when there are more clients, shards or wanted samples than samples, or when no draw in
    `MAX_TRIES` gives every client `min_samples`.
    """
    match config:
        case IidPartition():
            owner_N = _iid(labels_N.size, config, seed)
        case DirichletPartition():
            owner_N = _dirichlet(labels_N, config, seed)
        case ShardsPartition():
            owner_N = _shards(labels_N, config, seed)
        case QuantityPartition():
            owner_N = _quantity(labels_N.size, config, seed)
        case _:
            raise ValueError(f"partition kind {config.kind} deals no samples: the data set has its own clients")
    return Partition.from_owners(owner_N, config.clients)


def n_test_of(n: ArrayLike, fraction: float) -> Int64:
    """Test samples out of `n`: `fraction` of them, rounded; both parts get at least one sample where n is 2 or more."""
    total = np.asarray(n, dtype=np.int64)
    wanted = np.rint(total * fraction).astype(np.int64)
    result: Int64 = np.clip(wanted, np.minimum(1, total - 1), total - 1)
    return result


def stratified_test_mask(labels_N: Int64, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the samples of the test set, shape (N,): `fraction` of each class, drawn from a key per class."""
    mask_N = np.zeros(labels_N.size, dtype=np.bool_)
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        shuffled = generator(seed, Purpose.TEST_SPLIT, int(label)).permutation(rows)
        mask_N[shuffled[: int(n_test_of(rows.size, fraction))]] = True
    return mask_N


def _iid(n_samples: int, config: IidPartition, seed: int) -> Int64:
    """Owners of a random permutation cut into parts whose sizes differ by one at most."""
    _check_enough(n_samples, "partition.clients", config.clients)
    owner_N = np.empty(n_samples, dtype=np.int64)
    shuffled = generator(seed, Purpose.PARTITION).permutation(n_samples)
    owner_N[shuffled] = np.arange(n_samples) * config.clients // n_samples
    return owner_N


def _shards(labels_N: Int64, config: ShardsPartition, seed: int) -> Int64:
    """Owners by label-sorted shards (McMahan et al., AISTATS 2017, section 3); rows of one label in random order."""
    n_samples, n_shards = labels_N.size, config.clients * config.shards_per_client
    _check_enough(n_samples, "partition.clients x partition.shards_per_client", n_shards)
    rng = generator(seed, Purpose.PARTITION)
    shuffled = rng.permutation(n_samples)
    by_label = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    client_of_shard = rng.permutation(n_shards) // config.shards_per_client
    owner_N = np.empty(n_samples, dtype=np.int64)
    owner_N[by_label] = client_of_shard[np.arange(n_samples) * n_shards // n_samples]
    return owner_N


def _quantity(n_samples: int, config: QuantityPartition, seed: int) -> Int64:
    """Owners by sizes from one Dirichlet(alpha) draw over the clients, whatever the labels."""
    counts_KC, rng = _draw_counts(np.array([n_samples]), config, seed)
    owner_N = np.empty(n_samples, dtype=np.int64)
    owner_N[rng.permutation(n_samples)] = np.repeat(np.arange(config.clients), counts_KC[0])
    return owner_N


def _dirichlet(labels_N: Int64, config: DirichletPartition, seed: int) -> Int64:
    """Owners by label skew: each class is cut at a Dirichlet(alpha) draw over the clients.

    This is the class-by-class form (Yurochkin et al., ICML 2019; Li et al., ICDE 2022), whose clients differ in
    size, too. Hsu, Qi and Brown (2019), who introduced the skew, draw class proportions for clients of equal size.
    """
    classes, counts_K = np.unique(labels_N, return_counts=True)
    counts_KC, rng = _draw_counts(counts_K, config, seed)
    owner_N = np.empty(labels_N.size, dtype=np.int64)
    for label, counts_C in zip(classes, counts_KC, strict=True):
        shuffled = rng.permutation(np.flatnonzero(labels_N == label))
        owner_N[shuffled] = np.repeat(np.arange(config.clients), counts_C)
    return owner_N


def _draw_counts(
    counts_K: Int64, config: DirichletPartition | QuantityPartition, seed: int
) -> tuple[Int64, np.random.Generator]:
    """Samples of each class for each client, int64 (K, C), and the generator that goes on from there.

    The whole draw is repeated with the next key until every client has `min_samples`.
    """
    n_samples = int(counts_K.sum())
    _check_enough(n_samples, "partition.clients", config.clients)
    _check_enough(n_samples, "partition.clients x partition.min_samples", config.clients * config.min_samples)
    for attempt in range(MAX_TRIES):
        rng = generator(seed, Purpose.PARTITION, attempt)
        shares_KC = _shares(rng, config.alpha, config.clients, counts_K.size)
        counts_KC = _cut(counts_K, shares_KC)
        if counts_KC.sum(axis=0).min() >= config.min_samples:
            return counts_KC, rng
    raise DataError(
        f"partition: no {config.kind} draw in {MAX_TRIES} gave each of {config.clients} clients min_samples "
        f"({config.min_samples}) of {n_samples} samples: raise alpha ({config.alpha:g}), lower clients or min_samples"
    )


def _shares(rng: np.random.Generator, alpha: float, n_clients: int, n_rows: int) -> Float64:
    """Rows of shares that sum to one: Dirichlet(alpha) over the clients, float64 (n_rows, C)."""
    with np.errstate(all="ignore"):
        shares: Float64 = rng.dirichlet(np.full(n_clients, alpha), size=n_rows)
    if not np.allclose(shares.sum(axis=1), 1.0):  # the gamma draws overflow near 1e306
        raise DataError(f"partition.alpha is {alpha:g}, beyond what a Dirichlet draw can resolve; allowed: up to 1e300")
    return shares


def _cut(counts_K: Int64, shares_KC: Float64) -> Int64:
    """Whole samples by shares, int64 (K, C): each row sums to its count exactly."""
    inner = np.floor(np.cumsum(shares_KC[:, :-1], axis=1) * counts_K[:, None]).astype(np.int64)
    inner = np.minimum(inner, counts_K[:, None])  # a cumulative sum can pass one by rounding
    first, last = np.zeros((counts_K.size, 1), np.int64), counts_K[:, None]
    return np.diff(np.concatenate([first, inner, last], axis=1), axis=1)


def _check_enough(n_samples: int, what: str, wanted: int) -> None:
    if wanted > n_samples:
        raise DataError(f"{what} is {wanted}, above the number of training samples; allowed: up to {n_samples}")
