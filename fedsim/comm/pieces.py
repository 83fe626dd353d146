"""Vectors too large for one message, cut into pieces; both ends cut alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fedsim.types import Float32, TaskReport

PIECE = 2**20  # elements: 4 MiB of float32, which stays in a cache between its arrival and its use
ALONE_BYTES = 2**16  # rows of this size and more travel alone, each into memory of its own, let go of with the row
_AT_ONCE = 2  # receives posted: one comes in while the one before it is used


def spans(n_elements: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Where each piece of a vector starts and stops, in order.

    >>> list(spans(10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    assert piece > 0
    for start in range(0, n_elements, piece):
        yield start, min(start + piece, n_elements)


def parts(rows: Any) -> list[Any]:
    """The flat arrays that rows (n, P), or a list of them (P,), travel as: one, or if they are large one each."""
    if len(rows) and rows[0].nbytes >= ALONE_BYTES:
        return list(rows)
    return [rows.reshape(-1)]


class Receiving:
    """Vectors that come one after the other, in pieces. `receive` posts the receive of one and returns its request.

    Messages between two ranks do not overtake each other: nobody else may post a receive from there before
    `is_posted`.
    """

    def __init__(self, flats: Sequence[Any], receive: Callable[[Any], Any], piece: int = PIECE) -> None:
        self._receive = receive
        self._left = deque(flat[start:stop] for flat in flats for start, stop in spans(flat.size, piece))
        self._posted: deque[tuple[Any, int]] = deque()
        self.is_in_pieces = any(flat.size > piece for flat in flats)
        self.n_here = 0  # values

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
                part = self._left.popleft()
                self._posted.append((self._receive(part), part.size))
            if not self._posted:
                return True
            request, n = self._posted[0]
            if not request.Test():
                return False
            self._posted.popleft()
            self.n_here += n


class Incoming(NamedTuple):
    """An update whose pieces are coming in: its report, if that came with it, its row, and how much of it is here."""

    report: TaskReport | None
    row_P: Float32
    n_here: Callable[[], int]
