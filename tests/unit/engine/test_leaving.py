"""How ranks leave together: nobody waits for the dead, and nobody for ever after an error."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.engine import leaving
from fedsim.engine.launching import ALONE, World
from fedsim.engine.leaving import leave


class Death(Exception):
    """What MPI raises for a request that concerns a dead rank."""


class Request:
    """Complete at the n-th test; `writes` into the receiver's buffer then."""

    def __init__(self, n_tests: float, buffer: Any = None, value: int = 0, dies: bool = False) -> None:
        self.n_left, self.buffer, self.value, self.dies = n_tests, buffer, value, dies

    def Test(self) -> bool:
        self.n_left -= 1
        if self.n_left >= 0:
            return False
        if self.dies:
            raise Death
        if self.buffer is not None:
            self.buffer[0] = self.value
        return True


class Comm:
    """A farewell communicator on which each rank answers after so many tests, or is dead; `word` is rank zero's."""

    def __init__(self, n_tests: dict[int, float], dead: set[int] = frozenset(), word: int = 0) -> None:  # type: ignore[assignment]
        self.n_tests, self.dead, self.word = n_tests, dead, word
        self.sent: list[tuple[int, int]] = []
        self.aborted: list[int] = []

    def Irecv(self, buffer: Any, source: int) -> Request:
        return Request(self.n_tests.get(source, 0), buffer, self.word, source in self.dead)

    def Isend(self, data: Any, dest: int) -> Request:
        self.sent.append((dest, int(data[0])))
        return Request(0, dies=dest in self.dead)

    def Abort(self, code: int) -> None:
        self.aborted.append(code)
        raise SystemExit(code)


@pytest.fixture(autouse=True)
def deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "is_death", lambda error: isinstance(error, Death))


def ending(rank: int, comm: Comm, code: int, timeout_s: float = 10.0) -> list[int]:
    """The codes that the process was ended with at once: none if it may end in order."""
    codes: list[int] = []
    leave(World(rank, 3, comm, comm), code, timeout_s, codes.append)
    return codes


def test_without_mpi_there_is_nobody_to_wait_for() -> None:
    leave(ALONE, 2)


def test_rank_zero_waits_for_the_others_and_sends_them_home() -> None:
    comm = Comm({1: 5, 2: 30})
    assert ending(0, comm, 0, timeout_s=0.0) == []
    assert sorted(comm.sent) == [(1, 0), (2, 0)]


def test_where_one_died_all_end_at_once_with_their_codes() -> None:
    comm = Comm({1: 5, 2: 30}, dead={2})
    assert ending(0, comm, 75) == [75]
    assert comm.sent == [(1, 1)], "the dead are not told"
    assert ending(1, Comm({}, word=1), 0) == [0]
    assert ending(1, Comm({}, word=0), 0) == []


def test_a_worker_whose_server_died_is_lost() -> None:
    assert ending(1, Comm({0: 3}, dead={0}), 0) == [77]
    assert ending(1, Comm({0: 3}, dead={0}), 70) == [70]


@pytest.mark.parametrize("rank", [0, 1])
def test_leaving_with_an_error_aborts_those_who_never_come(rank: int) -> None:
    comm = Comm({0: float("inf"), 1: float("inf")})
    with pytest.raises(SystemExit):
        ending(rank, comm, 2, timeout_s=0.02)
    assert comm.aborted == [2]


def test_another_error_of_mpi_is_not_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "is_death", lambda error: False)
    with pytest.raises(Death):
        ending(0, Comm({}, dead={1}), 0)
