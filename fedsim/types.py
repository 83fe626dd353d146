"""The values that cross from one room to another: frozen, without behaviour.

Shapes carry suffixes: `G` tasks in a group, `P` parameters, `B` batch, `C` clients, `W` workers, `N` samples.
Units too: `_s` seconds, `_bytes`; counts start with `n_`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Row = NDArray[Any]  # an update as it travels: float32 (P,), or the bytes of an encoded one
Rows = Float32 | Sequence[Float32]  # vectors (P,), together as (G, P) or each wherever it lies
Targets = Literal["classes", "values", "survival"]  # what the samples of a data set are labelled with


class Outcome(IntEnum):
    """How a task ended; stored in the record's `tasks/outcome` column."""

    APPLIED = 0
    LOST = 1
    ABORTED = 2
    FAILED = 3


class EventKind(IntEnum):
    """Kinds of events in their order at one instant (architecture, "The semantics, settled", 2)."""

    ARRIVAL = 0
    LOSS = 1
    TIMER = 2  # a deadline or the end of a window
    AVAILABILITY = 3


class Task(NamedTuple):
    """One client's local training from one version; everything about it is fixed at dispatch.

    `arrival_s` is when its update reaches the server (or would have), `due_s` when the server consumes it: the
    same for all policies but tiers, whose updates wait for the end of their round. Both are NaN on the wall clock.
    `first_step` counts the local steps that the client was given in earlier tasks, for batches that go on
    through one permutation. `arrival_s` is `dispatch_s` plus the three
    durations plus the time that the client was offline meanwhile. `wanted` is false when the outcome known at dispatch
    makes training pointless.
    """

    task: int
    client: int
    base_version: int
    n_samples: int
    n_steps: int
    first_step: int
    learning_rate: float
    dispatch_s: float
    download_s: float
    compute_s: float
    upload_s: float
    arrival_s: float
    due_s: float
    lost: bool
    wanted: bool


class Event(NamedTuple):
    """Something that happens in the federation, ordered by (time, kind, number of the task or timer)."""

    time_s: float
    kind: EventKind
    number: int


class TaskReport(NamedTuple):
    """What a worker says of a trained task, without its vector; travels in the header message.

    `train_s` is the wall time that training took: a group's divided by its tasks.
    """

    task: int
    worker: int
    n_samples: int
    n_steps: int
    loss_before: float
    loss_after: float
    update_norm: float
    train_s: float


class Update(NamedTuple):
    """What a task returns: its report and the flat vector (model difference or local model) of shape (P,), float32.

    `ready(n)`, where it is given, returns when the first n values are here: of a vector that is still coming in.
    """

    report: TaskReport
    vector_P: Float32
    ready: Callable[[int], None] | None = None


class Feedback(NamedTuple):
    """What the schedule is told of a consumed update, so that selections and paces may learn from what was applied.

    `weight` is the rule's (0 for an update left out). `next_steps`, if above 0, is how many local steps the rule wants
    the client's next task to have.
    """

    task: Task
    report: TaskReport
    staleness: int
    arrival_s: float
    weight: float
    next_steps: int


class Shard(NamedTuple):
    """Samples of one client: `x` float32 (N, *features); `y` int64 (N,) for classes, float32 (N, K) for values.

    For survival, `y` is float32 (N, 2): the time, and 1 for an event at it or 0 for the end of observation.
    """

    x: Float32
    y: NDArray[Any]


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One line of an evaluation: `client` is -1 for the pooled or central test set; `metrics` by name.

    `is_personal`: of the client's second model, its own, not of the version.
    """

    client: int
    n_samples: int
    loss: float
    metrics: dict[str, float]
    is_personal: bool = False
