"""The schedule without training, compiled: arrays that `fedsim.schedule.compiled` works on, block by block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.config import AsyncSchedule, BufferedSchedule, KAsyncSchedule, ScheduleConfig, StopConfig, SyncSchedule
from fedsim.errors import StalledError
from fedsim.schedule import compiled
from fedsim.schedule.alone import Block, Federation, TaskColumns, VersionColumns
from fedsim.schedule.compiled import Draws, Flight, Idle, People, Rows, Rules
from fedsim.schedule.draws import uniforms
from fedsim.seeding import Purpose
from fedsim.types import Float64, Int64

_ROWS = 2**15  # of a block at least: its columns stay in a core's cache while they are filled and written
_DRAWS = 2**14
_CHUNK = 2**18  # clients looked at together


class ScheduleAlone:
    """A schedule that has not begun; `block` goes on with it."""

    def __init__(
        self, schedule: ScheduleConfig, stop: StopConfig, federation: Federation, seed: int, *, n_rows: int = _ROWS
    ) -> None:
        self._seed = seed
        self._federation = federation
        self._rules = _rules(schedule, stop, federation.n_members)
        self._people = _people(federation)
        self._idle = _all_idle(federation.n_members)
        self._flight = _empty_flight(self._rules.n_slots, federation.n_members)
        self._rows = _room(max(n_rows, 2 * self._rules.n_slots))
        self._draws = Draws(0, np.empty(0), np.empty(0), np.empty(0, np.bool_))
        self.is_over = False

    @property
    def now_s(self) -> float:
        """Virtual time reached."""
        return float(self._flight.t[compiled.NOW_S])

    @property
    def version(self) -> int:
        """The last version made."""
        return int(self._flight.n[compiled.VERSION])

    @property
    def n_consumed(self) -> int:
        """Updates that arrived in time."""
        return int(self._flight.n[compiled.N_CONSUMED])

    def block(self) -> Block:
        """Goes on for a block of events and returns what came of them; sets `is_over` at the end.

        Raises:
            StalledError: nothing can happen any more, or nothing ever arrives.
        """
        self._rows.n[:] = 0
        first_version = self.version + 1
        while True:
            why = compiled.advance(self._rules, self._people, self._idle, self._draws, self._flight, self._rows)
            if why != compiled.NEED_DRAWS:
                break
            self._draw()
        if why == compiled.STALLED:
            raise StalledError(f"stalled at {self.now_s:.6g} s, version {self.version}: nothing is in flight")
        if why == compiled.FRUITLESS:
            raise StalledError(
                f"stalled at {self.now_s:.6g} virtual seconds: the last {self._flight.n[compiled.N_FRUITLESS]} tasks "
                "were all lost or aborted; a longer deadline, faster devices or fewer losses would let updates arrive"
            )
        self.is_over = why == compiled.FINISHED
        return Block(self._task_columns(), self._version_columns(first_version))

    def _draw(self) -> None:
        """Draws for the next tasks, a whole round's at least."""
        first = int(self._flight.n[compiled.NEXT_TASK])
        n = max(_DRAWS, self._rules.n_slots)
        choice = uniforms(self._seed, Purpose.SELECTION, 0, np.arange(first, first + n), 1)[:, 0]
        unit_s, lost = self._federation.devices.task_draws(first, n, uniforms)
        self._draws = Draws(first, np.ascontiguousarray(choice), unit_s, lost)

    def _task_columns(self) -> TaskColumns:
        rows, people, n = self._rows, self._people, int(self._rows.n[0])
        position = rows.position[:n]
        applied = rows.applied_version[:n].copy()
        base = rows.base_version[:n].copy()
        return TaskColumns(
            task=rows.task[:n].copy(),
            client=people.client[position] if people.client.size else position.copy(),
            outcome=rows.outcome[:n].copy(),
            base_version=base,
            applied_version=applied,
            staleness=np.where(applied >= 0, applied - 1 - base, -1),
            dispatch_s=rows.dispatch_s[:n].copy(),
            download_s=_at(people.download_s, position),
            compute_s=rows.compute_s[:n].copy(),
            upload_s=_at(people.upload_s, position),
            arrival_s=rows.arrival_s[:n].copy(),
            n_samples=_at(people.n_samples, position),
            n_steps=_at(people.n_steps, position),
        )

    def _version_columns(self, first: int) -> VersionColumns:
        rows, n = self._rows, int(self._rows.n[1])
        n_updates = rows.version_updates[:n].copy()
        return VersionColumns(
            version=np.arange(first, first + n),
            virtual_s=rows.version_s[:n].copy(),
            n_updates=n_updates,
            staleness_mean=rows.version_staleness_sum[:n] / n_updates,
            staleness_max=rows.version_staleness_max[:n].copy(),
        )


