"""The test results of a version, by client or for the central test set.

Shapes: `P` parameters, `B` batch, `N` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from fedsim.config import RunConfig
from fedsim.training.objectives import TaskLoss, loss_of
from fedsim.training.shards import Samples, ShardCache, vocabulary_of
from fedsim.training.tallies import Tally
from fedsim.training.weights import Weights
from fedsim.types import EvaluationRow, Float32, Shard

if TYPE_CHECKING:
    from fedsim.population.laid import Laid
    from fedsim.population.population import Population


def _nothing() -> None:
    pass


def score(
    module: torch.nn.Module,
    loss: TaskLoss,
    shard: Samples,
    batch_size: int,
    progress: Callable[[], None] = _nothing,
) -> Tally:
    """The tally of a shard, in batches gathered as in training; the module is left in evaluation mode."""
    module.eval()
    tally = loss.tally(shard.device)
    with torch.inference_mode():
        for rows_B in torch.split(torch.arange(shard.n_samples, device=shard.device), batch_size):
            x_B, y_B = shard.batch(rows_B)
            tally.add(module(x_B), y_B)
            progress()
    return tally


def mean_loss(module: torch.nn.Module, loss: TaskLoss, shard: Samples, batch_size: int) -> float:
    """The loss of a whole shard, in float64."""
    return score(module, loss, shard, batch_size).values()[0]


class Evaluator:
    """Scores versions. `metric_names` are the keys of each row's metrics.

    With `evaluation.clients` every client that has a test set gets a row, and so has the central test set, if there is
    one, as client -1. Without, only row -1 is there: the central test set, or else all clients' test sets pooled.
    `module` is copied; `shards` is a cache to share with a trainer.
    """

    def __init__(
        self,
        config: RunConfig,
        population: Population,
        module: torch.nn.Module,
        device: torch.device,
        shards: ShardCache | None = None,
    ) -> None:
        self._population = population
        self._evaluation = config.evaluation
        self._loss = loss_of(config, population)
        self.metric_names = self._loss.metric_names
        self._shards = shards or ShardCache(config.memory.worker_data_bytes, device, self._loss, vocabulary_of(module))
        self._weights = Weights(module, device)
        self._has_central: bool | None = None  # unknown until asked for: the test set may be large

    def evaluate(
        self, vector_P: Float32, progress: Callable[[], None] = _nothing, *, number: int = 0
    ) -> list[EvaluationRow]:
        """The rows of a version, float32 (P,): clients in ascending order, -1 last; none if there is no test set.

        `number` is the version's, of which nothing here depends.

        Sums are float64, and a loss that is NaN stays NaN. `progress` is called after each batch.
        """
        self._weights.load(vector_P)
        central = self._central(progress)
        clients = [int(client) for client in self._population.test_clients()]
        if not self._evaluation.clients:
            return central or self._pooled(clients, progress)
        return [self._row(client, self._score_client(client, progress)) for client in clients] + central

    def client_row(self, client: int, vector_P: Float32) -> EvaluationRow:
        """The row of one client's test set for a model of its own, float32 (P,)."""
        self._weights.load(vector_P)
        return self._row(client, self._score_client(client, _nothing))

    def central_rows(self, vector_P: Float32) -> list[EvaluationRow]:
        """The row of the central test set, if there is one, for a version, float32 (P,)."""
        self._weights.load(vector_P)
        return self._central(_nothing)

    def _central(self, progress: Callable[[], None]) -> list[EvaluationRow]:
        if self._has_central is None:
            self._has_central = self._population.has_central_test
        if not self._has_central:
            return []
        return [self._row(-1, self._score("central", self._central_shard, self._population.laid_central, progress))]

    def _central_shard(self) -> Shard:
        shard = self._population.central_test()
        assert shard is not None
        return shard

    def _pooled(self, clients: Sequence[int], progress: Callable[[], None]) -> list[EvaluationRow]:
        pooled = self._loss.tally(torch.device("cpu"))
        pooled.merge([self._score_client(client, progress) for client in clients])
        return [self._row(-1, pooled)] if clients else []

    def _row(self, client: int, tally: Tally) -> EvaluationRow:
        loss, *metrics = tally.values()
        return EvaluationRow(client, tally.n_samples, loss, dict(zip(self.metric_names, metrics, strict=True)))

    def _score_client(self, client: int, progress: Callable[[], None]) -> Tally:
        people = self._population
        return self._score(
            ("test", client), partial(people.test_shard, client), partial(people.laid_test, client), progress
        )

    def _score(
        self, key: object, make: Callable[[], Shard], lay: Callable[[], Laid | None], progress: Callable[[], None]
    ) -> Tally:
        shard = self._shards.get(key, make, lay)
        return score(self._weights.module, self._loss, shard, self._evaluation.batch_size, progress)
