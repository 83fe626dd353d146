"""Simulated attackers: which clients they are, and the data of those that train on turned labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.config import LabelFlip, RunConfig
from fedsim.errors import ConfigError
from fedsim.population.laid import Laid
from fedsim.population.population import Population
from fedsim.population.wrapped import Wrapped
from fedsim.seeding import Purpose, bits
from fedsim.types import Int64, Shard

_MOST_DRAWN_FROM = 2**26  # clients: a draw takes forty bytes for each


def attackers(config: RunConfig, n_clients: int, members: Int64 | None = None) -> Int64 | None:
    """The numbers of the clients that attack, ascending; None where the configuration has no attack.

    Of a fraction, the nearest whole number of the `members` (those with data; None: all `n_clients`): the ones whose
    keyed word of the run's seed is the lowest. So who attacks does not depend on ranks, schedule or data.
    Raises ConfigError for nobody, for a named client without data, and for a fraction of too many.
    """
    attack = config.attack
    if attack is None:
        return None
    n_members = n_clients if members is None else members.size
    if attack.fraction is None:
        named = np.unique(np.array(attack.clients, np.int64))
        strange = named[named >= n_clients] if members is None else np.setdiff1d(named, members)
        if strange.size:
            raise ConfigError(f"attack.clients: client {strange[0]} is none of the {n_members} clients with data")
        return named
    n = int(attack.fraction * n_members + 0.5)
    if n == 0:
        raise ConfigError(f"attack.fraction: {attack.fraction:g} of {n_members} clients with data is nobody")
    if n_members > _MOST_DRAWN_FROM:
        raise ConfigError(
            f"attack.fraction: a draw from {n_members:,} clients would take {40 * n_members / 1e9:.1f} GB; allowed: "
            f"{_MOST_DRAWN_FROM:,} clients with data, or attack.clients with the numbers of those that attack"
        )
    clients = np.arange(n_clients) if members is None else members
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


class Poisoned(Wrapped):
    """The clients of another population; attackers train on class classes - 1 - c in place of c, tests are clean.

    Reference: Fang, Cao, Jia and Gong, "Local model poisoning attacks to Byzantine-robust federated learning", USENIX
    Security 2020 (label flipping).
    """

    def __init__(self, inner: Population, attacking: Int64) -> None:
        super().__init__(inner)
        self._attacking = frozenset(attacking.tolist())

    def shard(self, client: int) -> Shard:
        shard = self._inner.shard(client)
        return Shard(shard.x, self.n_classes - 1 - shard.y) if client in self._attacking else shard

    def laid(self, client: int) -> Laid | None:
        laid = self._inner.laid(client)
        if laid is None or client not in self._attacking:
            return laid
        return replace(laid, y=self.n_classes - 1 - laid.y)
