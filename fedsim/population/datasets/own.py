"""A data set from a file of the user's own: clients with their training and test samples, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.population.datasets import checks
from fedsim.population.population import Population, inputs_of
from fedsim.types import Int64, Shard
from fedsim.userfiles import UserFunction

_KEYS = ("train", "test", "central_test", "n_classes")


class OwnData(Population):
    """The clients that the user's function returns.

    f() returns a dictionary: `train`, a list of (x, y), one a client; `test`, such a list, with None for a client
    without; or `central_test`, one (x, y); `n_classes`, one more than the largest label if it is not given. It gets
    `seed` and `folder`, the configuration's, if it asks for them. x is (N, ...), y whole numbers (N,).
    """

    def __init__(self, function: UserFunction, seed: int, folder: Path) -> None:
        self._function = function
        asked = {"seed": seed, "folder": folder}
        made = function(**{name: value for name, value in asked.items() if function.takes(name)})
        if not isinstance(made, Mapping) or "train" not in made or set(made) - set(_KEYS):
            got = f"the keys {', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
            raise function.refuse(f"a data set is a dictionary of {', '.join(_KEYS)}; got {got:.200}")
        self._shards = [self._shard(pair, f"train[{c}]") for c, pair in enumerate(self._list(made["train"], "train"))]
        tests = self._list(made.get("test") or [None] * len(self._shards), "test")
        if not self._shards or len(tests) != len(self._shards):
            raise function.refuse(f"train has {len(self._shards)} clients, test {len(tests)}: as many, and one or more")
        self._tests = {c: self._shard(pair, f"test[{c}]") for c, pair in enumerate(tests) if pair is not None}
        central = made.get("central_test")
        self._central = None if central is None else self._shard(central, "central_test")
        self.n_clients = len(self._shards)
        self.sample_shape = self._shards[0].x.shape[1:]
        self.n_classes = self._classes(made.get("n_classes"))
        self._check_shapes()

    def n_samples(self, clients: Int64) -> Int64:
        sizes: Int64 = np.array([len(shard.y) for shard in self._shards], np.int64)[clients]
        return sizes

    def shard(self, client: int) -> Shard:
        return _copy(self._shards[self._checked(client)])

    def data_sha256(self) -> str:
        digest = hashlib.sha256()
        for shard in self._every():
            for array in shard:
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def test_clients(self) -> Sequence[int]:
        return tuple(self._tests)

    def test_shard(self, client: int) -> Shard:
        return _copy(self._tests[client]) if client in self._tests else super().test_shard(client)

    def central_test(self) -> Shard | None:
        return None if self._central is None else _copy(self._central)

    def _every(self) -> list[Shard]:
        return [*self._shards, *self._tests.values(), *([] if self._central is None else [self._central])]

    def _list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise self._function.refuse(f"{name} is a list of (x, y), one a client; got {type(value).__name__}")
        return list(value)

    def _shard(self, pair: Any, name: str) -> Shard:
        """Samples as models take them. Raises DataError for what cannot be used, naming the function."""
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise self._function.refuse(f"{name} is (x, y); got {type(pair).__name__}")
        where = f"{self._function.name}: {name}"
        x, y = np.asarray(pair[0]), np.asarray(pair[1])
        if x.ndim < 2:
            raise self._function.refuse(f"{name}: x has shape {x.shape}, allowed: (samples, values) or more dimensions")
        checks.check_lengths(len(x), f"{where}: x", y.size, "y")
        if not len(x):
            return Shard(np.zeros(x.shape, np.float32), np.zeros(0, np.int64))
        labels: NDArray[Any] = checks.checked_labels(y, f"{where}: y", None)
        return Shard(inputs_of(checks.checked_inputs(x, f"{where}: x")), labels)

    def _classes(self, asked: Any) -> int:
        labels = np.concatenate([shard.y for shard in self._every()])
        if not labels.size:
            raise self._function.refuse("no client has any sample")
        least = checks.classes_of(labels, None)
        if asked is None:
            return least
        if not isinstance(asked, int | np.integer) or asked < least:
            raise self._function.refuse(f"n_classes is {asked!r:.40}, but there are labels up to {int(labels.max())}")
        return int(asked)

    def _check_shapes(self) -> None:
        for shard in self._every():
            if shard.x.shape[1:] != self.sample_shape:
                raise self._function.refuse(
                    f"samples of shapes {self.sample_shape} and {shard.x.shape[1:]}: one is allowed"
                )


def _copy(shard: Shard) -> Shard:
    return Shard(shard.x.copy(), shard.y.copy())
