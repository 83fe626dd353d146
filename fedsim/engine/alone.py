"""A run without training: the schedule's history, and its record, on one process (`training: none`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedsim.aggregation.rule import planned_weights
from fedsim.engine.plan import Plan
from fedsim.engine.roles import Pulse, Watcher
from fedsim.schedule import compiled
from fedsim.schedule.alone import Alone, Block, Federation, PlainAlone, reason_against
from fedsim.schedule.bulk import ScheduleAlone
from fedsim.types import Float64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedsim.record.writer import RecordWriter

_KEPT_WEIGHTS = 2**16


def history(made: Plan) -> Alone:
    """The schedule of a plan, from its beginning: compiled where its policy and devices allow it."""
    config, work = made.config, made.work()
    assert made.devices is not None, "the wall clock has no schedule of its own"
    if reason_against(config.schedule, made.devices):
        return PlainAlone(made.schedule(), config.stop)
    federation = Federation(
        made.population.n_clients, made.members, work.n_samples, work.n_steps, work.n_processed, made.devices
    )
    return ScheduleAlone(config.schedule, config.stop, federation, config.seed)


class AloneRun:
    """Runs a schedule to its end and records it; `run` returns the status, `done` or `stopped`."""

    def __init__(
        self,
        made: Plan,
        record: RecordWriter,
        clock: Callable[[], float],
        stop_requested: Callable[[], bool],
        watchers: Sequence[Watcher],
    ) -> None:
        self._made = made
        self._record = record
        self._clock = clock
        self._stop_requested = stop_requested
        self._watchers = watchers
        self._pending_weight = 0.0
        self._weight_of = lru_cache(maxsize=_KEPT_WEIGHTS)(made.rule.planned_weight)
        self.pulse = Pulse()

    def run(self) -> str:
        """Raises StalledError where nothing can happen any more."""
        going = history(self._made)
        stop_s = self._made.config.stop.wall_s
        while not going.is_over:
            self._write(going.block())
            pulse = self.pulse
            pulse.version, pulse.n_updates, pulse.virtual_s = going.version, going.n_consumed, going.now_s
            pulse.wall_s = self._clock()
            self._record.tick(pulse.wall_s)
            for watcher in self._watchers:
                watcher(pulse)
            if not going.is_over and (self._stop_requested() or (stop_s is not None and pulse.wall_s >= stop_s)):
                return "stopped"
        return "done"

    def _write(self, block: Block) -> None:
        tasks, versions = block.tasks, block.versions
        n = tasks.task.size
        none, minus = np.full(n, np.nan), np.full(n, -1)
        weights = planned_weights(self._weight_of, tasks.n_samples, tasks.staleness)
        n_extra = len(self._made.rule.scalar_names)
        # fmt: off
        self._record.extend_columns("tasks", (
            tasks.task, tasks.client, minus, tasks.outcome, tasks.base_version, tasks.applied_version, tasks.staleness,
            tasks.dispatch_s, tasks.download_s, tasks.compute_s, tasks.upload_s, tasks.arrival_s,
            none, none, none, tasks.n_samples, tasks.n_steps, none, none, weights, none, *[none] * n_extra,
        ))
        # fmt: on
        sums = self._weight_sums(block, weights)
        wall_s = np.full(versions.version.size, self._clock())
        self._record.extend_columns(
            "versions",
            (
                versions.version,
                versions.virtual_s,
                wall_s,
                versions.n_updates,
                sums,
                versions.staleness_mean,
                versions.staleness_max,
            ),
        )

    def _weight_sums(self, block: Block, weights: Float64) -> Float64:
        """The sum of weights of each version, in the order of updates; what belongs to the next one is kept."""
        n, applied = block.versions.version.size, block.tasks.applied_version
        first = self.pulse.version + 1
        sums = np.zeros(n + 1)
        sums[0] = self._pending_weight
        compiled.weight_sums(weights, applied, first, sums)
        self._pending_weight = float(sums[n])
        return sums[:n]
