"""The reference path: each task alone, step after step, with torch's own autograd and optimisers.

Shapes: `G` tasks in a group, `P` parameters, `B` batch, `N` samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.config import RunConfig
from fedsim.training import Payload, noise, objectives, optimizers
from fedsim.training.batches import passes
from fedsim.training.evaluate import mean_loss
from fedsim.training.finite import require_finite
from fedsim.training.own import OwnObjective
from fedsim.training.shards import Samples, ShardCache, vocabulary_of
from fedsim.training.weights import Finisher, Weights
from fedsim.types import Float32, Rows, Task, TaskReport
from fedsim.userfiles import UserFunction

if TYPE_CHECKING:
    from fedsim.population.population import Population

_PROGRESS_S = 1e-3


class LoopTrainer:
    """Trains any torch module, one task at a time; a group gains nothing here, so its size is 1 unless configured.

    A task's bits depend on the task, its base and its shard alone: the optimiser starts afresh, and batches are
    gathered into new tensors, because products over slices of a shard were seen to differ with the byte offset.
    """

    path = "loop"

    takes_rows = True

    def __init__(
        self,
        config: RunConfig,
        population: Population,
        module: torch.nn.Module,
        *,
        payload: Payload,
        device: torch.device,
        worker: int,
        clock: Callable[[], float],
        shards: ShardCache | None = None,
        has_linear: bool = False,
        own: UserFunction | None = None,
    ) -> None:
        self.group_size = config.training.group_size or 1
        self._config = config
        self._training = config.training
        self._population = population
        self._device = device
        self._worker = worker
        self._clock = clock
        self._progress_due_s = -math.inf
        self._loss = objectives.loss_of(config, population)
        self._shards = shards or ShardCache(config.memory.worker_data_bytes, device, self._loss, vocabulary_of(module))
        self._weights = Weights(module, device)
        self._finisher = Finisher(payload)
        self._module = self._weights.module
        self._parameters = [p for p in self._weights.parameters if p.requires_grad]
        self._optimizer = optimizers.build(self._training.optimizer, self._parameters)
        self._objective = objectives.objective(self._training.objective, self._parameters, own)
        is_own = isinstance(self._objective, objectives.AflCs)  # which reads the task's vector itself
        self._linear = objectives.Linear(self._parameters) if has_linear and not is_own else None
        self._noise = noise.find(module, population.sample_shape)
        self._masks = noise.TaskMasks(self._training.batch_size, device)

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out: Rows,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> list[TaskReport]:
        """See `fedsim.training.Trainer.train`."""
        n_values = self._weights.layout.n_parameters
        assert len(out) == len(tasks) and all(row_P.size == n_values for row_P in out)
        reports = []
        for i, task in enumerate(tasks):
            if linear_GP is not None:
                self._take(self._weights.split(linear_GP[i]))
            reports.append(self._train_task(task, base_of(task.base_version), out[i], progress))
        return reports

    def _take(self, vectors: Sequence[Tensor]) -> None:
        """Hands the task's own vector, a tensor a parameter, to whoever makes something of it."""
        if isinstance(self._objective, objectives.AflCs):
            self._objective.take(vectors)
        elif self._linear is not None:
            self._linear.start(vectors)

    def _train_task(self, task: Task, base_P: Float32, out_P: Float32, progress: Callable[[], None]) -> TaskReport:
        start_s = self._clock()
        people, client = self._population, task.client
        shard = self._shards.get(("train", client), lambda: people.shard(client), lambda: people.laid(client))
        assert shard.n_samples == task.n_samples, f"client {task.client}: {shard.n_samples} != {task.n_samples}"
        self._weights.load(base_P)
        optimizers.restart(self._optimizer, task.learning_rate)
        self._objective.start()
        before = self._full_loss(shard)
        self._masks.start(noise.keys_of(self._config.seed, [task]))
        with noise.keyed(self._config.seed, task, self._device) if self._noise.is_global else nullcontext():
            losses = self._fit(task, shard, progress)
        losses = (before, self._full_loss(shard)) if self._config.record.losses == "full" else losses
        self._weights.read(out_P)
        norm = self._finisher.finish(out_P, base_P)
        require_finite(task, norm, "norm of the update", task.n_steps)
        if self._config.record.losses == "none":
            losses = (math.nan, math.nan)
        else:
            require_finite(task, losses[0], "loss", 0)
            require_finite(task, losses[1], "loss", task.n_steps)
        n, n_steps, train_s = shard.n_samples, task.n_steps, self._clock() - start_s
        return TaskReport(task.task, self._worker, n, n_steps, *losses, norm, train_s)

    def _fit(self, task: Task, shard: Samples, progress: Callable[[], None]) -> tuple[float, float]:
        """Takes the task's steps; the losses of its first and last batch, each before its step."""
        self._module.train()
        watch = self._device.type == "cpu"  # on a GPU, reading each loss would stop the queue of kernels
        first = loss = torch.tensor(math.nan)
        for step, rows_B in enumerate(self._batches(task, shard.n_samples)):
            loss = self._gradient(*shard.batch(rows_B))
            if watch:
                require_finite(task, loss.item(), "loss", step)
            self._optimizer.step()
            first = loss if step == 0 else first
            if self._clock() >= self._progress_due_s:
                progress()
                self._progress_due_s = self._clock() + _PROGRESS_S
        return first.item(), loss.item()

    def _gradient(self, x_B: Tensor, y_B: Tensor) -> Tensor:
        """The task loss of a batch, detached; leaves the gradient of the client's objective, clipped, in `grad`."""
        for parameter in self._parameters:
            parameter.grad = None
        with self._masks if self._noise.dropouts else nullcontext():
            outputs_B = self._module(x_B)
        loss = self._loss.mean(outputs_B, y_B)
        objective = self._objective
        whole = objective.total(loss, outputs_B, y_B) if isinstance(objective, OwnObjective) else loss
        torch.autograd.backward(whole)
        self._objective.add_gradient()
        if self._linear is not None:
            self._linear.add_gradient()
        if self._training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm)
        return loss.detach()

    def _batches(self, task: Task, n_samples: int) -> Iterator[Tensor]:
        """The row numbers of each batch, int64 (B,), on the device; sent there once a pass."""
        for order_N, start, stop in passes(self._training, self._config.seed, task, n_samples):
            rows_N = torch.from_numpy(order_N).to(self._device)
            yield from torch.split(rows_N, self._training.batch_size)[start:stop]

    def _full_loss(self, shard: Samples) -> float:
        if self._config.record.losses != "full":
            return math.nan
        return mean_loss(self._module, self._loss, shard, self._config.evaluation.batch_size)
