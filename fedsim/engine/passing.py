"""The supply of runs that may have a fast lane: while that is open, it looks after the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedsim.comm.transport import Failed, Lost, Message, Trained
from fedsim.engine.items import Item, State
from fedsim.engine.lane import Depot, Lane
from fedsim.engine.supply import Supply
from fedsim.schedule.schedule import Plain


def _nothing() -> None:
    return None


class SupplyWithLane(Supply):
    """See `Supply`. Desks, shelves and messages are the same on both ways; at one that is not plain the lane ends."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._lane: Lane | None = None
        self._leave_lane: Callable[[], None] = _nothing

    def open_lane(self, lane: Lane, plain: Plain, leave: Callable[[], None]) -> bool:
        """Hands all tasks over to the lane, if it takes them; it calls `leave` when something is not plain any more."""
        depot = Depot(self._desks, self._living, self._shelves, self._host_of, self._post)
        if not lane.open(plain, list(self._items.values()), depot):
            return False
        self.give_up()
        self._lane, self._leave_lane = lane, leave
        return True

    def leave_lane(self) -> None:
        """From now on tasks are looked after here."""
        self._lane, self._leave_lane = None, _nothing

    def take_over(self, items: Sequence[Item]) -> None:
        """The tasks that the lane looked after, whose versions are retained."""
        for item in items:
            self._items[item.task.task] = item
            if item.state is State.READY:
                self._enqueue(item)
            else:
                self._n_server_rows += 1

    def give_up(self) -> None:
        """The lane looks after all tasks from here on, and their versions."""
        self._items.clear()
        self._shared.clear()
        for desk in self._desks:
            desk.ready.clear()
        self._n_server_rows = 0

    def pump(self, due: Item | None = None) -> None:
        """See `Supply.pump`."""
        if self._lane is None:
            super().pump(due)
        else:
            self._n_unserviced = 0
            self._lane.pump(is_waiting=False)

    def _handle(self, message: Message) -> None:
        if self._lane is not None:
            if isinstance(message, Trained):
                self._lane.trained(message)
                self._rest.note_group(message.train_s)
                return
            if isinstance(message, Failed | Lost):
                self._leave_lane()
        super()._handle(message)
