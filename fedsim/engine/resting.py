"""How rank zero waits for messages: asleep, no longer than anybody may miss it, and not for ever."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.comm.transport import Backoff, Transport
from fedsim.errors import SilentError

_LONGEST_SLEEP_S = 1e-3  # while some worker may be waiting for us
_LONGEST_REST_S = 5e-3  # while each has another group waiting


class Rest:
    """Sleep of a server, ended by a ring where those who send ring. `slept_s`: wall seconds of it so far."""

    def __init__(self, transport: Transport, clock: Callable[[], float], stall_timeout_s: float) -> None:
        self._transport = transport
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._backoff = Backoff(cap_s=_LONGEST_SLEEP_S, sleep=transport.wait)
        self._group_s = 0.0  # what training a group takes, as of late
        self._last_sign_s = clock()
        self.slept_s = 0.0

    def heard(self) -> None:
        """Messages came."""
        self._backoff.reset()
        self._last_sign_s = self._clock()

    def spoke(self) -> None:
        """A command left: its answer takes its time."""
        self._last_sign_s = self._clock()

    def note_group(self, train_s: float) -> None:
        """A group took so long to train."""
        self._group_s += 0.1 * (train_s - self._group_s)

    def sleep(self, is_missed: Callable[[], bool]) -> None:
        """Until somebody rings; else a little, or half a group's time if no worker misses the server until then."""
        start_s = self._clock()
        if rung_s := self._transport.rung_s:
            self._transport.wait(rung_s)
        else:
            self._backoff.sleep(0.0 if is_missed() else min(0.5 * self._group_s, _LONGEST_REST_S))
        self.slept_s += self._clock() - start_s

    def check_stalled(self, n_out: int) -> None:
        """Raises SilentError if nothing was heard for too long, with so many groups and evaluations out."""
        silent_s = self._clock() - self._last_sign_s
        if silent_s > self._stall_timeout_s and n_out:
            raise SilentError(
                f"stalled: no sign of life from any worker for {silent_s:.0f} s with {n_out} groups and evaluations "
                "out (stall_timeout_s allows longer)"
            )
