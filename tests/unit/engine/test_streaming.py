"""An update that is applied while it comes in: what is read has come, and a death on the way changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedsim import aggregation
from fedsim.aggregation import Arrival
from fedsim.comm.pieces import Incoming, Receiving
from fedsim.config import FedAsyncRule, FedBuffRule
from fedsim.engine.items import State
from fedsim.engine.streaming import Begun, Streaming
from fedsim.errors import LostError
from fedsim.types import Float32, TaskReport, Update

N = 600_000
REPORT = TaskReport(4, 1, 7, 1, 0.0, 0.0, 0.0, 0.0)


class Wire:
    """A supply whose one update comes in by pieces at each look, until its worker dies after `dies_at` values."""

    def __init__(self, vector_P: Float32, dies_at: int | None = None, is_last: bool = False) -> None:
        self.vector_P, self._dies_at, self._is_last = vector_P, dies_at, is_last
        self.row_P = np.full(N, np.nan, np.float32)
        self.n_here = 0
        self.item: Any = SimpleNamespace(state=State.POSTED, row_P=None, task=SimpleNamespace(task=4))

    def listen(self, wait: bool = True) -> bool:
        if self._dies_at is not None and self.n_here >= self._dies_at:
            self.item.state = State.READY
        else:
            stop = min(self.n_here + 70_001, N)
            self.row_P[self.n_here : stop], self.n_here = self.vector_P[self.n_here : stop], stop
        return False

    def bring(self, number: int, while_waiting: Callable[[], None]) -> None:
        while_waiting()
        self.item.state, self.item.row_P = State.HERE, self.vector_P.copy()

    def update(self) -> Update:
        mine: Any = self  # a supply, as far as it is used
        return Streaming(mine, Begun(self.item, REPORT, Incoming(REPORT, self.row_P, lambda: self.n_here))).update()

    def check_living(self) -> None:
        if self._is_last:
            raise LostError("lost: no worker is left")


@pytest.mark.parametrize("rule_name", ["fedbuff", "fedasync"])
@pytest.mark.parametrize("dies_at", [None, 0, 300_000, 590_000])
@pytest.mark.parametrize("is_hastened", [False, True])
def test_the_bits_of_an_update_that_is_here(rule_name: str, dies_at: int | None, is_hastened: bool) -> None:
    draws = np.random.default_rng(1)
    base_P, first_P, second_P = (draws.standard_normal(N, dtype=np.float32) for _ in range(3))
    config: Any = FedBuffRule(rule="fedbuff") if rule_name == "fedbuff" else FedAsyncRule(rule="fedasync")
    rule = aggregation.build(config)
    hastened = aggregation.build(config)
    assert rule.streams
    if is_hastened:
        hastened.hasten()

    def versions(rule: Any, update: Callable[[Float32], Update]) -> Iterator[Float32]:
        state = rule.init(base_P)
        for _ in range(2):
            state, _ = rule.accumulate(state, update(first_P), Arrival(2))
            state, _, made_P = rule.complete(state, update(second_P), Arrival(1))
            yield made_P

    def streamed(vector_P: Float32) -> Update:
        return Wire(vector_P, dies_at).update()

    whole = versions(rule, lambda vector_P: Update(REPORT, vector_P))
    for whole_P, streamed_P in zip(whole, versions(hastened, streamed), strict=True):
        assert np.array_equal(whole_P, streamed_P)


def test_nobody_waits_for_an_update_that_nobody_can_train() -> None:
    update = Wire(np.ones(N, np.float32), dies_at=100_000, is_last=True).update()
    assert update.ready is not None
    update.ready(7000)
    with pytest.raises(LostError):
        update.ready(N)


def test_only_rules_that_ask_are_given_what_is_not_here_yet() -> None:
    streams = {name for name in ("fedavg", "fedasync", "fedbuff", "fedavgm", "k-async") if _rule(name).streams}
    assert streams == {"fedavg", "fedasync", "fedbuff", "fedavgm", "k-async"}
    assert not any(_rule(name).streams for name in ("scaffold", "fednova", "port", "krum", "aced", "dc-asgd"))


def _rule(name: str) -> Any:
    from pydantic import TypeAdapter

    from fedsim.config import AggregationConfig

    extra = {"krum": {"attackers": 1}}.get(name, {})
    return aggregation.build(TypeAdapter(AggregationConfig).validate_python({"rule": name, **extra}))


class Posted:
    """A receive that is complete once it has been asked for `n` times."""

    def __init__(self, n: int) -> None:
        self._n = n

    def Test(self) -> bool:
        self._n -= 1
        return self._n < 0


def test_two_receives_are_posted_at_a_time() -> None:
    posted: list[int] = []

    def receive(part: Any) -> Posted:
        posted.append(part.size)
        return Posted(1)

    receiving = Receiving([np.empty(10)], receive, 4)
    assert receiving.is_in_pieces and not receiving.is_posted
    assert not receiving.advance() and posted == [4, 4] and receiving.n_here == 0
    assert not receiving.advance() and posted == [4, 4, 2] and receiving.n_here == 4 and receiving.is_posted
    assert not receiving.advance() and receiving.n_here == 8
    assert receiving.advance() and receiving.n_here == 10 and receiving.requests == []
    assert Receiving([np.empty(0)], receive).advance()
