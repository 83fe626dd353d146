"""Sums that workers make: which tasks a total stands for."""

from __future__ import annotations

import numpy as np

from fedsim.aggregation.rule import NO_TASK
from fedsim.comm.transport import Command, Summed
from fedsim.engine.adding import Adding
from fedsim.engine.items import Desk, Item, State


def held(number: int, worker: int) -> Item:
    return Item(NO_TASK._replace(task=number), (0.0, 0.0, number), State.HELD, worker)


def test_a_total_stands_for_what_was_added_before_it_was_asked_for() -> None:
    sent: list[tuple[int, Command]] = []
    adding = Adding(lambda worker, command: sent.append((worker, command)), lambda: 0.0)
    items = {1: held(1, 0), 2: held(2, 1)}
    desks = [Desk(), Desk()]
    adding.begin({1: 0.5, 2: 0.25})
    adding.add(items.values(), desks)
    adding.ask(list(items.values()))
    assert [worker for worker, command in sent if command.total] == [0, 1]

    adding.asked.pop(1)  # it dies, and the other one trains its task before the total that it was asked for is here
    items[2].state, items[2].worker = State.HELD, 0
    adding.add([items[2]], desks)
    adding.ask([items[1], items[2]])
    adding.summed(Summed(0, np.array([10])), items)
    assert [item.state for item in items.values()] == [State.HERE, State.SUMMED]

    adding.ask([items[2]])
    adding.summed(Summed(0, np.array([7])), items)
    assert [item.state for item in items.values()] == [State.HERE, State.HERE]
    assert [worker for worker, command in sent if command.total] == [0, 1, 0]
    total = adding.end()
    assert total is not None and total.tolist() == [17]
