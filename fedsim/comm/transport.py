"""The border between the server and its workers, and what crosses it.

The server sends `Command`s, one small message each, and flat float32 versions; a worker answers with `Trained`,
`Delivered`, `Evaluated` or `Failed`, or is `Lost`. The server alone decides what is trained where, what is kept and
what is thrown away, so that the memory bounds can be accounted for in one place (`fedsim.engine.supply`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from fedsim.comm.pieces import Incoming
from fedsim.tables import ReportTable
from fedsim.types import EvaluationRow, Float32, Int64, Row, Task, TaskReport

NO_VERSION = -1


class Command(NamedTuple):
    """What a worker is to do, in this order: forget and drop, receive `coming` versions, deliver, evaluate, train.

    `send` says for each task whether its update travels at once (the server has room) or is held until fetched.
    What clients keep changes in the order of commands, before anything is evaluated or trained: `commit` and `discard`
    name tasks whose states count from now on, or never will; `adopt` names clients whose states come with the command;
    `collect` asks for all states. `in_haste`: the run ends, and nothing is trained any more, neither what is in
    training nor what waits; with `collect` nothing is evaluated either. What clients keep changes all the same.
    Where workers sum updates themselves, `add` names held ones to be summed, with their `weights`; `total` asks for
    the sum. With `stop` come `shows_stack`, and `comes_again`: a worker that is sent home so begins again with others.
    Where versions lie in memory of a node's, `places` says for each that is coming where it is (`fedsim.comm.nodes`,
    `fedsim.comm.commons`); the transport fills it in.
    """

    tasks: Sequence[Task] = ()
    send: Sequence[bool] = ()
    coming: Sequence[int] = ()
    forget: Sequence[int] = ()
    fetch: Sequence[int] = ()
    drop: Sequence[int] = ()
    evaluate: int = NO_VERSION
    stop: bool = False
    commit: Sequence[int] = ()
    discard: Sequence[int] = ()
    adopt: Sequence[int] = ()
    collect: bool = False
    shows_stack: bool = False
    add: Sequence[int] = ()
    weights: Sequence[float] = ()
    total: bool = False
    places: Sequence[int] = ()
    comes_again: bool = False
    in_haste: bool = False

    @property
    def settles(self) -> bool:
        """Whether it changes what clients keep."""
        return bool(self.commit or self.discard or self.adopt)


@dataclass(slots=True)
class Counters:
    """What a rank has done since the start: cumulative."""

    n_tasks: float = 0.0
    n_groups: float = 0.0
    busy_s: float = 0.0
    evaluating_s: float = 0.0
    waiting_s: float = 0.0
    sending_s: float = 0.0
    sent_bytes: float = 0.0
    received_bytes: float = 0.0
    cpu_s: float = 0.0
    rss_bytes: float = 0.0


N_COUNTERS = len(Counters.__slots__)


class Trained(NamedTuple):
    """A group is trained. `rows` (n_sent, P), or a list of (P,), holds the updates of those reports whose `sent` is
    true, in order; their bytes, if they travel encoded.

    `failed` are the tasks whose training failed; a transport hands them over as messages of their own, before this one.
    `places`: the numbers of the rows, where they are such as a worker has in common with rank zero; else they are sent.
    """

    worker: int
    reports: Sequence[TaskReport]
    sent: Sequence[bool]
    rows: Row | Sequence[Row]
    failed: Sequence[Failed] = ()
    places: Sequence[int] = ()

    @property
    def train_s(self) -> float:
        """How long the training of the whole group took."""
        return sum(ReportTable.of(self.reports).rows["train_s"].tolist(), 0.0)


class Delivered(NamedTuple):
    """Fetched updates: `rows` (n, P), or their bytes, a row a task."""

    worker: int
    tasks: Sequence[int]
    rows: Row | Sequence[Row]


class Evaluated(NamedTuple):
    """The test results of one version."""

    worker: int
    version: int
    rows: Sequence[EvaluationRow]


class Summed(NamedTuple):
    """What a worker has summed since it was last asked: int64 (P,), see `fedsim.aggregation.fixed`."""

    worker: int
    total_P: Int64


class Failed(NamedTuple):
    """Something went wrong at a worker; `text` is the one-line error or the traceback.

    `task` -1: not in the training of one task alone.
    """

    worker: int
    client: int
    task: int
    is_user_error: bool
    text: str


class Lost(NamedTuple):
    """A worker died. Nothing comes from it any more, and what is sent to it goes nowhere."""

    worker: int
    text: str


class Collected(NamedTuple):
    """States that clients keep: `rows` (n, S), a row a client; `is_last` of those that were asked for at once."""

    worker: int
    clients: Sequence[int]
    rows: Float32
    is_last: bool


Message = Trained | Delivered | Evaluated | Collected | Summed | Failed | Lost


class Lengths(NamedTuple):
    """Elements of what travels: a version with what is sent beside its weights, an update, the state of a client.

    All are float32 where no other type is given.
    """

    version: int
    update: int
    state: int = 0
    version_type: DTypeLike = np.float32
    update_type: DTypeLike = np.float32


class Transport(Protocol):
    """The server's end. Worker indices run from 0 to `n_workers` - 1."""

    n_workers: int

    def rank(self, worker: int) -> int:
        """The rank that the record names for a worker."""

    def send(self, worker: int, command: Command, versions: Sequence[Row], states_nS: Float32 | None = None) -> None:
        """Sends a command, the versions it announces as coming and the states to adopt; returns at once."""

    @property
    def rung_s(self) -> float:
        """How long may be slept at once, since who sends something ends `wait`; 0 where nobody does."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing can be here that nobody rang for since the last look: another before `wait` finds nothing."""

    def wait(self, seconds: float) -> None:
        """Sleeps so long, or until somebody rings."""

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        """(living worker, version) for what has to be sent again, because the worker that died was to hand it on.

        Asked once, when its death is known.
        """

    def poll(self) -> Sequence[Message]:
        """The messages that have come in whole; returns at once."""

    def counters(self, worker: int) -> Counters:
        """The worker's counters as of its last message."""

    def incoming(self, worker: int, task: int) -> Incoming | None:
        """An update in several pieces that has begun to come in, and not come in whole."""

    def close(self, timeout_s: float | None = None, shows_stack: bool = False, comes_again: bool = False) -> None:
        """Stops the workers and returns when they have stopped; what they still send is thrown away.

        `shows_stack`: they print where they are before they do. `comes_again`: they are to begin again with those that
        are left.

        Raises:
            StalledError: a worker did not stop within `timeout_s` (None: wait for ever).
        """


