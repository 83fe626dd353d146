"""What Linux has to be told about sleeping."""

from __future__ import annotations

import ctypes

_PR_SET_TIMERSLACK = 29
_NANOSECONDS = 1000


def wake_in_time() -> bool:
    """Ends this process's short sleeps on time; true if that could be asked for.

    Linux may let a sleep last 50 us longer, so that timers go off together. Ranks that poll sleep for 10 us and more,
    and a small group is trained in 500: what that adds to each message was a tenth of all time.
    """
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _NANOSECONDS, 0, 0, 0) == 0)
    except (OSError, AttributeError):  # not Linux
        return False
