"""Selections that learn: whom they choose after what, and that they go on from a snapshot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim.aggregation.rule import NO_TASK
from fedsim.config import OortSelection, PiscesSelection, PowerOfChoiceSelection, SyncSchedule, TiflSelection
from fedsim.schedule.building import build_policy
from fedsim.schedule.guided import PiscesChoice, TiflChoice
from fedsim.schedule.schedule import Schedule
from fedsim.schedule.selection import AlwaysThere, Domain
from fedsim.schedule.utility import OortChoice, PowerOfChoice
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


class Since(AlwaysThere):
    """Client k is there since `since_s[k]`; each task takes a second."""

    always_available = False

    def __init__(self, since_s: Sequence[float]) -> None:
        self._since_s = np.array(since_s)

    def available(self, clients: Any, time_s: float) -> Any:
        return self._since_s[clients] <= time_s

    def next_available_s(self, clients: Any, time_s: float) -> Any:
        return np.maximum(self._since_s[clients], time_s)

    def plan_many(self, clients: Any, tasks: Any, n_steps: Any, n_samples: Any, dispatch_s: float) -> Any:
        assert self.available(clients, dispatch_s).all()
        return [(0.0, 1.0, 0.0, dispatch_s + 1.0, False)] * clients.size


def rounds_since(
    since_s: Sequence[float], n: int, work: Any, **keys: Any
) -> tuple[TiflChoice, list[tuple[float, int]]]:
    """The selection, and start and tier of each of the first n rounds of two, where clients are there since then."""
    devices: Any = Since(since_s)
    choice = TiflChoice(TiflSelection(kind="tifl", tiers=3, **keys), 5, devices, TIERS)
    policy = build_policy(SyncSchedule(policy="sync", cohort=2), 9)
    schedule = Schedule(policy, [Domain(9)], choice, work(), devices, learners=[choice])
    found, n_events, tasks = [], 0, schedule.dispatch(0.0)
    while len(found) < n:
        if tasks:
            (tier,) = {task.client // 3 for task in tasks}
            assert len(tasks) == 2
            found.append((tasks[0].dispatch_s, tier))
        event = schedule.peek()
        n_events += 1
        if event is None:
            break
        assert n_events <= 4 * n, f"turns round at {event.time_s} s"
        schedule.step(event)
        tasks = schedule.dispatch(event.time_s) if schedule.instant_over() else []
    return choice, found


AWAY_S, NEVER_S = [0.0] * 3 + [100.0] * 3 + [0.0] * 3, [0.0] * 3 + [math.inf] * 3 + [0.0] * 3


def test_tifl_waits_for_a_tier_that_is_away(work: Callable[..., Any]) -> None:
    """The tiers are those that are drawn where everybody is there, and pay as often; rounds start later."""
    choice, found = rounds_since(AWAY_S, 40, work, every_rounds=7, credits=5)
    other, there = rounds_since([0.0] * 9, 40, work, every_rounds=7, credits=5)
    assert [tier for _, tier in found] == [tier for _, tier in there]
    assert choice._round == other._round == 40 and choice._credits == other._credits
    first = [tier for _, tier in found].index(1)
    assert [start_s for start_s, _ in found] == [i if i < first else 100.0 + i - first for i in range(40)]


def test_tifl_leaves_a_tier_that_never_comes(work: Callable[..., Any]) -> None:
    """Its rounds go to the others alike, at once, and it pays for none."""
    choice, found = rounds_since(NEVER_S, 300, work, every_rounds=1000)
    assert [start_s for start_s, _ in found] == list(range(300)) and choice._round == 300
    counts = Counter(tier for _, tier in found)
    assert counts[0] == pytest.approx(150, abs=30) and counts[0] + counts[2] == 300
    choice, found = rounds_since(NEVER_S, 25, work, every_rounds=1000, credits=5)
    assert Counter(tier for _, tier in found[:20]) == {0: 10, 2: 10}, (
        "with none left of those that come, all get theirs"
    )
    assert choice._credits[1] == 5.0


def test_tifl_of_whom_nobody_ever_comes(work: Callable[..., Any]) -> None:
    assert rounds_since([math.inf] * 9, 5, work)[1] == []


def test_tifl_goes_on_from_a_snapshot_taken_while_it_waits() -> None:
    first = TiflChoice(TiflSelection(kind="tifl", tiers=3), 5, Since([50.0] * 9), TIERS)
    first.begin(0)
    second = TiflChoice(TiflSelection(kind="tifl", tiers=3), 5, Since([50.0] * 9), TIERS)
    second.restore(first.snapshot())
    for choice in (first, second):
        choice.begin(0)
        assert choice._round == 1
    assert first.choose(Domain(9), 0, 50.0) == second.choose(Domain(9), 0, 50.0)


SIZES = np.array([10, 20, 30, 40])


def powers(candidates: int, sizes: Any = SIZES) -> PowerOfChoice:
    config = PowerOfChoiceSelection(kind="power-of-choice", candidates=candidates)
    return PowerOfChoice(config, 3, AlwaysThere(), sizes)


def opening(choice: Any, n: int, first: int, domain: Domain) -> list[int]:
    """The clients of a round of n tasks."""
    chosen: list[int] = []
    choice.begin(first)
    for task in range(first, first + n):
        position = choice.choose(domain, task, 0.0)
        assert position is not None
        domain.take(position)
        chosen.append(position)
    return chosen


def test_power_of_choice_takes_the_greatest_losses_of_all() -> None:
    """Everybody is a candidate: client 2 never reported, so it comes first; then 3.0, 2.0, 1.0."""
    choice = powers(4)
    for feedback in (told(0, 1.0), told(1, 3.0), told(3, 2.0)):
        choice.learned(feedback)
    assert opening(choice, 4, 0, Domain(4)) == [2, 1, 3, 0]


def test_power_of_choice_draws_candidates_by_samples() -> None:
    """One candidate: n_k / n. Of two, the first by 1/10, 2/10, 3/10, 4/10, and the greater loss is taken."""
    one, two = powers(1), powers(2)
    for client in range(4):
        two.learned(told(client, 4.0 - client))  # client 0 has the greatest
    first = Counter(opening(one, 1, task, Domain(4))[0] for task in range(4000))
    assert [first[c] / 4000 for c in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.025)
    counts = Counter(opening(two, 1, task, Domain(4))[0] for task in range(4000))
    p = SIZES / SIZES.sum()
    among = p[0] + sum(p[k] * p[0] / (1 - p[k]) for k in (1, 2, 3))  # client 0 is first, or second after another
    assert counts[0] / 4000 == pytest.approx(among, abs=0.025)


def test_power_of_choice_keeps_to_the_candidates_of_a_round() -> None:
    """Two of three candidates: the one that is left has the least loss of them."""
    choice, losses = powers(3, np.full(30, 5)), np.random.default_rng(1).permutation(30).astype(float)
    for client in range(30):
        choice.learned(told(client, losses[client]))
    for task in range(0, 40, 2):
        best = opening(choice, 2, task, Domain(30))
        three = opening(choice, 3, task, Domain(30))
        assert best == three[:2] and losses[three[0]] > losses[three[1]] > losses[three[2]]


def test_power_of_choice_skips_clients_without_samples() -> None:
    assert set(opening(powers(3, np.array([0, 5, 0, 5])), 2, 0, Domain(4))) == {1, 3}


def oort(n_slots: int = 1, **keys: Any) -> OortChoice:
    return OortChoice(OortSelection(kind="oort", **keys), 3, AlwaysThere(), n_slots)


def took(client: int, loss: float, took_s: float, base: int = 0) -> Feedback:
    """An update of ten samples after so many seconds."""
    feedback = told(client, loss, base=base)
    return feedback._replace(task=feedback.task._replace(dispatch_s=0.0), arrival_s=took_s)


def test_oort_explores_its_share_of_a_round() -> None:
    choice, domain = oort(10, explore=0.7, decay=1.0), Domain(40)
    old = opening(choice, 10, 0, domain)  # nobody is known: all explore
    for position in old:
        domain.release(position)
    new = set(opening(choice, 10, 10, domain)) - set(old)
    assert len(new) == 7


def test_oort_utilities_by_hand() -> None:
    """U = 10 x loss: 20, 40, 10, 30. Times 1, 8, 2, 4: T, the median, is 2. No uncertainty at version 0: ln 1 = 0."""
    choice = oort(clip=1.0)
    for client, (loss, time_s) in enumerate([(2.0, 1.0), (4.0, 8.0), (1.0, 2.0), (3.0, 4.0)]):
        choice.learned(took(client, loss, time_s))
    assert choice._all_utilities(range(4)).tolist() == [20.0, 40 * (2 / 8) ** 2, 10.0, 30 * (2 / 4) ** 2]
    # the utility of a client that is chosen and not known yet: their mean
    assert choice._all_utilities([9]).tolist() == [(20.0 + 2.5 + 10.0 + 7.5) / 4]
    # cut at the median of 10 20 30 40: 20
    cut = oort(clip=0.5, alpha=0.0)
    for client, loss in enumerate([2.0, 4.0, 1.0, 3.0]):
        cut.learned(took(client, loss, 1.0))
    assert cut._all_utilities(range(4)).tolist() == [20.0, 20.0, 10.0, 20.0]


def test_oort_is_uncertain_of_whom_it_has_not_seen_for_long() -> None:
    choice = oort(clip=1.0, alpha=0.0)
    choice.learned(took(0, 1.0, 1.0, base=0))  # went into version 1
    choice.learned(took(1, 1.0, 1.0, base=8))  # into version 9: R = 9
    expected = [10.0 + np.sqrt(0.1 * np.log(9) / 1), 10.0 + np.sqrt(0.1 * np.log(9) / 9)]
    assert choice._all_utilities([0, 1]).tolist() == pytest.approx(expected)


def test_oort_draws_among_the_best_by_utility() -> None:
    """Two slots of a round, none of which explores: rank 2 has utility 30, so 28.5 and more are admitted."""
    choice = oort(2, explore=0.0, explore_min=0.0, clip=1.0, alpha=0.0)
    for client, loss in enumerate([3.0, 6.0, 2.8, 2.9, 0.1]):
        choice._chosen[client] = 1
        choice.learned(took(client, loss, 1.0))
    counts = Counter(opening(choice, 2, task, Domain(5))[0] for task in range(0, 6000, 2))
    total = 30 + 60 + 29
    assert [counts[c] / 3000 for c in range(5)] == pytest.approx([30 / total, 60 / total, 0, 29 / total, 0], abs=0.03)


def test_oort_relaxes_its_pace_where_there_is_less_to_teach() -> None:
    choice = oort(window=2, preferred=0.5, pacer_step=0.25)
    for version, loss in enumerate([4.0, 4.0, 3.0, 3.0, 5.0, 5.0, 1.0]):  # 8 then 6: relaxed; 6 then 10: not
        choice.learned(took(0, loss, 1.0, base=version))
    assert choice._quantile == 0.75


def test_oort_lets_go_of_who_was_chosen_often() -> None:
    choice = oort(most_tasks=2, explore=0.0, explore_min=0.0)
    counts = Counter(opening(choice, 1, task, Domain(5))[0] for task in range(10))
    assert counts == dict.fromkeys(range(5), 2)


@pytest.mark.parametrize(
    "make",
    [lambda: tifl(every_rounds=2, credits=9), lambda: pisces(), lambda: powers(3, np.arange(1, 10)), lambda: oort(4)],
    ids=["tifl", "pisces", "power-of-choice", "oort"],
)
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
