"""Simulated attackers: which clients they are, and the data of those that train on turned labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsim.config import LabelFlip, RunConfig
from fedsim.errors import ConfigError
from fedsim.population.laid import Laid
from fedsim.population.population import Population
from fedsim.seeding import Purpose, bits
from fedsim.types import Int64, Shard


def attackers(config: RunConfig, clients: Int64) -> Int64 | None:
    """The numbers of the clients that attack, ascending; None where the configuration has no attack.

    Of a fraction, the nearest whole number of `clients` (those with data): the ones whose keyed word of the run's seed
    is the lowest. So who attacks does not depend on ranks, schedule or data.
    Raises ConfigError for nobody, and for a named client without data.
    """
    attack = config.attack
    if attack is None:
        return None
    if attack.fraction is None:
        named = np.unique(np.array(attack.clients, np.int64))
        strange = np.setdiff1d(named, clients)
        if strange.size:
            raise ConfigError(f"attack.clients: client {strange[0]} is none of the {clients.size} clients with data")
        return named
    n = int(attack.fraction * clients.size + 0.5)
    if n == 0:
        raise ConfigError(f"attack.fraction: {attack.fraction:g} of {clients.size} clients with data is nobody")
    words = bits(config.seed, Purpose.ATTACKERS, clients, 0, 1)[:, 0]
    return np.sort(clients[np.argsort(words, kind="stable")[:n]])


def poisoned(people: Population, config: RunConfig, attacking: Int64 | None) -> Population:
    """The population with the labels of attackers turned, where that is the attack.

    Raises ConfigError where samples are labelled with no classes.
    """
    if attacking is None or not isinstance(config.attack, LabelFlip):
        return people
    if people.targets != "classes":
        raise ConfigError(
            f"attack.kind label-flip turns classes round; data.dataset {config.data.dataset} has {people.targets}: "
            "use sign-flip, gaussian or scaled"
        )
    return Poisoned(people, attacking)


class Poisoned(Population):
    """The clients of another population; attackers train on class classes - 1 - c in place of c, tests are clean.

    Reference: Fang, Cao, Jia and Gong, "Local model poisoning attacks to Byzantine-robust federated learning", USENIX
    Security 2020 (label flipping).
    """

    def __init__(self, inner: Population, attacking: Int64) -> None:
        self._inner = inner
        self._attacking = frozenset(attacking.tolist())
        self.n_clients = inner.n_clients
        self.sample_shape = inner.sample_shape
        self.n_classes = inner.n_classes
        self.targets = inner.targets

    def n_samples(self, clients: Int64) -> Int64:
        return self._inner.n_samples(clients)

    def shard(self, client: int) -> Shard:
        shard = self._inner.shard(client)
        return Shard(shard.x, self.n_classes - 1 - shard.y) if client in self._attacking else shard

    def laid(self, client: int) -> Laid | None:
        laid = self._inner.laid(client)
        if laid is None or client not in self._attacking:
            return laid
        return replace(laid, y=self.n_classes - 1 - laid.y)

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
