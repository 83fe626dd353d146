"""synthetic(alpha, beta): every client labels inputs from a law of its own by a logistic model of its own.

Reference: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020 (arXiv:1812.06127), section 5.1,
and its released generator. For client k

    u_k ~ N(0, alpha)    W_k, b_k ~ N(u_k, 1)    B_k ~ N(0, beta)    v_k ~ N(B_k, 1)    x ~ N(v_k, diag(j^-1.2))
    y = argmax(W_k x + b_k)        n_k = floor(lognormal(4, 2)) + min_samples, at most max_samples

As in the released generator, alpha and beta are standard deviations (the paper's notation leaves it open). u_k adds the
same to every class's logit, so that it cannot move a label; what makes the models differ is that each
client draws its own W_k and b_k. That is a property of the published recipe, kept here. n_k counts training and
test samples. Streams and the cap on n_k are fedsim's own, so the samples are not those of the released files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from fedsim.config import SyntheticLeafData
from fedsim.population.datasets.checks import check_bytes
from fedsim.population.partition import n_test_of
from fedsim.population.population import Population
from fedsim.seeding import Purpose, generator, normals, uniforms
from fedsim.types import Float32, Float64, Int64, Shard

_LOG_MEAN, _LOG_SIGMA = 4.0, 2.0
_CHUNK = 2**16  # clients whose sizes are drawn at a time, which bounds the memory of drawing millions


class SyntheticLeaf(Population):
    """The population of `synthetic-leaf`; its size does not depend on the number of clients."""

    def __init__(self, config: SyntheticLeafData, seed: int) -> None:
        self.n_clients = config.clients
        self.sample_shape = (config.features,)
        self.n_classes = config.classes
        self._config, self._seed = config, seed
        check_bytes(8 * config.max_samples * config.features, "data.max_samples x data.features")
        check_bytes(8 * config.classes * config.features, "data.classes x data.features")
        check_bytes(8 * config.max_samples * config.classes, "data.max_samples x data.classes")

    def n_samples(self, clients: Int64) -> Int64:
        total = self._totals(clients)
        result: Int64 = total - n_test_of(total, self._config.test_fraction)
        return result

    def shard(self, client: int) -> Shard:
        return self._parts(client)[0]

    def test_clients(self) -> Sequence[int]:
        if min(self._config.min_samples, self._config.max_samples) >= 2:
            return range(self.n_clients)
        clients: list[int] = np.flatnonzero(self._totals(np.arange(self.n_clients)) >= 2).tolist()
        return clients

    def test_shard(self, client: int) -> Shard:
        test = self._parts(client)[1]
        return test if test.y.size else super().test_shard(client)

    def data_sha256(self) -> str:
        recipe = {"recipe": "synthetic-leaf/1", "seed": self._seed, **self._config.model_dump()}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def _totals(self, clients: Int64) -> Int64:
        """Training and test samples together of each of `clients`: the same shape, int64."""
        flat = np.asarray(clients, dtype=np.int64).reshape(-1)
        chunks = [self._totals_of(flat[i : i + _CHUNK]) for i in range(0, flat.size, _CHUNK)]
        result: Int64 = np.concatenate([np.zeros(0, np.int64), *chunks]).reshape(np.shape(clients))
        return result

    def _totals_of(self, clients: Int64) -> Int64:
        u = uniforms(self._seed, Purpose.DATA_CLASSES, clients, 0, 2)
        # contiguous copies: numpy may take another code path, with other last bits, for strided arrays
        z = normals(np.ascontiguousarray(u[:, 0]), np.ascontiguousarray(u[:, 1]))
        drawn: Float64 = np.floor(np.exp(_LOG_MEAN + _LOG_SIGMA * z)) + self._config.min_samples
        result: Int64 = np.minimum(drawn, self._config.max_samples).astype(np.int64)
        return result

    def _parts(self, client: int) -> tuple[Shard, Shard]:
        """Training and test samples of one client; they are independent draws, so the last ones are the test set."""
        total = int(self._totals(np.array([self._checked(client)]))[0])
        n_train = total - int(n_test_of(total, self._config.test_fraction))
        x, y_N = self._draw(client, total)
        return Shard(x[:n_train].copy(), y_N[:n_train].copy()), Shard(x[n_train:].copy(), y_N[n_train:].copy())

    def _draw(self, client: int, n_samples: int) -> tuple[Float32, Int64]:
        c = self._config
        rng = generator(self._seed, Purpose.DATA_SAMPLES, client)
        u = c.alpha * rng.standard_normal()
        weights: Float64 = u + rng.standard_normal((c.classes, c.features))
        bias: Float64 = u + rng.standard_normal(c.classes)
        centre = c.beta * rng.standard_normal() + rng.standard_normal(c.features)
        scale = np.arange(1, c.features + 1, dtype=np.float64) ** -0.6
        x: Float64 = centre + scale * rng.standard_normal((n_samples, c.features))
        return x.astype(np.float32), np.argmax(x @ weights.T + bias, axis=1).astype(np.int64)
