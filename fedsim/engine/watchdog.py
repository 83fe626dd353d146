"""Every rank's watch over itself: a rank that shows no sign of life prints the stack of each of its threads.

A thread looks now and then whether somebody called `beat` meanwhile. It prints under the rank's headline, as long as
Python still runs; where compiled code holds the interpreter, faulthandler's own timer prints a moment later. The work
that is watched pays an addition a beat.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from fedsim.errors import EXIT_STALLED

_LOOKS_S = 1.0
_MARGIN = 2  # looks, after which faulthandler's timer goes off: the thread comes first if it can


def listen_to_signal() -> None:
    """From now on SIGUSR1 prints the stack of each thread, whatever runs; so does a crash of this process."""
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__, all_threads=True)
        faulthandler.register(signal.SIGUSR1, sys.__stderr__, all_threads=True)


class Watch(AbstractContextManager["Watch"]):
    """Watches one rank. `ends`: the process is ended, too, since nobody else would."""

    def __init__(
        self, timeout_s: float, headline: str, ends: bool = False, exit_now: Callable[[int], Any] = os._exit
    ) -> None:
        self._timeout_s = timeout_s
        self._headline = headline
        self._ends = ends
        self._exit_now = exit_now
        self._looks_s = min(_LOOKS_S, timeout_s / 8.0)
        self._n_beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    @property
    def grace_s(self) -> float:
        """How long after a stall was noticed each rank has printed what it has to say."""
        return 5.0 + (_MARGIN + 1) * self._looks_s

    def __enter__(self) -> Watch:
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A sign of life."""
        self._n_beats += 1

    def seen(self, pulse: Any) -> None:
        """A sign of life, as a watcher of the server gives it."""
        self._n_beats += 1

    def dump(self) -> None:
        """Prints the stack of each thread under the rank's headline."""
        stream = sys.__stderr__
        if stream is not None:
            print(self._headline, file=stream, flush=True)
            faulthandler.dump_traceback(stream, all_threads=True)

    def _look(self) -> None:
        n_seen, last_s = -1, time.monotonic()
        has_dumped = False
        while not self._over.wait(self._looks_s):
            now_s = time.monotonic()
            if self._n_beats != n_seen:
                n_seen, last_s, has_dumped = self._n_beats, now_s, False
                self._arm()
            elif now_s - last_s > self._timeout_s and not has_dumped:
                has_dumped = True
                faulthandler.cancel_dump_traceback_later()
                self.dump()
                if self._ends:
                    self._end()

    def _arm(self) -> None:
        """The second watch, which needs no Python: at a look that comes in time it is put off."""
        if sys.__stderr__ is not None:
            margin_s = _MARGIN * self._looks_s
            faulthandler.dump_traceback_later(self._timeout_s + margin_s, file=sys.__stderr__, exit=self._ends)

    def _end(self) -> None:
        text = f"fedsim: stalled: no sign of life for {self._timeout_s:.0f} s (stall_timeout_s allows longer)"
        print(text, file=sys.__stderr__, flush=True)
        self._exit_now(EXIT_STALLED)
