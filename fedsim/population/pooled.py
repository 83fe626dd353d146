"""All training data with one client: the centralised baseline, by the same engine."""

from __future__ import annotations

import numpy as np

from fedsim.population.laid import Laid
from fedsim.population.wrapped import Wrapped
from fedsim.types import Int64, Shard


class Pooled(Wrapped):
    """The clients of another population; client 0 has all training samples, and the test sets stay where they are."""

    def n_samples(self, clients: Int64) -> Int64:
        total = int(self._inner.n_samples(np.arange(self.n_clients, dtype=np.int64)).sum())
        sizes: Int64 = np.where(np.asarray(clients) == 0, total, 0).astype(np.int64)
        return sizes

    def shard(self, client: int) -> Shard:
        shards = [self._inner.shard(other) for other in range(self.n_clients)] if self._checked(client) == 0 else []
        if not shards:
            empty = self._inner.shard(client)
            return Shard(empty.x[:0], empty.y[:0])
        return Shard(np.concatenate([shard.x for shard in shards]), np.concatenate([shard.y for shard in shards]))

    def laid(self, client: int) -> Laid | None:
        parts = [self._inner.laid(other) for other in range(self.n_clients)] if self._checked(client) == 0 else []
        laid = [part for part in parts if part is not None]
        if not laid or len(laid) < len(parts) or any(part.inputs is not laid[0].inputs for part in laid):
            return None
        rows, labels = [part.rows_N for part in laid], [part.y for part in laid]
        return Laid(laid[0].inputs, np.concatenate(rows), np.concatenate(labels))
