"""Vectors too large for one message, cut into pieces; both ends cut alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fedsim.types import Float32, TaskReport

PIECE = 2**20  # elements: 4 MiB of float32, which stays in a cache between its arrival and its use
_AT_ONCE = 2  # receives posted: one comes in while the one before it is used


def spans(n_elements: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Where each piece of a vector starts and stops, in order.

    >>> list(spans(10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    assert piece > 0
    for start in range(0, n_elements, piece):
        yield start, min(start + piece, n_elements)


class Receiving:
    """A vector that comes in pieces, in order. `receive` posts the receive of one and returns its request.

    Messages between two ranks do not overtake each other: nobody else may post a receive from there before
    `is_posted`.
    """

    def __init__(self, flat: Any, receive: Callable[[Any], Any], piece: int = PIECE) -> None:
        self._flat = flat
        self._receive = receive
        self._left = deque(spans(flat.size, piece))
        self._posted: deque[tuple[Any, int]] = deque()
        self.is_in_pieces = len(self._left) > 1
        self.n_here = 0

    @property
    def is_posted(self) -> bool:
        """Whether every piece has its receive."""
        return not self._left

    @property
    def requests(self) -> list[Any]:
        """What is under way."""
        return [request for request, _ in self._posted]

    def advance(self) -> bool:
        """Takes note of the pieces that have come and posts further receives; true once all is here."""
        while True:
            while self._left and len(self._posted) < _AT_ONCE:
                start, stop = self._left.popleft()
                self._posted.append((self._receive(self._flat[start:stop]), stop))
            if not self._posted:
                return True
            request, stop = self._posted[0]
            if not request.Test():
                return False
            self._posted.popleft()
            self.n_here = stop


class Incoming(NamedTuple):
    """An update whose pieces are coming in: its report, if that came with it, its row, and how much of it is here."""

    report: TaskReport | None
    row_P: Float32
    n_here: Callable[[], int]
