"""A schedule as far ahead of the model as anybody wants: rows of tasks in the order in which they will be consumed.

What a plain schedule (`reason_against`) does next depends on no update. So its compiled form (`fedsim.schedule.bulk`)
can go on while nothing is trained yet; it takes over from a `Schedule`, and hands back to one after any row before the
one that it has come to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.columns import Remembered, looked_up
from fedsim.config import ScheduleConfig, StopConfig
from fedsim.schedule import compiled
from fedsim.schedule.alone import Federation, TaskColumns
from fedsim.schedule.bulk import ScheduleAlone
from fedsim.schedule.compiled import Flight, Idle
from fedsim.schedule.schedule import Plain
from fedsim.types import Float64, Int64, Task

_ENDLESS = StopConfig.model_construct(versions=None, updates=None, virtual_s=None, wall_s=None, target=None)


class Planned(NamedTuple):
    """The next rows in the order of their arrivals: columns of tasks with their learning rates (R,), and whether each
    arrival makes a version (R,).

    `n_based` says how many of the tasks that were dispatched meanwhile start from which version.
    """

    tasks: TaskColumns
    rates: Float64
    makes_version: NDArray[np.bool_]
    n_based: dict[int, int]


class _Kept(NamedTuple):
    """A state to go back to."""

    n_consumed: int
    idle: Idle
    flight: Flight


class Ahead(ScheduleAlone):
    """A plain schedule without losses and deadlines, so that every event is an arrival that is consumed."""

    def __init__(
        self,
        schedule: ScheduleConfig,
        federation: Federation,
        seed: int,
        learning_rate: Callable[[int], float],
        *,
        n_rows: int,
    ) -> None:
        super().__init__(schedule, _ENDLESS, federation, seed, n_rows=n_rows)
        self._rates = Remembered(learning_rate)
        self._kept: deque[_Kept] = deque()

    def take_over(self, plain: Plain) -> None:
        """Goes on from where a schedule is, right after it made a version and dispatched; forgets what was before."""
        flight, idle = self._flight, self._idle
        n_slots = flight.task.size
        if flight.n[compiled.N_FLIGHT]:
            taken = flight.heap[: flight.n[compiled.N_FLIGHT]].copy()
            for slot in taken.tolist():
                compiled.set_idle(idle, int(flight.position[slot]), 1)
        # A sorted list is a heap.
        in_order = sorted(zip(plain.tasks, plain.positions, strict=True), key=lambda pair: (pair[0].arrival_s, pair[0]))
        for slot, (task, position) in enumerate(in_order):
            flight.task[slot], flight.position[slot], flight.base_version[slot] = task.task, position, task.base_version
            flight.dispatch_s[slot], flight.compute_s[slot] = task.dispatch_s, task.compute_s
            flight.arrival_s[slot], flight.lost[slot] = task.arrival_s, False
            compiled.set_idle(idle, position, -1)
        n = len(in_order)
        flight.heap[:n] = np.arange(n)
        flight.free[: n_slots - n] = np.arange(n, n_slots)
        flight.n[:] = 0
        flight.n[compiled.N_FLIGHT], flight.n[compiled.N_FREE] = n, n_slots - n
        flight.n[compiled.N_IDLE] = self._federation.n_members - n
        flight.n[compiled.VERSION], flight.n[compiled.NEXT_TASK] = plain.version, plain.next_task
        flight.n[compiled.N_CONSUMED] = plain.n_consumed
        flight.t[:] = plain.now_s, math.inf
        self._draws = compiled.Draws(0, np.empty(0), np.empty(0), np.empty(0, np.bool_))
        self._rates.forget()
        self._kept.clear()

    def plan(self) -> Planned:
        """The next rows, about `n_rows` of them."""
        self._kept.append(_Kept(self.n_consumed, _copied(self._idle), _copied(self._flight)))
        before = int(self._flight.n[compiled.NEXT_TASK])
        columns = self.block().tasks
        rates = looked_up(columns.base_version, self._rates)
        applied = columns.applied_version
        makes = np.append(applied[1:], self.version + 1) > applied
        flight = self._flight
        out = flight.heap[: flight.n[compiled.N_FLIGHT]]
        numbers = np.concatenate([columns.task, flight.task[out]])
        bases = np.concatenate([columns.base_version, flight.base_version[out]])
        versions, counts = np.unique(bases[numbers >= before], return_counts=True)
        return Planned(columns, rates, makes, dict(zip(versions.tolist(), counts.tolist(), strict=True)))

    def forget(self, n_consumed: int) -> None:
        """Nobody will ask for states before so many updates were consumed."""
        while len(self._kept) > 1 and self._kept[1].n_consumed <= n_consumed:
            self._kept.popleft()

    def at(self, n_consumed: int) -> Plain:
        """The schedule once so many updates were consumed, before anybody is dispatched after that."""
        kept = next(one for one in reversed(self._kept) if one.n_consumed < n_consumed)
        own = self._idle, self._flight, self._rules, self._draws
        self._idle, self._flight = _copied(kept.idle), _copied(kept.flight)
        self._rules = self._rules._replace(stop_updates=n_consumed)
        self._draws = compiled.Draws(0, np.empty(0), np.empty(0), np.empty(0, np.bool_))
        try:
            self.is_over = False
            self.block()
            return self._plain()
        finally:
            self._idle, self._flight, self._rules, self._draws = own
            self.is_over = False

    def _plain(self) -> Plain:
        flight, people = self._flight, self._people
        slots = flight.heap[: flight.n[compiled.N_FLIGHT]]
        slots = slots[np.argsort(flight.task[slots])]
        position = flight.position[slots]
        client = people.client[position] if people.client.size else position
        base = flight.base_version[slots]
        columns: list[Int64 | Float64] = [flight.task[slots], client, base, _at(people.n_samples, position)]
        columns += [_at(people.n_steps, position), np.zeros_like(base), self._rates(base), flight.dispatch_s[slots]]
        columns += [_at(people.download_s, position), flight.compute_s[slots], _at(people.upload_s, position)]
        columns += [flight.arrival_s[slots]] * 2
        lists: list[list[Any]] = [column.tolist() for column in columns]
        tasks = [Task._make((*row, False, True)) for row in zip(*lists, strict=True)]
        n = flight.n
        return Plain(
            now_s=self.now_s,
            version=self.version,
            n_consumed=self.n_consumed,
            next_task=int(n[compiled.NEXT_TASK]),
            tasks=tasks,
            positions=position.tolist(),
        )


def _at(column: Int64 | Float64, position: Int64) -> Int64 | Float64:
    return np.full(position.size, column[0]) if column.size == 1 else column[position]


def _copied(arrays: Any) -> Any:
    return arrays._make([array.copy() for array in arrays])
