"""A population that stands on another one and changes some of it."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.population.laid import Laid
from fedsim.population.population import Population
from fedsim.types import Int64, Shard


class Wrapped(Population):
    """All of the clients, data and test sets of another population: a subclass says what is different."""

    def __init__(self, inner: Population) -> None:
        self._inner = inner
        self.n_clients = inner.n_clients
        self.sample_shape = inner.sample_shape
        self.n_classes = inner.n_classes
        self.targets = inner.targets

    def n_samples(self, clients: Int64) -> Int64:
        return self._inner.n_samples(clients)

    def shard(self, client: int) -> Shard:
        return self._inner.shard(client)

    def laid(self, client: int) -> Laid | None:
        return self._inner.laid(client)

    def laid_test(self, client: int) -> Laid | None:
        return self._inner.laid_test(client)

    def laid_central(self) -> Laid | None:
        return self._inner.laid_central()

    @property
    def has_central_test(self) -> bool:
        return self._inner.has_central_test

    def data_sha256(self) -> str:
        return self._inner.data_sha256()

    def client_name(self, client: int) -> str:
        return self._inner.client_name(client)

    def client_named(self, name: str) -> int:
        return self._inner.client_named(name)

    def test_clients(self) -> Sequence[int]:
        return self._inner.test_clients()

    def test_shard(self, client: int) -> Shard:
        return self._inner.test_shard(client)

    def central_test(self) -> Shard | None:
        return self._inner.central_test()
