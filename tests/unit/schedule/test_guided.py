"""Selections that learn: whom they choose after what, and that they go on from a snapshot."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedsim.aggregation.rule import NO_TASK
from fedsim.config import PiscesSelection, TiflSelection
from fedsim.schedule.guided import PiscesChoice, TiflChoice
from fedsim.schedule.selection import AlwaysThere, Domain
from fedsim.types import Feedback, TaskReport


def told(client: int, loss: float, n_samples: int = 10, tau: int = 0, base: int = 0) -> Feedback:
    report = TaskReport(0, 1, n_samples, 1, loss, 0.0, 1.0, 0.0)
    return Feedback(NO_TASK._replace(client=client, base_version=base), report, tau, 1.0, 1.0, 0)


def pisces(**keys: Any) -> PiscesChoice:
    return PiscesChoice(PiscesSelection(kind="pisces", **keys), 3, AlwaysThere())


def test_pisces_explores_everybody_once() -> None:
    choice, domain = pisces(explore=1.0, decay=1.0), Domain(30)
    assert sorted(choice.choose(domain, task, 0.0) or 0 for task in range(30)) == list(range(30))


def test_pisces_takes_the_greatest_utility() -> None:
    choice, domain = pisces(explore=1.0, decay=1.0), Domain(4)
    for task in range(4):
        choice.choose(domain, task, 0.0)
    # 10 x 2, 40 x 1 x (1 + 3)^-.5, 10 x 3 x (1 + 0)^-.5; client 3 was chosen, but is not known yet: their mean
    for feedback in (told(0, 2.0), told(1, 1.0, 40, tau=3), told(2, 3.0)):
        choice.learned(feedback)
    order = []
    for task in range(4, 8):
        chosen = choice.choose(domain, task, 0.0)
        assert chosen is not None
        order.append(chosen)
        domain.take(chosen)
    assert order == [2, 3, 0, 1]
    assert choice.choose(domain, 8, 0.0) is None


def test_pisces_averages_the_last_staleness_only() -> None:
    choice, domain = pisces(window=1), Domain(2)
    for task in range(2):
        chosen = choice.choose(domain, task, 0.0)
        assert chosen is not None
        domain.take(chosen)
    for position in range(2):
        domain.release(position)
    for feedback in (told(0, 1.0, tau=8), told(1, 1.0, tau=3), told(0, 1.0, tau=0, base=4)):
        choice.learned(feedback)
    assert choice.choose(domain, 9, 0.0) == 0


def test_pisces_explores_less_with_the_versions() -> None:
    choice = pisces(explore=0.9, decay=0.5, explore_min=0.1)
    domain = Domain(2000)
    choice.choose(domain, 0, 0.0)
    first = next(iter(choice._chosen))
    choice.learned(told(first, 1.0, tau=0, base=99))
    for task in range(1, 500):
        choice.choose(domain, task, 0.0)
    assert 25 <= len(choice._chosen) <= 80, "about a tenth of 500"


TIERS = [np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([6, 7, 8])]


def tifl(**keys: Any) -> TiflChoice:
    return TiflChoice(TiflSelection(kind="tifl", tiers=3, **keys), 5, AlwaysThere(), TIERS)


def rounds(choice: TiflChoice, n: int, first: int = 0) -> list[set[int]]:
    """The clients of each round of two."""
    found = []
    for start in range(first, first + 2 * n, 2):
        domain, chosen = Domain(9), set()
        choice.begin(start)
        for task in (start, start + 1):
            position = choice.choose(domain, task, 0.0)
            assert position is not None
            domain.take(position)
            chosen.add(position)
        found.append(chosen)
    return found


def test_a_round_of_tifl_is_of_one_tier() -> None:
    counts = Counter()
    for chosen in rounds(tifl(every_rounds=1000), 600):
        (tier,) = {client // 3 for client in chosen}
        assert len(chosen) == 2
        counts[tier] += 1
    assert all(150 <= counts[tier] <= 250 for tier in range(3)), "alike: about 200 each"


def test_tifl_turns_to_the_tier_of_the_greatest_loss() -> None:
    choice = tifl(every_rounds=1)
    for client in range(9):
        choice.learned(told(client, [1.0, 3.0, 2.0][client // 3]))
    counts = Counter(next(iter(chosen)) // 3 for chosen in rounds(choice, 600))
    # ranks 1, 3, 2 of three: 1/6, 3/6, 2/6
    assert counts[1] == pytest.approx(300, abs=45) and counts[2] == pytest.approx(200, abs=45)


def test_tifl_does_not_turn_while_the_loss_falls() -> None:
    choice = tifl(every_rounds=1)
    for i in range(20):
        for client in range(9):
            choice.learned(told(client, (1.0 + client // 3) * 0.9**i))
        rounds(choice, 1, 2 * i)
    assert choice._probabilities == [1 / 3] * 3


def test_tifl_pays_with_credits() -> None:
    counts = Counter(next(iter(chosen)) // 3 for chosen in rounds(tifl(every_rounds=1000, credits=5), 15))
    assert counts == {0: 5, 1: 5, 2: 5}
    counts = Counter(next(iter(chosen)) // 3 for chosen in rounds(tifl(every_rounds=1000, credits=5), 30))
    assert counts == {0: 10, 1: 10, 2: 10}, "with none left, all get theirs anew"


@pytest.mark.parametrize("make", [lambda: tifl(every_rounds=2, credits=9), lambda: pisces()], ids=["tifl", "pisces"])
def test_they_go_on_from_a_snapshot(make: Any) -> None:
    first, domain = make(), Domain(9)
    for task in range(40):
        if task % 4 == 0 and hasattr(first, "begin"):
            first.begin(task)
        position = first.choose(domain, task, 0.0)
        first.learned(told(position, 1.0 / (1 + task), tau=task % 3, base=task))
    second = make()
    second.restore(first.snapshot())
    for task in range(40, 80):
        if task % 4 == 0 and hasattr(first, "begin"):
            first.begin(task)
            second.begin(task)
        assert first.choose(domain, task, 0.0) == second.choose(domain, task, 0.0)
