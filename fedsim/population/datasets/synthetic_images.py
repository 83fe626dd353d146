"""Class-conditional Gaussian images: any number of clients, each made on demand from its keys.

Every class has a centre of independent standard normal values; a sample is signal * centre + standard normal
noise. Each client holds at most `classes_per_client` classes, drawn without replacement, and takes each label
from these with equal probability. The test set takes labels from all classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property

import numpy as np

from fedsim.config import SyntheticImagesData
from fedsim.population.datasets.checks import check_bytes
from fedsim.population.population import Population
from fedsim.seeding import Purpose, generator
from fedsim.types import Float32, Int64, Shard

_TABLE_BYTES = 2**26  # up to this size the centres of all classes are kept; beyond, they are drawn when needed


class SyntheticImages(Population):
    """The population of `synthetic-images`; its size does not depend on the number of clients."""

    def __init__(self, config: SyntheticImagesData, seed: int) -> None:
        self.n_clients = config.clients
        self.sample_shape = tuple(config.shape)
        self.n_classes = config.classes
        self._config, self._seed = config, seed
        self._sample_bytes = 4 * math.prod(config.shape)
        check_bytes(config.samples * self._sample_bytes, "data.samples x data.shape")
        check_bytes(config.test_samples * self._sample_bytes, "data.test_samples x data.shape")

    def n_samples(self, clients: Int64) -> Int64:
        return np.full(np.shape(clients), self._config.samples, dtype=np.int64)

    def shard(self, client: int) -> Shard:
        rng = generator(self._seed, Purpose.DATA_SAMPLES, self._checked(client))
        own = rng.choice(self.n_classes, self._config.classes_per_client, replace=False)
        return self._samples(rng, own[rng.integers(0, own.size, self._config.samples)])

    def central_test(self) -> Shard:
        rng = generator(self._seed, Purpose.DATA_TEST)
        return self._samples(rng, rng.integers(0, self.n_classes, self._config.test_samples))

    def data_sha256(self) -> str:
        recipe = {"recipe": "synthetic-images/1", "seed": self._seed, **self._config.model_dump()}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def _samples(self, rng: np.random.Generator, y_N: Int64) -> Shard:
        x = rng.standard_normal((y_N.size, *self.sample_shape), dtype=np.float32)
        if self.n_classes * self._sample_bytes <= _TABLE_BYTES:
            x += self._table[y_N]
        else:
            for label in np.unique(y_N):
                x[y_N == label] += self._centre(int(label))
        return Shard(x, y_N)

    @cached_property
    def _table(self) -> Float32:
        """Centres of all classes times signal, (classes, *sample_shape)."""
        return np.stack([self._centre(label) for label in range(self.n_classes)])

    def _centre(self, label: int) -> Float32:
        rng = generator(self._seed, Purpose.DATA_CLASSES, label)
        return np.float32(self._config.signal) * rng.standard_normal(self.sample_shape, dtype=np.float32)
