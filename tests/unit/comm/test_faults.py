"""What FEDSIM_INJECT asks for: its form, who is meant, when it strikes."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from fedsim.comm.faults import trouble
from fedsim.errors import ClientError, ConfigError
from fedsim.types import Task

NAN = float("nan")


def task(client: int) -> Task:
    return Task(3, client, 1, 8, 4, 0, 0.1, NAN, NAN, NAN, NAN, NAN, NAN, False, True)


@pytest.mark.parametrize(
    "text", ["slep:1", "sleep", "kill:1@", "kill-sending:1", "kill:1;;kill:2", "client:a", "kill:-1"]
)
def test_what_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"FEDSIM_INJECT: got .*, allowed: sleep:SECONDS, kill:N.*client:CLIENT"):
        trouble(text, 1)


def test_nothing_is_asked_for() -> None:
    quiet = trouble("", 1)
    quiet.before_group([task(1)])
    quiet.before_evaluation()
    quiet.before_versions()


def test_it_strikes_at_the_nth_time_on_the_ranks_named() -> None:
    for rank, strikes in ((1, False), (2, True), (3, True)):
        made = trouble("raise:2@2,3; raise-evaluating:1@9", rank)
        made.before_group([task(0)])
        made.before_evaluation()
        if strikes:
            with pytest.raises(RuntimeError, match="FEDSIM_INJECT asked"):
                made.before_group([task(0)])
        else:
            made.before_group([task(0)])


def test_sleeps_have_the_mean_asked_for() -> None:
    slept: list[float] = []
    made = trouble("sleep:0.5", 1, slept.append)
    for _ in range(500):
        made.before_group([])
    assert 0.4 < sum(slept) / 500 < 0.6, "in parts, where it is long"


@pytest.mark.parametrize("what", ["client", "nan"])
def test_a_client_is_refused_wherever_it_is_trained(what: str) -> None:
    made = trouble(f"{what}:7", 1)
    made.before_group([task(1), task(2)])
    for again in (made.before_group, made.before_group, made.before_training):
        with pytest.raises(ClientError if what == "nan" else RuntimeError):
            again([task(1), task(7)])


def end_of(words: str, call: str) -> int:
    code = f"from fedsim.comm.faults import trouble\nmade = trouble({words!r}, 1)\n{call}\nprint('still here')"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "still here" not in done.stdout
    return int(done.returncode)


def test_deaths() -> None:
    assert end_of("kill:1", "made.before_group([])") == -signal.SIGKILL
    assert end_of("segv-evaluating:1", "made.before_evaluation()") == -signal.SIGSEGV
    assert end_of("exit-receiving:1", "made.before_versions()") == 3


def test_a_long_sleep_can_be_left() -> None:
    slept: list[float] = []
    made = trouble("sleep:100", 1, slept.append)

    def leave() -> None:
        if len(slept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.before_group([], leave)
    assert sum(slept) < 1.0
