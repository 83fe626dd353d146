"""Trouble on purpose, for tests and studies: what `FEDSIM_INJECT` asks for, one or several between semicolons.

    FEDSIM_INJECT="sleep:0.02"          every worker sleeps before each group, 20 ms on average (exponential); out of a
                                        long sleep it looks now and then whether it is to leave, as it does in training
    FEDSIM_INJECT="sleep:0.02@1,3"      only the workers of rank 1 and 3
    FEDSIM_INJECT="raise:5@2"           the worker of rank 2 raises an exception before its fifth group
    FEDSIM_INJECT="kill:5@2"            it is killed (SIGKILL) before its fifth group; segv: by a segmentation fault;
                                        exit: it leaves by os._exit; hang: it does nothing any more
    FEDSIM_INJECT="kill-evaluating:1@2" it is killed in its first evaluation
    FEDSIM_INJECT="kill-receiving:3@2"  it is killed when the third command with versions is in, and these are not
    FEDSIM_INJECT="client:7"            the training of client 7 raises an exception; nan: its loss is no number
    FEDSIM_INJECT="client:7@2"          only on rank 2

Delays and deaths change when things happen, never what is computed.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence

from fedsim.errors import ClientError, ConfigError
from fedsim.seeding import Purpose, generator
from fedsim.types import Task

VARIABLE = "FEDSIM_INJECT"
_NAP_S = 0.25  # of a long sleep
_HOW = "kill|segv|exit|hang|raise"
_FORM = re.compile(
    rf"(?P<what>sleep|client|nan|(?:{_HOW})(?:-evaluating|-receiving)?):(?P<value>\d+(\.\d*)?|\.\d+)"
    r"(@(?P<ranks>\d+(,\d+)*))?"
)
_ALLOWED = (
    "sleep:SECONDS, kill:N, segv:N, exit:N, hang:N or raise:N (the N-th group; with -evaluating or -receiving after "
    "the word the N-th evaluation or command with versions), client:CLIENT or nan:CLIENT, followed by @RANK,RANK or "
    "nothing"
)


class Trouble:
    """What a worker does before each of the things that it is told to do; nothing unless asked for."""

    def __init__(self) -> None:
        self._at: dict[str, list[Callable[[], None]]] = {"": [], "-evaluating": [], "-receiving": []}
        self._of_clients: list[Callable[[Task], None]] = []
        self._sleeps: list[Callable[[Callable[[], None]], None]] = []

    def before_group(self, tasks: Sequence[Task], progress: Callable[[], None] = lambda: None) -> None:
        """Called with the tasks of a group before it is trained; `progress` as in training."""
        for sleep in self._sleeps:
            sleep(progress)
        for act in self._at[""]:
            act()
        if self._of_clients:
            self.before_training(tasks)

    def before_training(self, tasks: Sequence[Task]) -> None:
        """Called with tasks that are trained, again or not."""
        for refuse in self._of_clients:
            for task in tasks:
                refuse(task)

    def before_evaluation(self) -> None:
        """Called before an evaluation."""
        for act in self._at["-evaluating"]:
            act()

    def before_versions(self) -> None:
        """Called when a command has come in whose versions have not."""
        for act in self._at["-receiving"]:
            act()

    def add(self, what: str, value: float, rank: int, sleep: Callable[[float], None]) -> None:
        """One trouble more; see the head of this file."""
        how, _, when = what.partition("-")
        if what == "sleep":
            draws = generator(0, Purpose.INJECTION, client=rank)
            self._sleeps.append(lambda progress: _sleep(float(draws.exponential(value)), sleep, progress))
        elif what in ("client", "nan"):
            self._of_clients.append(_Refusal(int(value), what))
        else:
            self._at["-" + when if when else ""].append(_Nth(int(value), lambda: _end(how, sleep)))


def trouble(text: str, rank: int, sleep: Callable[[float], None] = time.sleep) -> Trouble:
    """The trouble that a worker of that rank is asked to make.

    Raises:
        ConfigError: `text` is not of the form above.
    """
    made = Trouble()
    for part in text.split(";") if text else ():
        match = _FORM.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{VARIABLE}: got {part!r}, allowed: {_ALLOWED}")
        ranks = match["ranks"]
        if ranks is None or rank in map(int, ranks.split(",")):
            made.add(match["what"], float(match["value"]), rank, sleep)
    return made


class _Nth:
    """Acts at its n-th call."""

    def __init__(self, n: int, act: Callable[[], None]) -> None:
        self._n_left = n
        self._act = act

    def __call__(self) -> None:
        self._n_left -= 1
        if self._n_left == 0:
            self._act()


class _Refusal:
    """Does not let a client train."""

    def __init__(self, client: int, what: str) -> None:
        self._client = client
        self._what = what

    def __call__(self, task: Task) -> None:
        if task.client != self._client:
            return
        if self._what == "nan":
            raise ClientError(
                f"client {task.client}, task {task.task}, version {task.base_version}, step 0 of {task.n_steps}: "
                f"loss is nan ({VARIABLE} asked for it)"
            )
        raise RuntimeError(f"{VARIABLE} asked for this exception")


def _sleep(seconds: float, sleep: Callable[[float], None], progress: Callable[[], None]) -> None:
    while seconds > _NAP_S:
        sleep(_NAP_S)
        progress()
        seconds -= _NAP_S
    sleep(seconds)


def _end(how: str, sleep: Callable[[float], None]) -> None:
    """Ends this process in one of several ways, or does nothing for ever."""
    if how == "raise":
        raise RuntimeError(f"{VARIABLE} asked for this exception")
    if how == "exit":
        os._exit(3)
    if how == "hang":
        while True:
            sleep(3600.0)
    os.kill(os.getpid(), signal.SIGSEGV if how == "segv" else signal.SIGKILL)
    sleep(60.0)  # the signal may take a moment
