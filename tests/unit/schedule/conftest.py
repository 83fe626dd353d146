"""A schedule driven by hand: durations listed by task, clients taken in order, and a log of what happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim.config import ScheduleConfig
from fedsim.schedule.building import build_policy
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import Domain
from fedsim.types import Int64, Task

AGES_S = 1e9

Windows = Mapping[int, Sequence[tuple[float, float]]]


class GivenPlan(NamedTuple):
    """What `Schedule` asks a plan for."""

    download_s: float
    compute_s: float
    upload_s: float
    arrival_s: float
    lost: bool


class GivenDevices:
    """Task t computes for `durations[t]` seconds (beyond the list: `AGES_S`) and is lost if it is listed.

    A client is there in its `windows`, by default always.
    """

    def __init__(self, durations: Sequence[float], lost: Sequence[int] = (), windows: Windows | None = None) -> None:
        self.durations, self.lost, self.windows = durations, set(lost), windows or {}

    def plan(self, client: int, task: int, n_steps: int, n_samples: int, dispatch_s: float) -> GivenPlan:
        assert self.is_available(client, dispatch_s)
        duration = self.durations[task] if task < len(self.durations) else AGES_S
        return GivenPlan(0.0, duration, 0.0, dispatch_s + duration, task in self.lost)

    def plan_many(
        self, clients: Int64, tasks: Int64, n_steps: Int64, n_samples: Int64, dispatch_s: float
    ) -> list[GivenPlan]:
        rows = zip(clients.tolist(), tasks.tolist(), n_steps.tolist(), n_samples.tolist(), strict=True)
        return [self.plan(*row, dispatch_s) for row in rows]

    def is_available(self, client: int, time_s: float) -> bool:
        return any(start <= time_s < end for start, end in self.windows.get(client, [(0.0, math.inf)]))

    def next_available_s(self, client: int, time_s: float) -> float:
        windows = self.windows.get(client, [(0.0, math.inf)])
        return min((max(start, time_s) for start, end in windows if time_s < end), default=math.inf)


class LowestFirst:
    """Stands for the selection: the idle and available client of the lowest position."""

    def __init__(self, devices: GivenDevices) -> None:
        self._devices = devices

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        for position in domain.idle().tolist():
            if self._devices.is_available(domain.client(position), time_s):
                return int(position)
        return None

    def next_available_s(self, domain: Domain, time_s: float) -> float:
        clients = domain.clients(domain.idle()).tolist()
        return min((self._devices.next_available_s(client, time_s) for client in clients), default=math.inf)


def some_work(**changes: Any) -> Work:
    """Ten samples and two steps a task, at rate 0.5."""
    plain: dict[str, Any] = {
        "n_samples": lambda clients: np.full(clients.shape, 10),
        "n_steps": lambda n: 2,
        "n_processed": lambda n: 20,
        "learning_rate": lambda version: 0.5,
        "counts_steps": False,
    }
    return Work(**(plain | changes))


class Drive:
    """Runs a schedule as the engine does; `log` has a line for all that happens: time, what, task and staleness."""

    def __init__(
        self,
        policy: Mapping[str, Any],
        devices: GivenDevices,
        n_clients: int = 100,
        domains: Sequence[Sequence[int]] | None = None,
        work: Work | None = None,
    ) -> None:
        config = TypeAdapter(ScheduleConfig).validate_python(policy)
        members = [Domain(n_clients)] if domains is None else [Domain(n_clients, np.array(part)) for part in domains]
        selection: Any = LowestFirst(devices)
        self.schedule = Schedule(build_policy(config, n_clients), members, selection, work or some_work(), devices)
        self.log: list[str] = []
        self.tasks: list[Task] = []

    def until(self, end_s: float) -> list[str]:
        """The log of everything up to and including `end_s`."""
        if not self.schedule.n_dispatched and not self.log:
            self._dispatch(0.0)
        while (event := self.schedule.peek()) is not None and event.time_s <= end_s:
            step = self.schedule.step(event)
            met = self.schedule.version - step.merge
            for task in step.consumed:
                self._note(event.time_s, f"apply {task.task} stale {met - task.base_version}")
            for task, outcome in step.ended:
                self._note(event.time_s, f"{outcome.name.lower()} {task.task}")
            if step.merge:
                self._note(event.time_s, f"version {self.schedule.version}")
            if self.schedule.instant_over():
                self._dispatch(event.time_s)
        return self.log

    def _dispatch(self, now_s: float) -> None:
        for task in self.schedule.dispatch(now_s):
            self.tasks.append(task)
            self._note(now_s, f"start {task.task} from {task.base_version}")

    def _note(self, time_s: float, what: str) -> None:
        self.log.append(f"{time_s:g} {what}")


@pytest.fixture
def given_devices() -> type[GivenDevices]:
    """Call it as `GivenDevices`."""
    return GivenDevices


@pytest.fixture
def drive() -> type[Drive]:
    """Call it as `Drive`."""
    return Drive


@pytest.fixture
def work() -> Callable[..., Work]:
    """`work(**changes)`: ten samples and two steps a task, at rate 0.5."""
    return some_work
