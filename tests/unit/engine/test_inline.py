"""The transport without MPI: one thing a poll, in the order of a worker's end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim.comm.inline import InlineTransport
from fedsim.comm.transport import Backoff, Command, Counters, Delivered, Evaluated, Failed, Trained, empty_rows
from fedsim.errors import ConfigError
from fedsim.types import Float32, Task


class Log:
    """A worker core that notes what it is asked for."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.counters = Counters()
        self._failing = failing

    def train(self, tasks: Sequence[Task], send: Sequence[bool], progress: Callable[[], None]) -> Trained:
        self.calls.append(("train", [task.task for task in tasks], list(send)))
        if self._failing is not None:
            raise self._failing
        return Trained(0, [], send, empty_rows(0, 1))

    def deliver(self, tasks: Sequence[int]) -> Delivered:
        self.calls.append(("deliver", list(tasks)))
        return Delivered(0, tasks, empty_rows(len(tasks), 1))

    def drop(self, tasks: Sequence[int]) -> None:
        self.calls.append(("drop", list(tasks)))

    def learn(self, version: int, vector_P: Float32) -> None:
        self.calls.append(("learn", version, float(vector_P[0])))

    def forget(self, versions: Sequence[int]) -> None:
        self.calls.append(("forget", list(versions)))

    def evaluate(self, version: int) -> Evaluated:
        self.calls.append(("evaluate", version))
        return Evaluated(0, version, [])

    def failure(self, error: Exception) -> Failed:
        return Failed(0, -1, -1, True, str(error))


def task(number: int) -> Task:
    nan = float("nan")
    return Task(number, 0, 0, 1, 1, 0, 0.1, nan, nan, nan, nan, nan, nan, False, True)


def row(value: float) -> Float32:
    return np.array([value], dtype=np.float32)


def test_room_is_made_and_versions_are_learnt_before_anything_is_done() -> None:
    core = Log()
    transport = InlineTransport(core)
    command = Command([task(1), task(2)], [True, False], coming=[5, 6], forget=[3], fetch=[9], drop=[8], evaluate=6)
    transport.send(0, command, [row(5.0), row(6.0)])
    at_once = [("forget", [3]), ("drop", [8]), ("learn", 5, 5.0), ("learn", 6, 6.0)]
    assert core.calls == at_once
    kinds = [type(message) for _ in range(4) for message in transport.poll()]
    assert kinds == [Delivered, Evaluated, Trained] and transport.poll() == ()
    assert core.calls[4:] == [("deliver", [9]), ("evaluate", 6), ("train", [1, 2], [True, False])]


def test_what_is_fetched_goes_before_what_waits() -> None:
    core = Log()
    transport = InlineTransport(core)
    transport.send(0, Command([task(1)], [False]), [])
    transport.send(0, Command([task(2)], [False]), [])
    transport.send(0, Command(fetch=[7]), [])
    for _ in range(3):
        transport.poll()
    assert [call[:2] for call in core.calls if call[0] in ("train", "deliver")] == [
        ("deliver", [7]),
        ("train", [1]),
        ("train", [2]),
    ]


def test_an_error_of_the_users_is_a_message_and_a_bug_is_not() -> None:
    transport = InlineTransport(Log(ConfigError("diverged")))
    transport.send(0, Command([task(1)], [True]), [])
    assert transport.poll() == (Failed(0, -1, -1, True, "diverged"),)
    transport = InlineTransport(Log(ZeroDivisionError("a bug")))
    transport.send(0, Command([task(1)], [True]), [])
    with pytest.raises(ZeroDivisionError):
        transport.poll()


def test_nothing_is_done_after_the_end() -> None:
    core = Log()
    transport = InlineTransport(core)
    transport.send(0, Command([task(1)], [True]), [])
    transport.close()
    assert transport.poll() == () and ("train", [1], [True]) not in core.calls
    assert transport.rank(0) == 0 and transport.counters(0) is core.counters


def test_backoff_learns_the_usual_gap_and_doubles_to_its_cap_beyond_it() -> None:
    slept: list[float] = []
    backoff = Backoff(cap_s=1e-3, floor_s=1e-4, sleep=slept.append)
    for _ in range(6):
        backoff.sleep()
    assert slept == pytest.approx([1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 1e-3])
    backoff.reset()  # 3.5 ms were slept: a quarter of it is the usual gap so far
    usual_s, slept[:] = 3.5e-3 / 4, []
    for _ in range(17):
        backoff.sleep()
    assert slept[0] == pytest.approx(usual_s / 2) and slept[1:15] == pytest.approx([1e-4] * 14)
    assert sum(slept[:14]) < 2 * usual_s <= sum(slept[:15]) and slept[15:] == pytest.approx([2e-4, 4e-4])
    for _ in range(100):  # gaps without any sleep
        backoff.reset()
    backoff.sleep()
    assert slept[-1] == pytest.approx(1e-4)
