"""What can go wrong, and the exit code each kind ends with.

Every error that a user can cause is a `FedsimError`: one line that says what is wrong, where, what was got
and what is allowed. The command line prints that line and exits with the class's code. Anything else is a
bug of fedsim: it gets a traceback and `EXIT_BUG`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_REQUEUE = 75
EXIT_STALLED = 76
EXIT_LOST = 77


class FedsimError(Exception):
    """Base of the errors that are reported in one line; `exit_code` is what the process ends with."""

    exit_code = EXIT_USAGE
    where = (-1, -1, -1)
    """Rank, client and task concerned, for the record."""


class ConfigError(FedsimError):
    """A configuration that cannot be run; the message names the file, the key and the line."""


class DataError(FedsimError):
    """A data file that is missing, malformed or out of range."""


class RecordError(FedsimError):
    """A run folder or record that cannot be created, read or understood."""


class LaunchError(FedsimError):
    """Ranks that cannot work together: launched wrongly, or on machines that differ."""


class ClientError(FedsimError):
    """A client whose training failed, as with a loss that is no number; names client, task, version and step."""


class UserCodeError(FedsimError):
    """A function of the user's own that failed or returned what it may not: file, line and function, then the trace."""


class WorkerError(FedsimError):
    """An exception at a worker that nobody expected; the text is its traceback under the worker's name."""

    exit_code = EXIT_BUG


class StalledError(FedsimError):
    """A run in which nothing can happen any more."""

    exit_code = EXIT_STALLED


class SilentError(StalledError):
    """A run of which no worker gives a sign of life; every rank's stack is printed."""


class LostError(FedsimError):
    """A run that lost more than it could bear, such as its last worker."""

    exit_code = EXIT_LOST


class StateLostError(LostError):
    """A worker that died with what its clients kept: those that are left go back to the last checkpoint."""


def nearest(got: str, allowed: Iterable[str]) -> str:
    """A hint for an unknown name: the close one if there is one, else the whole list.

    >>> nearest("fedagv", ["fedavg", "fedbuff"])
    "did you mean 'fedavg'?"
    >>> nearest("x", ["fedavg", "fedbuff"])
    'allowed: fedavg, fedbuff'
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(got, names, n=1)
    return f"did you mean '{close[0]}'?" if close else "allowed: " + ", ".join(names)
