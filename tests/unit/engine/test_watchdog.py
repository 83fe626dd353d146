"""A rank's watch over itself: who is silent prints its stack, who beats does not, and who may ends."""

from __future__ import annotations

import subprocess
import sys
import threading

from fedsim.engine.watchdog import Watch

PROGRAM = """
import ctypes, sys, time
from fedsim.engine.watchdog import Watch

def works():
    for _ in range(40):
        watch.beat()
        time.sleep(0.02)

def sticks():
    {how}

with Watch(0.4, "### rank 3 of 8 on here", ends={ends}) as watch:
    {what}()
print("over")
"""


def run(what: str, how: str = "time.sleep(2.0)", ends: bool = False) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(what=what, how=how, ends=ends)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_who_shows_signs_of_life_is_left_alone() -> None:
    done = run("works", ends=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_who_is_silent_prints_its_stack_once() -> None:
    done = run("sticks")
    assert done.returncode == 0 and done.stdout == "over\n"
    assert done.stderr.startswith("### rank 3 of 8 on here\n")
    assert done.stderr.count("in sticks") == 1


def test_who_may_end_the_process_does() -> None:
    done = run("sticks", ends=True)
    assert done.returncode == 76 and done.stdout == ""
    assert "in sticks" in done.stderr and "fedsim: stalled: no sign of life" in done.stderr


def test_code_that_holds_the_interpreter_is_shown_too() -> None:
    done = run("sticks", how="ctypes.PyDLL(None).usleep(2_000_000)")
    assert "in sticks" in done.stderr and "Timeout" in done.stderr


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with Watch(100.0, "") as watch:
        assert watch.grace_s > 5.0
    assert threading.active_count() == before
