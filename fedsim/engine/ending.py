"""How a run ends at rank zero: its workers are stopped whatever happened, and the first error counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedsim.comm.transport import Transport
from fedsim.engine.watchdog import Watch
from fedsim.errors import FedsimError, LostError, RecordError, SilentError, StalledError, StateLostError

_CLOSE_TIMEOUT_S = 30.0
_JOIN_BYTES_PER_S = 10 * 2**20  # a quarter of what one core does


@dataclass
class _Errors:
    error: FedsimError | None


@contextmanager
def first_error(error: FedsimError | None) -> Iterator[_Errors]:
    """What is done at the end of a record, which a full disk can prevent: the first error counts."""
    errors = _Errors(error)
    try:
        yield errors
    except RecordError as failed:
        errors.error = error or failed


@contextmanager
def closing(transport: Transport, watch: Watch, patience_s: Callable[[], float]) -> Iterator[None]:
    """Stops the workers, also when rank zero failed; a bug is left to the caller, who ends all ranks.

    Raises:
        StuckError: the workers cannot go back to a checkpoint, since one of them does not come.
    """
    try:
        yield
    except SilentError:
        watch.dump()
        with suppress(StalledError):  # those who cannot listen print their stacks themselves
            transport.close(watch.grace_s, shows_stack=True)
        raise
    except StateLostError as error:
        _send_home_to_come_again(transport, error)
        raise
    except FedsimError:
        with suppress(StalledError):  # the first error is the one to be told
            transport.close(_CLOSE_TIMEOUT_S)
        raise
    transport.close(patience_s())


class StuckError(LostError):
    """A run that would go back to its last checkpoint, if a worker answered."""


def _send_home_to_come_again(transport: Transport, error: StateLostError) -> None:
    try:
        transport.close(_CLOSE_TIMEOUT_S, comes_again=True)
    except StalledError as stalled:
        raise StuckError(f"{error}, and {stalled}") from stalled


def has_time_to_join(folder: Path, left_s: float) -> bool:
    """Whether a run's records are so small that joining them takes a fraction of the time that is left."""
    n_bytes = sum(path.stat().st_size for path in folder.glob("record-*.h5"))
    return n_bytes / _JOIN_BYTES_PER_S < 0.5 * left_s


def status_of(ended: FedsimError) -> str:
    """The status of a run that this error ended."""
    if isinstance(ended, StalledError):
        return "stalled"
    return "lost" if isinstance(ended, LostError) else "failed"
