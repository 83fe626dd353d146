"""Failures that a run survives: what is done about a client's, and what is said of each.

A failure becomes a row of the record's `failures`. Whether a client's training fails is up to the task, as a rule, and
so the same on any number of ranks; `retry` is for the other failures, those of a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedsim.comm.transport import Failed
from fedsim.config import RunConfig
from fedsim.errors import ClientError, FedsimError, LostError, StateLostError, WorkerError

Report = Callable[[int, int, int, str, str], None]
"""Told of a failure: worker (its index), client, task (-1: none), kind, text."""

WORKER_LOST = "WorkerLost"


def unreported(worker: int, client: int, task: int, kind: str, text: str) -> None:
    """For nobody's ears."""


@dataclass(frozen=True)
class Leniency:
    """How often a failed task is tried again, and whether its update is dropped after that; else the run ends."""

    retries: int = 0
    drops: bool = False

    @classmethod
    def of(cls, config: RunConfig, replaying: bool) -> Leniency:
        """What a configuration says; a replay can drop nothing that the history applied."""
        retries = config.retry.times if config.on_client_error == "retry" else 0
        return cls(retries, config.drops_updates and not replaying)

    def verdict(self, n_failed: int) -> Literal["retry", "drop", "fail"]:
        """What to do after a task's n-th failure."""
        if n_failed <= self.retries:
            return "retry"
        return "drop" if self.drops else "fail"

    @property
    def survives(self) -> bool:
        """Whether any failure is survived."""
        return self.retries > 0 or self.drops


NONE = Leniency()


def lost_with(text: str, n_left: int, keeps_states: bool) -> LostError | None:
    """The error with which a worker's death ends the attempt, if it does; `text` says who died."""
    if not n_left:
        return LostError(f"lost: {text}, and no worker is left")
    return StateLostError(f"lost: {text}, and what its clients kept") if keeps_states else None


def kind_of(message: Failed) -> str:
    """The name of a failure in the record."""
    return (ClientError if message.is_user_error else WorkerError).__name__


def error_of(message: Failed, rank: int) -> FedsimError:
    """The error with which a failure ends the run."""
    error = (ClientError if message.is_user_error else WorkerError)(message.text)
    error.where = (rank, message.client, message.task)
    return error
