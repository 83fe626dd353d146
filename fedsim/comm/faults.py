"""Trouble on purpose, for tests and studies: what `FEDSIM_INJECT` asks for.

    FEDSIM_INJECT="sleep:0.02"          every worker sleeps before each group, 20 ms on average (exponential)
    FEDSIM_INJECT="sleep:0.02@1,3"      only the workers of rank 1 and 3
    FEDSIM_INJECT="raise:5@2"           the worker of rank 2 raises an exception before its fifth group

Delays change when things happen, never what is computed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fedsim.errors import ConfigError
from fedsim.seeding import Purpose, generator

VARIABLE = "FEDSIM_INJECT"
_FORM = re.compile(r"(?P<what>sleep|raise):(?P<value>\d+(\.\d*)?|\.\d+)(@(?P<ranks>\d+(,\d+)*))?")


def nothing() -> None:
    """No trouble."""


def before_group(text: str, rank: int, sleep: Callable[[float], None] = time.sleep) -> Callable[[], None]:
    """What a worker of that rank does before each group.

    Raises:
        ConfigError: `text` is not of the form above.
    """
    if not text:
        return nothing
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{VARIABLE}: got {text!r}, allowed: sleep:SECONDS or raise:GROUP, followed by @RANK,RANK or nothing"
        )
    ranks = match["ranks"]
    if ranks is not None and rank not in map(int, ranks.split(",")):
        return nothing
    if match["what"] == "raise":
        return _Raise(int(float(match["value"])))
    mean_s = float(match["value"])
    draws = generator(0, Purpose.INJECTION, client=rank)
    return lambda: sleep(float(draws.exponential(mean_s)))


class _Raise:
    """Raises an exception at its n-th call."""

    def __init__(self, n: int) -> None:
        self._n_left = n

    def __call__(self) -> None:
        self._n_left -= 1
        if self._n_left == 0:
            raise RuntimeError(f"{VARIABLE} asked for this exception")
