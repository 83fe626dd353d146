"""Updates that workers add up themselves: which, with what weights, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fedsim.comm.transport import Command, Summed
from fedsim.comm.wire import MAX_TASKS
from fedsim.engine.items import Desk, Item, State
from fedsim.types import Int64


class Adding:
    """The sum that is being made; `post` sends a command to a worker."""

    def __init__(self, post: Callable[[int, Command], None], clock: Callable[[], float]) -> None:
        self._post = post
        self._clock = clock
        self._weights: Mapping[int, float] = {}
        self.asked: dict[int, frozenset[int]] = {}  # for their totals: workers, and the tasks that had been added there
        self.total_P: Int64 | None = None

    def begin(self, weights: Mapping[int, float]) -> None:
        """A new sum, of these tasks."""
        self._weights, self.total_P = weights, None

    def end(self) -> Int64 | None:
        """The sum (P,), once all is here; None of no tasks."""
        self._weights = {}
        return self.total_P

    def wants(self, number: int) -> bool:
        """Whether a task belongs to the sum that is being made."""
        return number in self._weights

    def add(self, items: Iterable[Item], desks: Sequence[Desk]) -> None:
        """Has held results added at their workers, which gives their room back."""
        numbers: dict[int, list[int]] = {}
        for item in items:
            item.state = State.SUMMED
            desks[item.worker].n_rows -= 1
            numbers.setdefault(item.worker, []).append(item.task.task)
        for worker, of_worker in numbers.items():
            for start in range(0, len(of_worker), MAX_TASKS):
                part = of_worker[start : start + MAX_TASKS]
                self._post(worker, Command(add=part, weights=[self._weights[number] for number in part]))

    def ask(self, items: Sequence[Item]) -> None:
        """Asks for the totals of the workers that have added these, each once at a time."""
        added: dict[int, list[int]] = {}
        for item in items:
            added.setdefault(item.worker, []).append(item.task.task)
        for worker in sorted(added.keys() - self.asked.keys()):
            self.asked[worker] = frozenset(added[worker])
            self._post(worker, Command(total=True))

    def summed(self, message: Summed, items: Mapping[int, Item]) -> None:
        """A worker's total is here, and with it what had been added when it was asked for.

        What has been added since, as when the tasks of a dead worker are trained again, is in the next one.
        """
        numbers = self.asked.pop(message.worker)
        self.total_P = message.total_P if self.total_P is None else self.total_P + message.total_P
        for number in numbers:
            item = items[number]
            item.state, item.arrived_s = State.HERE, self._clock()
