"""Training of a group of tasks at once, each in a slot of stacked memory: what the stacked paths have in common.

Tasks of a group may differ in everything: client, base version, samples, steps, learning rate. Those with most steps
have the first slots, so that the slots still at work are always the first ones, and a step that a task does not have
is not computed for it. Shapes: `G` slots, `g` slots at work, `P` parameters, `K` steps of a block, `B` batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim import addresses
from fedsim.config import RunConfig
from fedsim.tables import REPORT, TASK_FIELDS, Records, ReportTable, TaskTable
from fedsim.training import Payload, objectives
from fedsim.training.choice import Choice
from fedsim.training.evaluate import mean_loss
from fedsim.training.finite import require_finite
from fedsim.training.flat import Flat
from fedsim.training.groupbatches import Feed, GroupBatches
from fedsim.training.noise import Keys
from fedsim.training.objectives import TaskLoss
from fedsim.training.reporting import AFTER, BEFORE, note, reported
from fedsim.training.shards import Samples, ShardCache, Together, vocabulary_of
from fedsim.training.weights import Weights, update_norms
from fedsim.types import Float32, Float64, Int64, Rows, Task

if TYPE_CHECKING:
    from fedsim.population.population import Population

_PROGRESS_S = 1e-3
_LARGE_BYTES = 2**17  # of an update: below it calls take longer than memory


class Machine(Protocol):
    """Stacked weights, and the step over them; slots are the first `n_slots` always."""

    batches: GroupBatches
    carries_rate: bool

    def start(self, base: Flat, rates_G: Float64, keys: Keys, linear_GP: Tensor | None = None) -> None:
        """Takes new clients: their base vectors, which stay as they are until all are through, and learning rates.

        `keys` are those of their masks. `linear_GP` is what is added to each of their gradients, if the machine was
        built with `has_linear`.
        """

    def begin_block(self, n_slots: int, n_block: int) -> None:
        """Called once the next `n_block` steps are in `batches`, before the first of them."""

    def step(self, k: int, n_slots: int, n_most: int = 1) -> int:
        """Takes step `k` of the block that is in `batches`, and of the next ones as many as take no time worth
        mentioning, `n_most` in all: how many it took."""

    def end_block(self, n_slots: int) -> None:
        """Called after the last step of a block if there is another for the first slots, before `batches` changes."""

    def finish(self) -> None:
        """Called when all clients are through, or left: nothing of theirs is looked at any more."""

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """The loss of each sample of the block, float64 (n_slots, n_steps, B), before each step."""

    def read(self, first: int, out: Flat) -> None:
        """Writes the weights of slots `first` and on to `out`."""

    def subtract(self, base: Flat, first: int, out: Flat) -> Float64 | None:
        """Writes weights less base of slots `first` and on to `out`; the norms of that, if it has taken them."""


class GroupTrainer:
    """Trains groups of any size up to `group_size` in one go, and larger ones in several.

    It computes on one thread, whatever torch is set to: how a product is cut for several threads depends on the number
    of tasks, and with it a client's bits would.
    """

    takes_rows = True

    def __init__(
        self,
        choice: Choice,
        make_machine: Callable[[TaskLoss, int], Machine],
        config: RunConfig,
        population: Population,
        module: torch.nn.Module,
        *,
        payload: Payload,
        device: torch.device,
        worker: int,
        clock: Callable[[], float],
        shards: ShardCache | None = None,
    ) -> None:
        self.path, self.group_size, _ = choice
        self._config = config
        self._population = population
        self._payload: Payload = payload
        self._worker = worker
        self._clock = clock
        self._progress_due_s = -math.inf
        self._loss = objectives.loss_of(config, population)
        self._shards = shards or ShardCache(
            config.memory.worker_data_bytes, device, self._loss, vocabulary_of(module), self.group_size
        )
        self._machine = make_machine(self._loss, self.group_size)
        self._feed = Feed(self._machine.batches, config.training, config.seed)
        self._has_losses = config.record.losses != "none"
        self._full = Weights(module, device) if config.record.losses == "full" else None

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out: Rows,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> ReportTable:
        """See `fedsim.training.Trainer.train`."""
        table, parts = TaskTable.of(tasks), list[Records]()
        n_threads = torch.get_num_threads()
        if n_threads > 1:
            torch.set_num_threads(1)
        try:
            for start in range(0, len(table), self.group_size):
                part = slice(start, start + self.group_size)
                linear = None if linear_GP is None else linear_GP[part]
                slots = _Slots(table[part], base_of, out[part], linear)
                parts.append(slots.as_given(self._train_group(slots, progress)))
        finally:
            if n_threads > 1:
                torch.set_num_threads(n_threads)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, REPORT)])
        return ReportTable(rows, self._worker)

    def _train_group(self, slots: _Slots, progress: Callable[[], None]) -> Records:
        """The reports of a group, in the order of its slots."""
        start_s = self._clock()
        data = self._data_of(slots)
        before = [self._full_loss(slots.vector(i), shard) for i, shard in enumerate(data.shards)] if self._full else []
        try:
            noted_4G = self._fit(slots, data, progress)
        finally:
            self._machine.finish()
            self._feed.finish()
        if before:
            after = [self._full_loss(slots.trained(i, self._payload), shard) for i, shard in enumerate(data.shards)]
            noted_4G[BEFORE], noted_4G[AFTER] = before, after
        train_s, has_losses = (self._clock() - start_s) / len(slots), self._has_losses
        reports, is_finite = reported(slots.table_FG, noted_4G, slots.norms_G, train_s, has_losses=has_losses)
        if not is_finite:
            self._refuse(slots, noted_4G)
        return reports

    def _data_of(self, slots: _Slots) -> Together:
        clients = slots.column("client").tolist()
        data = self._shards.together("train", clients)
        if data is None:
            found = self._shards.find_all([("train", client) for client in clients])
            data = Together.of([shard or self._made(client) for shard, client in zip(found, clients, strict=True)])
        n_samples = slots.column("n_samples").tolist()
        assert data.n_samples_G.tolist() == n_samples, f"clients {clients}: {data.n_samples_G}, not {n_samples}"
        return data

    def _made(self, client: int) -> Samples:
        people = self._population
        return self._shards.get(("train", client), lambda: people.shard(client), lambda: people.laid(client))

    def _fit(self, slots: _Slots, data: Together, progress: Callable[[], None]) -> Float64:
        """What is noted of the losses (see `fedsim.training.reporting.note`) while all steps are taken."""
        machine, feed = self._machine, self._feed
        keys = Keys(self._config.seed, slots.column("client"), slots.column("task"), slots.n_steps)
        machine.start(slots.base, slots.rates_G, keys, slots.linear_GP)
        n_slots, step = len(slots), 0
        rates_G = slots.rates_G if machine.carries_rate else np.ones(n_slots)
        feed.start(slots.table_FG, data, rates_G)
        noted_4G = np.empty((4, n_slots))
        noted_4G.fill(math.nan)  # in a quarter of the time that `full` takes
        while n_slots:
            n_block = min(machine.batches.n_steps, slots.n_steps[0] - step)
            n_begun = n_slots
            feed.fill(step, n_block, n_begun)
            machine.begin_block(n_begun, n_block)
            n_slots = self._steps(slots, step, n_block, n_begun, progress)
            if n_slots:
                machine.end_block(n_slots)
            each_gKB = machine.sample_losses(n_begun, n_block)
            note(each_gKB, machine.batches.n_valid_GK, slots.table_FG, step, noted_4G)
            step += n_block
        return noted_4G

    def _steps(self, slots: _Slots, step: int, n_block: int, n_slots: int, progress: Callable[[], None]) -> int:
        """Takes the steps of a block and writes out the tasks that are through; how many slots are still at work."""
        machine, n_steps, stop = self._machine, slots.n_steps, step + n_block
        first = step
        while step < stop:
            step += machine.step(step - first, n_slots, min(n_steps[n_slots - 1], stop) - step)
            n_begun = n_slots
            while n_slots and n_steps[n_slots - 1] == step:
                n_slots -= 1
            if n_slots < n_begun:
                slots.write(machine, n_slots, n_begun, self._payload)
            if self._clock() >= self._progress_due_s:
                progress()
                self._progress_due_s = self._clock() + _PROGRESS_S
        return n_slots

    def _full_loss(self, vector_P: Float32, shard: Samples) -> float:
        assert self._full is not None
        self._full.load(vector_P)
        return mean_loss(self._full.module, self._loss, shard, self._config.evaluation.batch_size)

    def _refuse(self, slots: _Slots, noted_4G: Float64) -> None:
        """Raises ClientError for the first of the tasks, as they were given, that is not finite somewhere."""
        for i in np.argsort(np.arange(len(slots.norms_G))[slots.order]).tolist():
            task, (before, after, bad_step, bad_loss) = slots.tasks[i], noted_4G[:, i].tolist()
            if not math.isnan(bad_step):
                require_finite(task, bad_loss, "loss", int(bad_step))
            require_finite(task, slots.norms_G[i], "norm of the update", task.n_steps)
            if self._has_losses:
                require_finite(task, before, "loss", 0)
                require_finite(task, after, "loss", task.n_steps)


class _Slots:
    """Which task has which slot: most steps come first. `order` picks those of the slots from the tasks as given.

    `table_FG` holds the tasks' fields, a row each.
    """

    def __init__(
        self,
        tasks: TaskTable,
        base_of: Callable[[int], Float32],
        out: Rows,
        linear_GP: Float32 | None = None,
    ) -> None:
        rows = np.ascontiguousarray(tasks.rows)
        self.table_FG = np.ascontiguousarray(rows.view(np.int64).reshape(-1, len(TASK_FIELDS)).T)
        self._out = wanted(out)
        self.order: Int64 | slice = slice(None)
        self.n_steps: list[int] = self.column("n_steps").tolist()
        if self.n_steps != sorted(self.n_steps, reverse=True):
            self.order = order_G = np.argsort(-self.column("n_steps"), kind="stable")
            rows, self._out = rows[order_G], self._out.ordered(order_G)
            self.table_FG = self.table_FG.take(order_G, axis=1)
            self.n_steps = self.column("n_steps").tolist()
        assert self.n_steps[-1] > 0
        self.tasks = TaskTable(rows)
        self.rates_G: Float64 = self.column("learning_rate").view(np.float64)
        versions = self.column("base_version").tolist()
        self.base = named({version: base_of(version) for version in set(versions)}, versions)
        self.norms_G = np.empty(len(versions))  # of what training changed, once it is written
        self.linear_GP = None if linear_GP is None else torch.from_numpy(linear_GP[self.order])

    def __len__(self) -> int:
        return len(self.tasks)

    def as_given(self, records_G: Records) -> Records:
        """Records of the slots in the order in which the tasks were given."""
        if isinstance(self.order, slice):
            return records_G
        given_G = np.empty_like(records_G)
        given_G[self.order] = records_G
        return given_G

    def column(self, name: str) -> Int64:
        """A field of the tasks, (G,), in eight bytes each."""
        column_G: Int64 = self.table_FG[TASK_FIELDS[name]]
        return column_G

    def vector(self, slot: int) -> Float32:
        """The base of a slot's task, (P,)."""
        vector_P: Float32 = self.base.vectors[slot]
        return vector_P

    def write(self, machine: Machine, first: int, stop: int, payload: Payload) -> None:
        """Writes what the tasks of some slots came to, and takes the norms of what changed: of large updates while they
        are still in the core's cache, but for those that come from a device together."""
        is_large = machine.batches.is_on_host and self.base.vectors[0].nbytes >= _LARGE_BYTES
        n = 1 if is_large else stop - first
        for start in range(first, stop, n):
            base, out = self.base.part(start, start + n), self._out.part(start, start + n)
            norms_n = None
            if payload == "delta":
                norms_n = machine.subtract(base, start, out)
            else:
                machine.read(start, out)
            if norms_n is None:
                norms_n = update_norms(out, None if payload == "delta" else base)
            self.norms_G[start : start + n] = norms_n

    def trained(self, slot: int, payload: Payload) -> Float32:
        """The trained weights of a slot's task, (P,)."""
        row_P: Float32 = self._out.vectors[slot]
        vector_P: Float32 = row_P if payload == "model" else (self.vector(slot) + row_P).astype(np.float32)
        return vector_P


def named(vectors: Mapping[int, Float32], names: Sequence[int]) -> Flat:
    """The vectors of these names, of which all are there and some may be the same."""
    places = {name: addresses.start(vector) for name, vector in vectors.items()}
    return Flat([vectors[name] for name in names], np.array([places[name] for name in names], np.int64))


def wanted(rows: Rows) -> Flat:
    """Rows (G, P), or vectors wherever they are, that something is to be written to."""
    if isinstance(rows, np.ndarray):
        return Flat(rows, addresses.starts(rows))
    return Flat(rows, np.array([addresses.start(vector) for vector in rows], np.int64))
