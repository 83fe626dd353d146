"""The schedule without training: whole histories of tasks, versions and staleness, in blocks of columns.

    while not history.is_over:
        block = history.block()          # what ended since the last block, in event order

`PlainAlone` asks a `Schedule`, event by event; `fedsim.schedule.bulk` makes the same decisions in compiled code, for
the policies sync, async, buffered and k-async, uniform selection, and clients that are always there. `reason_against`
says why a configuration is none of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.config import (
    AsyncSchedule,
    BufferedSchedule,
    KAsyncSchedule,
    ScheduleConfig,
    StopConfig,
    SyncSchedule,
)
from fedsim.errors import StalledError
from fedsim.schedule.policies import Step
from fedsim.schedule.schedule import Schedule
from fedsim.seeding import Uniforms
from fedsim.types import Float64, Int64, Outcome


class Devices(Protocol):
    """What is asked of the devices: draws by task, and what is drawn once a client."""

    always_available: bool

    @property
    def draws_by_task(self) -> bool: ...

    def task_draws(self, first: int, n: int, uniforms: Uniforms) -> tuple[Float64, NDArray[np.bool_]]: ...

    def profiles(self, clients: Int64) -> tuple[Float64, Float64, Float64]: ...

    def units(self, n_steps: Int64, n_processed: Int64) -> Int64: ...


@dataclass(frozen=True)
class Federation:
    """Who takes part: `n_clients`, or the `members` of them, and what is asked of each; `devices` as above."""

    n_clients: int
    members: Int64 | None
    n_samples: Callable[[Int64], Int64]
    n_steps: Callable[[int], int]
    n_processed: Callable[[int], int]
    devices: Devices

    @property
    def n_members(self) -> int:
        """Clients that can be selected."""
        return self.n_clients if self.members is None else int(self.members.size)


@dataclass(frozen=True)
class TaskColumns:
    """Rows of tasks that ended, in event order, each of shape (R,); their meaning is that of the record's columns."""

    task: Int64
    client: Int64
    outcome: Int64
    base_version: Int64
    applied_version: Int64
    staleness: Int64
    dispatch_s: Float64
    download_s: Float64
    compute_s: Float64
    upload_s: Float64
    arrival_s: Float64
    n_samples: Int64
    n_steps: Int64


@dataclass(frozen=True)
class VersionColumns:
    """Rows of versions, each of shape (V,)."""

    version: Int64
    virtual_s: Float64
    n_updates: Int64
    staleness_mean: Float64
    staleness_max: Int64


@dataclass(frozen=True)
class Block:
    """What ended and what was made since the last block."""

    tasks: TaskColumns
    versions: VersionColumns


def reason_against(schedule: ScheduleConfig, devices: Devices) -> str:
    """Why the compiled loop cannot make this schedule; empty if it can."""
    if not isinstance(schedule, SyncSchedule | AsyncSchedule | BufferedSchedule | KAsyncSchedule):
        return f"policy {schedule.policy}"
    if isinstance(schedule, BufferedSchedule) and schedule.max_lag is not None:
        return "max_lag"
    if schedule.selection != "uniform":
        kind = schedule.selection if isinstance(schedule.selection, str) else schedule.selection.kind
        return f"selection {kind}"
    if not devices.always_available:
        return "clients are not always available"
    if not devices.draws_by_task:
        return "compute times come from a trace by client"
    return ""


class Alone(Protocol):
    """A history that is made block by block."""

    is_over: bool

    @property
    def n_consumed(self) -> int: ...

    @property
    def now_s(self) -> float: ...

    @property
    def version(self) -> int: ...

    def block(self) -> Block: ...


class PlainAlone:
    """The same for every other schedule, one event at a time: `schedule` has not begun."""

    def __init__(self, schedule: Schedule, stop: StopConfig, *, n_rows: int = 2**12) -> None:
        self._schedule = schedule
        self._stop = stop
        self._n_rows = n_rows
        self._merged: list[int] = []
        self._tasks: list[tuple[float, ...]] = []
        self._versions: list[tuple[float, ...]] = []
        self._stopped_s: float | None = None
        self._has_begun = False
        self.n_consumed = 0
        self.is_over = False

    @property
    def now_s(self) -> float:
        """Virtual time reached."""
        return self._schedule.now_s if self._stopped_s is None else self._stopped_s

    @property
    def version(self) -> int:
        """The last version made."""
        return self._schedule.version

    def block(self) -> Block:
        """As `ScheduleAlone.block`."""
        self._tasks, self._versions = [], []
        if not self._has_begun:
            self._has_begun = True
            self._schedule.dispatch(0.0)
        while not self.is_over and len(self._tasks) < self._n_rows:
            self._advance()
        tasks = np.array(self._tasks, np.float64).reshape(-1, 12).T
        whole = tasks[:7].astype(np.int64)
        versions = np.array(self._versions, np.float64).reshape(-1, 5).T
        return Block(
            TaskColumns(
                task=whole[0],
                client=whole[1],
                outcome=whole[5],
                base_version=whole[2],
                applied_version=whole[6],
                staleness=np.where(whole[6] >= 0, whole[6] - 1 - whole[2], -1),
                dispatch_s=tasks[7],
                download_s=tasks[8],
                compute_s=tasks[9],
                upload_s=tasks[10],
                arrival_s=tasks[11],
                n_samples=whole[3],
                n_steps=whole[4],
            ),
            VersionColumns(
                version=versions[0].astype(np.int64),
                virtual_s=versions[1],
                n_updates=versions[2].astype(np.int64),
                staleness_mean=versions[3],
                staleness_max=versions[4].astype(np.int64),
            ),
        )

    def _advance(self) -> None:
        """One event, as the server handles it."""
        schedule, stop = self._schedule, self._stop
        event = schedule.peek()
        if event is None:
            raise StalledError(
                f"stalled at {schedule.now_s:.6g} s, version {schedule.version}: nothing is in flight and "
                "no client ever becomes available again"
            )
        if stop.virtual_s is not None and event.time_s > stop.virtual_s:
            self._stopped_s, self.is_over = stop.virtual_s, True
            return
        step = schedule.step(event)
        self._note(step)
        if not self.is_over and schedule.instant_over():
            schedule.dispatch(schedule.now_s)

    def _note(self, step: Step) -> None:
        """Writes down what a step led to; a tier's round that the stop cuts short makes no version."""
        schedule, stop = self._schedule, self._stop
        room = None if stop.updates is None else stop.updates - self.n_consumed
        met = schedule.version - step.merge
        for task in step.consumed[:room]:
            self.n_consumed += 1
            self._merged.append(met - task.base_version)
            self._tasks.append((*task[:5], Outcome.APPLIED, met + 1, *task[7:12]))
        for task, outcome in step.ended:
            self._tasks.append((*task[:5], outcome, -1, *task[7:12]))
        if room is not None and len(step.consumed) > room:
            schedule.version -= step.merge
        elif step.merge:
            merged, self._merged = self._merged, []
            mean = sum(merged) / len(merged) if merged else math.nan
            self._versions.append((schedule.version, schedule.now_s, len(merged), mean, max(merged, default=-1)))
            self.is_over = stop.versions is not None and schedule.version >= stop.versions
        self.is_over = self.is_over or (room is not None and len(step.consumed) >= room)