class Watched(Protocol):
    """A rank's watch over itself."""

    def beat(self) -> None:
        """A sign of life."""

    def dump(self) -> None:
        """Prints the stack of each thread."""


class WorkerCore(Protocol):
    """What a transport asks of the worker behind it."""

    def train(self, tasks: Sequence[Task], send: Sequence[bool], progress: Callable[[], None]) -> Trained: ...

    def deliver(self, tasks: Sequence[int]) -> Delivered: ...

    def drop(self, tasks: Sequence[int]) -> None: ...

    def add_up(self, tasks: Sequence[int], weights: Sequence[float]) -> None: ...

    def total(self) -> Summed: ...

    def before_versions(self) -> None: ...

    def learn(self, version: int, vector_P: Row) -> None: ...

    def forget(self, versions: Sequence[int]) -> None: ...

    def settle(self, commit: Sequence[int], discard: Sequence[int]) -> None: ...

    def adopt(self, clients: Sequence[int], states_nS: Float32) -> None: ...

    def collect(self) -> Sequence[Collected]: ...

    def evaluate(self, version: int) -> Evaluated: ...

    def failure(self, error: BaseException) -> Failed: ...

    counters: Counters


class Backoff:
    """Sleeps between polls that found nothing; `reset` after one that found something.

    The first sleep is half of the time usually slept before something came, and those that follow are a sixteenth of
    it, until twice as long has been slept; then they double, up to the cap. So a rank that hears from others every 20
    ms wakes up a few times for it and is there within a millisecond or two, and one that hears from them all the time
    is there at once. No sleep is below `floor_s`; the cap bounds the latency of a rank that was idle for long.
    """

    def __init__(
        self, cap_s: float = 2e-3, floor_s: float = 10e-6, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._cap_s = cap_s
        self._floor_s = floor_s
        self._sleep = sleep
        self._slept_s = 0.0
        self._usual_s = 0.0
        self._next_s = floor_s

    def reset(self) -> None:
        """Something was found."""
        self._usual_s += 0.25 * (self._slept_s - self._usual_s)
        self._slept_s = 0.0
        self._next_s = self._bounded(self._usual_s / 2.0)

    def sleep(self, at_least_s: float = 0.0) -> None:
        """Nothing was found, and nobody minds if we are away for `at_least_s`."""
        sleep_s = max(self._next_s, at_least_s)
        self._sleep(sleep_s)
        self._slept_s += sleep_s
        is_late = self._slept_s >= 2.0 * self._usual_s
        self._next_s = self._bounded(2.0 * self._next_s if is_late else self._usual_s / 16.0)

    def _bounded(self, sleep_s: float) -> float:
        return min(max(sleep_s, self._floor_s), self._cap_s)


def empty_rows(n: int, n_parameters: int, dtype: DTypeLike = np.float32) -> Row:
    """Uninitialised room for `n` flat vectors: (n, P), float32 if nothing else is said."""
    return np.empty((n, n_parameters), dtype=dtype)
