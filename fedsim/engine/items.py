"""What the supply keeps of each wanted task and of each worker, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fedsim.schedule.placement import ANY_WORKER
from fedsim.types import Float32, Task, TaskReport

Key = tuple[float, float, int]
Queue = list[tuple[Key, int]]


class State(IntEnum):
    """Where a wanted task stands; see the head of `fedsim.engine.supply`."""

    READY = 0
    POSTED = 1
    HELD = 2
    COMING = 3
    SUMMED = 4
    HERE = 5
    FAILED = 6


AT_WORKER = (State.POSTED, State.HELD, State.COMING, State.SUMMED)


@dataclass(slots=True)
class Item:
    """A wanted task on its way; `key` orders items by when they are due.

    `granted`: it has a row of rank zero's room while it is under way; `dropped`: nobody wants it any more; `elsewhere`:
    the worker that is to try it again, after it failed at another.
    """

    task: Task
    key: Key
    state: State = State.READY
    worker: int = ANY_WORKER
    report: TaskReport | None = None
    row_P: Float32 | None = None
    submitted_s: float = math.nan
    arrived_s: float = math.nan
    granted: bool = False
    dropped: bool = False
    n_failed: int = 0
    elsewhere: int | None = None


@dataclass(slots=True)
class Desk:
    """What the server knows of one worker: what waits for it, groups given to it, room taken there."""

    ready: Queue = field(default_factory=list)
    n_groups: int = 0
    n_rows: int = 0


def in_turn(workers: Sequence[int], first: int) -> Sequence[int]:
    """The workers, ascending, from `first` on, then those before it: so no rank, and no host, is always served first.

    >>> in_turn([0, 1, 3, 4], 2)
    [3, 4, 0, 1]
    """
    return [*(w for w in workers if w >= first), *(w for w in workers if w < first)] if first else workers


@dataclass(frozen=True)
class Bounds:
    """Group size, groups a worker may have, and room, in rows (updates) and versions.

    `reserve` rows of the server's room are kept for the due update: 1 where updates are consumed in the order of
    events, 0 on the wall clock, where whatever arrives is consumed at once. `buffer_rows` updates live in one buffer at
    rank zero, at most. Where workers sum updates themselves
    (`sums`), none comes here.
    """

    group_size: int
    n_groups: int
    server_rows: int
    worker_rows: int
    worker_versions: int
    reserve: int = 1
    sums: bool = False
    buffer_rows: int = 1
