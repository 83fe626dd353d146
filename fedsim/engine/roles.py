"""Whom the server works with, and what it says of a run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedsim.schedule.policies import Step
from fedsim.schedule.schedule import Plain
from fedsim.snapshot import Snapshot
from fedsim.types import Event, Feedback, Task


class EventSource(Protocol):
    """A schedule, or the recorded one of a replay."""

    now_s: float
    version: int
    ends: bool  # without events left the run is over, not stalled
    learns: bool  # wants to be told of consumed updates

    @property
    def consumes_on_arrival(self) -> bool: ...

    @property
    def n_in_flight(self) -> int: ...

    def peek(self) -> Event | None: ...

    def step(self, event: Event, has_failed: bool = False) -> Step: ...

    def instant_over(self) -> bool: ...

    def dispatch(self, now_s: float) -> list[Task]: ...

    def is_in_flight(self, number: int) -> bool: ...

    def learned(self, feedback: Feedback) -> None: ...


class LiveSchedule(EventSource, Protocol):
    """A schedule whose state can be kept."""

    def unconsumed(self) -> list[Task]: ...

    def snapshot(self) -> Snapshot: ...

    def restore(self, saved: Snapshot) -> None: ...

    def restore_learned(self, saved: Snapshot) -> None: ...

    def plain(self) -> Plain: ...

    def put_plain(self, plain: Plain) -> None: ...


class Keeper(Protocol):
    """Who keeps checkpoints of a live schedule's run: says when, and takes a state with the versions it needs."""

    def is_due(self, pulse: Pulse) -> bool: ...

    def keep(self, saved: Snapshot, versions: Sequence[int]) -> None: ...


class Interrupted(Exception):
    """The wall-clock limit, or a signal (`in_haste`): the run ends as `stopped`."""

    def __init__(self, in_haste: bool) -> None:
        super().__init__()
        self.in_haste = in_haste


class TooLate(Exception):
    """The state could not be had in the time in which a signal has to be answered."""


@dataclass
class Pulse:
    """What is known of a run while it goes on; handed to whoever watches it."""

    version: int = 0
    n_updates: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Watcher(Protocol):
    """Called between events; decides itself how often it does something."""

    def __call__(self, pulse: Pulse) -> None: ...