def _rules(schedule: ScheduleConfig, stop: StopConfig, n_members: int) -> Rules:
    n_slots = min(schedule.concurrency, n_members)
    policy, n_merge, deadline_s = compiled.BUFFERED, 1, math.inf
    match schedule:
        case SyncSchedule():
            policy, n_merge = compiled.SYNC, schedule.cohort
            deadline_s = math.inf if schedule.deadline_s is None else schedule.deadline_s
        case BufferedSchedule():
            n_merge = schedule.buffer
        case KAsyncSchedule():
            policy, n_merge = compiled.K_ASYNC, schedule.k
        case _:
            assert isinstance(schedule, AsyncSchedule)
    return Rules(
        policy=policy,
        n_slots=n_slots,
        n_merge=n_merge,
        deadline_s=deadline_s,
        stop_versions=-1 if stop.versions is None else stop.versions,
        stop_updates=-1 if stop.updates is None else stop.updates,
        stop_s=math.inf if stop.virtual_s is None else stop.virtual_s,
        fruitless_limit=10_000 + 100 * min(n_members, 1000),
    )


def _people(federation: Federation) -> People:
    """What is known of each member, some members at a time; a column in which all are equal is kept as one value."""
    n = federation.n_members
    columns: list[list[NDArray[Any]]] = []
    for first in range(0, n, _CHUNK):
        positions = np.arange(first, min(first + _CHUNK, n), dtype=np.int64)
        clients = positions if federation.members is None else federation.members[positions]
        columns.append([_short(column) for column in _of_clients(federation, clients)])
    whole = [_joined([part[i] for part in columns], n) for i in range(len(columns[0]))]
    client = np.empty(0, np.int64) if federation.members is None else federation.members
    n_samples, n_steps, units, slowness, download_s, upload_s = whole
    return People(client, n_samples, n_steps, units, slowness, download_s, upload_s)


def _of_clients(federation: Federation, clients: Int64) -> list[NDArray[Any]]:
    sizes = federation.n_samples(clients)
    kinds, where = np.unique(sizes, return_inverse=True)
    n_steps = np.array([federation.n_steps(size) for size in kinds.tolist()], np.int64)[where]
    processed = np.array([federation.n_processed(size) for size in kinds.tolist()], np.int64)[where]
    units = federation.devices.units(n_steps, processed).astype(np.float64)
    return [sizes.astype(np.int64), n_steps, units, *federation.devices.profiles(clients)]


def _short(column: NDArray[Any]) -> NDArray[Any]:
    return column[:1] if bool((column == column[0]).all()) else column


def _joined(parts: list[NDArray[Any]], n: int) -> NDArray[Any]:
    """The parts as one column of `n` values, or of one if all are equal."""
    if all(part.size == 1 and part[0] == parts[0][0] for part in parts):
        return parts[0].copy()
    sizes = [min(_CHUNK, n - first) for first in range(0, n, _CHUNK)]
    return np.concatenate([np.broadcast_to(part, size) for part, size in zip(parts, sizes, strict=True)])


def _at(column: NDArray[Any], position: Int64) -> NDArray[Any]:
    return np.full(position.size, column[0]) if column.size == 1 else column[position]


def _all_idle(n: int) -> Idle:
    """Positions 0 to n-1, all idle."""
    n_words = -(-n // 64)
    words = np.full(-(-n_words // 4096) * 4096, 0, np.uint64)
    words[: n // 64] = np.uint64(2**64 - 1)
    if n % 64:
        words[n // 64] = np.uint64((1 << n % 64) - 1)
    counts = np.minimum(np.maximum(n - np.arange(words.size // 64) * 4096, 0), 4096)
    return Idle(words, counts, counts.reshape(-1, 64).sum(axis=1))


def _empty_flight(n_slots: int, n_members: int) -> Flight:
    def whole() -> Int64:
        return np.zeros(n_slots, np.int64)

    def real() -> Float64:
        return np.zeros(n_slots)

    n = np.zeros(compiled.N_NUMBERS, np.int64)
    n[compiled.N_FREE], n[compiled.IS_DISPATCH_DUE], n[compiled.N_IDLE] = n_slots, 1, n_members
    return Flight(
        task=whole(),
        position=whole(),
        base_version=whole(),
        dispatch_s=real(),
        compute_s=real(),
        arrival_s=real(),
        lost=np.zeros(n_slots, np.bool_),
        heap=whole(),
        free=np.arange(n_slots, dtype=np.int64),
        n=n,
        t=np.array([0.0, math.inf]),
    )


def _room(n: int) -> Rows:
    def whole() -> Int64:
        return np.zeros(n, np.int64)

    return Rows(
        task=whole(),
        position=whole(),
        outcome=whole(),
        base_version=whole(),
        applied_version=whole(),
        dispatch_s=np.zeros(n),
        compute_s=np.zeros(n),
        arrival_s=np.zeros(n),
        version_s=np.zeros(n),
        version_updates=whole(),
        version_staleness_sum=whole(),
        version_staleness_max=whole(),
        n=np.zeros(2, np.int64),
    )
