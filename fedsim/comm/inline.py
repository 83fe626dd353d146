"""The transport without MPI: server and one worker in the same process; training happens inside `poll`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedsim.comm.pieces import ALONE_BYTES, Incoming
from fedsim.comm.transport import NO_VERSION, Command, Counters, Delivered, Message, Trained, WorkerCore
from fedsim.errors import FedsimError
from fedsim.types import Float32, Row


class _LeftOff(BaseException):
    """A training that nobody waits for any more."""


class InlineTransport:
    """One worker, called in turn: each `poll` does the next thing it was told."""

    n_workers = 1
    rung_s = 0.0  # what is under way is done in `poll`
    is_quiet = False

    def __init__(
        self,
        worker: WorkerCore,
        leave_off: Callable[[], bool] = lambda: False,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`leave_off` says, between steps of training, that nobody waits for it any more; `beat` is a sign of life."""
        self._beat = beat
        self._worker = worker
        self._leave_off = leave_off
        self._jobs: deque[Callable[[], Sequence[Message]]] = deque()

    def rank(self, worker: int) -> int:
        return 0

    def send(self, worker: int, command: Command, versions: Sequence[Row], states_nS: Float32 | None = None) -> None:
        core = self._worker
        core.forget(command.forget)
        core.drop(command.drop)
        for version, vector_P in zip(command.coming, versions, strict=True):
            core.learn(version, vector_P)
        if command.add:
            core.add_up(command.add, command.weights)
        if command.total:
            self._jobs.appendleft(lambda: (core.total(),))
        if command.fetch:
            self._jobs.appendleft(lambda: (core.deliver(command.fetch),))
        if command.settles:
            self._jobs.append(partial(self._settle, command, states_nS))
        if command.collect:
            self._jobs.append(core.collect)
        if command.evaluate != NO_VERSION:
            self._jobs.append(lambda: (core.evaluate(command.evaluate),))
        if command.tasks:
            self._jobs.append(lambda: (core.train(command.tasks, command.send, self._progress),))

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _settle(self, command: Command, states_nS: Float32 | None) -> Sequence[Message]:
        if states_nS is not None:
            self._worker.adopt(command.adopt, states_nS)
        self._worker.settle(command.commit, command.discard)
        return ()

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return ()

    def poll(self) -> Sequence[Message]:
        while self._jobs:
            job = self._jobs.popleft()
            try:
                messages = job()
            except FedsimError as error:
                return (self._worker.failure(error),)
            except _LeftOff:
                self._jobs.append(job)  # behind what may still be waited for
                return ()
            if messages:
                failed = [one for message in messages if isinstance(message, Trained) for one in message.failed]
                return (*failed, *map(_apart, messages))
        return ()

    def _progress(self) -> None:
        self._beat()
        if self._leave_off():
            raise _LeftOff

    def counters(self, worker: int) -> Counters:
        return self._worker.counters

    def incoming(self, worker: int, task: int) -> Incoming | None:
        return None

    def close(self, timeout_s: float | None = None, shows_stack: bool = False, comes_again: bool = False) -> None:
        self._jobs.clear()


def _apart(message: Message) -> Message:
    """The same message; large rows in memory of their own, as they come from elsewhere."""
    if isinstance(message, Trained | Delivered) and len(message.rows) and message.rows[0].nbytes >= ALONE_BYTES:
        return message._replace(rows=[row.copy() if _is_part(row) else row for row in message.rows])
    return message


def _is_part(row: Row) -> bool:
    return isinstance(row.base, np.ndarray) and row.base.nbytes > row.nbytes
