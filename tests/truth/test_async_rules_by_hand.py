"""First steps of the asynchronous family, worked out on paper, and the laws that every rule obeys, of whatever family.

The numbers are exact in binary where they can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim import snapshot
from fedsim.aggregation import Arrival, Facts, Rule, build, published
from fedsim.aggregation.aflcs import compensation, mixing, predecessor_mixing
from fedsim.aggregation.rule import NO_TASK
from fedsim.config import AggregationConfig
from fedsim.types import TaskReport, Update


@dataclass
class Came:
    """An update as it comes in: from a client's base version, with its staleness and samples."""

    vector: list[float]
    client: int = 0
    tau: int = 0
    n: int = 1
    base: list[float] | None = None
    version: int = 0
    steps: int = 1
    rate: float = 1.0


class Case:
    """A rule with its state; `take` makes a version of some arrivals."""

    def __init__(self, start: list[float], facts: Facts | None = None, **plain: Any) -> None:
        self.rule: Rule = build(TypeAdapter(AggregationConfig).validate_python(plain), facts or Facts())
        self.state = self.rule.init(np.array(start, np.float32))
        self.said: list[Any] = []
        self.made_P: Any = None

    def take(self, *came: Came, completes: bool = False) -> list[float]:
        self.said = []
        for number, each in enumerate(came, 1):
            task = NO_TASK._replace(
                client=each.client,
                base_version=each.version - each.tau,
                n_steps=each.steps,
                learning_rate=each.rate,
                n_samples=each.n,
            )
            base_P = published(self.state) if each.base is None else np.array(each.base, np.float32)
            arrival = Arrival(each.tau, task, each.version, 0.0, base_P)
            report = TaskReport(0, 0, each.n, each.steps, 1.0, 1.0, 0.0, 0.0)
            update = Update(report, np.array(each.vector, np.float32))
            if completes and number == len(came):
                self.state, diagnostics, self.made_P = self.rule.complete(self.state, update, arrival)
            else:
                self.state, diagnostics = self.rule.accumulate(self.state, update, arrival)
            self.said.append(diagnostics)
        if not completes:
            self.state = self.rule.commit(self.state)
        return self.state.weights_P.tolist()


FOUR = Facts(n_clients=4, count_samples=lambda: 40)


# ------------------------------------------------------------------------------------------------ caches


def test_mifa_is_the_mean_of_the_table_whoever_came() -> None:
    case = Case([0.0, 0.0], FOUR, rule="mifa")
    # ([4, 0] + [0, 8]) / 4; then client 0's entry is [8, 8]: ([8, 8] + [0, 8]) / 4 more
    assert case.take(Came([4, 0], 0), Came([0, 8], 1)) == [1.0, 2.0]
    assert case.take(Came([8, 8], 0)) == [3.0, 6.0]


def test_ace_waits_for_everybody_and_then_steps_at_each_arrival() -> None:
    case = Case([1.0], replace(FOUR, n_clients=2), rule="ace")
    assert case.take(Came([4], 0)) == [1.0]
    assert case.take(Came([8], 0, version=1)) == [1.0]
    assert case.take(Came([2], 1, tau=2, version=2)) == [6.0]  # 1 + (8 + 2) / 2
    assert case.take(Came([-2], 1, version=3)) == [9.0]  # + (8 - 2) / 2


def test_ace_without_warm_up_counts_the_silent_as_zero() -> None:
    assert Case([1.0], replace(FOUR, n_clients=2), rule="ace", warm_up=False).take(Came([4], 0)) == [3.0]


def test_aced_averages_those_whose_bases_are_recent() -> None:
    case = Case([0.0], FOUR, rule="aced", bound=2)
    assert case.take(Came([4], 0, version=0)) == [4.0]  # base 0, A = {0}
    assert case.take(Came([2], 1, version=1)) == [7.0]  # base 1: + (4 + 2) / 2
    assert case.take(Came([6], 2, tau=1, version=3)) == [11.0]  # base 2; client 0 is 3 behind: + (2 + 6) / 2
    assert case.said[0].scalars == (2.0,)
    assert case.take(Came([100], 3, tau=3, version=5)) == [11.0]  # its own base is 3 behind, and so are 1 and 2
    assert case.said[0] == (0.0, (0.0,), 0)


def test_ca2fl_calibrates_with_what_was_cached_before_the_buffer() -> None:
    case = Case([0.0], FOUR, rule="ca2fl")
    # h = 0: v = (4 + 2) / 2 = 3; then h_0 = 4, h_1 = 2, h = 6 / 4
    assert case.take(Came([4], 0), Came([2], 1)) == [3.0]
    # v = ((8 - 4) + (2 - 0)) / 2 + 1.5 = 4.5; h_0 = 8, h_2 = 2: h = (8 + 2 + 2) / 4 = 3
    assert case.take(Came([8], 0), Came([2], 2)) == [7.5]
    # twice from client 0: both against h_0 = 8: v = ((0 - 8) + (4 - 8)) / 2 + 3 = -3; the later is cached
    assert case.take(Came([0], 0), Came([4], 0)) == [4.5]
    assert case.state.rows[0].tolist() == [4.0] and case.state.mean_P.tolist() == [2.0]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ local models


def test_fedfa_waits_for_its_queue_and_then_averages_it() -> None:
    case = Case([1.0], rule="fedfa", queue=2)
    assert case.take(Came([4])) == [1.0]
    assert case.take(Came([8])) == [6.0]
    assert case.take(Came([2])) == [5.0]


def test_aso_fed_holds_the_weighted_mean_of_the_last_local_models() -> None:
    case = Case([8.0], FOUR, rule="aso-fed")
    # + 10/40 (4 - 8); + 20/40 (16 - 8); then + 10/40 (12 - 4): w = 8 + .25 (12 - 8) + .5 (16 - 8)
    assert case.take(Came([4], 0, n=10)) == [7.0]
    assert case.take(Came([16], 1, n=20, tau=1)) == [11.0]
    assert case.take(Came([12], 0, n=10)) == [13.0]


def test_safa_picks_bypasses_and_deprecates() -> None:
    facts = Facts(n_clients=4, count_samples=lambda: 40, n_updates=1, max_lag=1)
    case = Case([0.0], facts, rule="safa")
    # quota 1: client 0 is picked: 10/40 * 8 = 2; client 1 is undrafted and waits in the cache
    assert case.take(Came([8], 0, n=10), Came([16], 1, n=10, version=0)) == [2.0]
    # version 2: client 2's 4 counts, and client 1's 16 from before: 2 + 1 + 4 = 7. Client 3 was 2 behind: its w_0 -> 7
    assert case.take(Came([4], 2, n=10, version=1)) == [7.0]
    # version 3: 7 + 10/40 * (7 - 0) for client 3, + 10/40 * (12 - 8) for client 0
    assert case.take(Came([12], 0, n=10, version=2)) == [9.75]


def test_fedat_weighs_the_slow_tier_by_the_rounds_of_the_fast_one() -> None:
    facts = Facts(n_clients=4, count_samples=lambda: 40, n_tiers=2, tier_of=lambda client: client // 2)
    case = Case([1.0], facts, rule="fedat")
    assert case.take(Came([4], 0, n=10), Came([8], 1, n=30)) == [1.0]  # tier 0 is at 7; tier 1 has not reported
    assert case.take(Came([12], 0, n=10)) == [1.0]  # tier 0 at 12, two rounds
    assert case.take(Came([3], 2, n=10)) == [6.0]  # T = 3: tier 0 weighs 1/3, tier 1 2/3: 12/3 + 3 * 2/3
    case = Case([1.0], replace(facts, n_tiers=1, tier_of=lambda client: 0), rule="fedat")
    assert case.take(Came([4], 0, n=10), Came([8], 1, n=30)) == [7.0]


# ------------------------------------------------------------------------------------------------ directions


def test_port_weighs_by_cosine_and_staleness() -> None:
    case = Case([4.0, 0.0], rule="port")
    # fresh: cos := 1: 1 + 3 = 4. Stale by 10: the server went [4, 0], the client [0, 2]: cos 0: .5 + 3 * 10/20 = 2
    found = case.take(Came([3, 0], tau=0), Came([0, 3], tau=10, base=[0.0, 0.0]))
    assert [said.weight for said in case.said] == [4.0, 2.0]
    assert found == pytest.approx([4.0 + 4 * 3 / 6, 1.0], rel=1e-15)
    assert Case([4.0, 0.0], rule="port").take(Came([-2, 0], tau=10, n=4, base=[0.0, 0.0]))[0] == 2.0
    opposite = Case([4.0, 0.0], rule="port")
    opposite.take(Came([-2, 0], tau=10, n=4, base=[0.0, 0.0]))
    assert opposite.said[0].weight == 4 * 1.5 and opposite.said[0].scalars == (-1.0,)


def test_wkafl_keeps_what_agrees_and_drops_what_does_not() -> None:
    case = Case([0.0, 0.0], rule="wkafl")
    # tau 1 each, so g~ = (3 * [2, 0] + [-2, 0]) / 4 = [1, 0]; the last one disagrees, the others have cosine 1
    found = case.take(*[Came([2, 0])] * 3, Came([-2, 0]))
    assert found == pytest.approx([2.0 / 1.1, 0.0], rel=1e-15)
    # now every g_i is D_i + .1 [1, 0]; one update [0, 1.1] at tau 3 (staleness 2): g~ is it itself
    found = case.take(Came([0, 1.0], tau=2, version=1))
    assert found == pytest.approx([2.0 / 1.1 + 0.1 / 1.3, 1.0 / 1.3], rel=1e-6)


def test_wkafl_takes_the_estimate_where_none_is_left_and_clips() -> None:
    case = Case([0.0, 0.0], rule="wkafl", clip_norm=1.0, threshold=0.9)
    # [3, 4] -> [.6, .8], [0, -2] -> [0, -1]; g~ = [.3, -.1], cosines .316 and .316: none above .9: the estimate
    assert case.take(Came([3, 4]), Came([0, -2])) == pytest.approx([0.3 / 1.1, -0.1 / 1.1], rel=1e-6)


def test_wkafl_clips_to_the_estimate_in_its_second_stage() -> None:
    case = Case([0.0, 0.0], rule="wkafl", second_stage_from=0, second_clip=0.5, rate_decay=0.0)
    # g~ = [2, 0]; both agree; each is clipped to length .5 * 2 = 1
    assert case.take(Came([3, 0]), Came([1, 0])) == pytest.approx([1.0, 0.0], rel=1e-15)


def test_kafl_weighs_by_deviation_and_frequency() -> None:
    case = Case([2.0, 0.0], rule="kafl", beta=math.log(2.0))
    # deviations 8/16 - 1 and 4/8 - 1, both of one update of two: n 2^(-.5 / .5), so by samples
    assert case.take(Came([4, 0], 0, n=3), Came([2, 2], 1, n=1)) == pytest.approx([3.5, 0.5])
    assert [said.scalars for said in case.said] == [(-0.5,), (-0.5,)]
    assert [said.weight for said in case.said] == [3.0, 1.0]
    # client 0 has come twice, client 2 once: each has the other's share, 1/3 and 2/3. Deviations 1/2 - 1, 1/3 - 1:
    # 2^(-.5 * 3) and 2^(-2/3 * 3/2), which is sqrt(2) times as much
    part = math.sqrt(2.0) / (1.0 + math.sqrt(2.0))
    found = case.take(Came([7, 1], 0), Came([10.5, 1.5], 2, tau=1))
    assert found == pytest.approx([7 + 3.5 * part, 1 + 0.5 * part])


def test_kafl_mirrors_the_order_of_counts() -> None:
    case = Case([1.0], rule="kafl", beta=math.log(2.0))
    for client, times in ((1, 2), (2, 2), (3, 4)):  # with the next one each: 1, 3, 3 and 5
        for _ in range(times):
            case.take(Came([1.0], client))
    # 1 mirrors 5, 5 mirrors 1, and both of 3 the one that is third from below, 3: shares of 12. Deviations 1/2 - 1
    case.take(*[Came([2.0], client) for client in range(3)], Came([4 / 3], 3))  # that of the last 3/4 - 1
    p = [2 ** (-0.5 * 12 / 5), 2 ** (-0.5 * 12 / 3), 2 ** (-0.5 * 12 / 3), 2 ** (-0.25 * 12 / 1)]
    assert case.state.weights_P.tolist() == pytest.approx([2 - 2 / 3 * p[3] / sum(p)], rel=1e-6)


def test_kafl_mixes_by_eta_and_takes_models_of_zeros_or_far_away() -> None:
    case = Case([8.0], rule="kafl", server_learning_rate=0.25)
    assert case.take(Came([0.0], 0)) == [6.0]
    # deviations of 6e6 and 12e6: both exponentials vanish beside each other's, one is left
    assert case.take(Came([1e-6], 0), Came([5e-7], 0)) == pytest.approx([4.5])


def test_async_fed_ed_steps_by_distance_and_asks_for_steps() -> None:
    case = Case([3.0, 4.0], rule="async-fed-ed", rate=2.0, eps=1.0, kappa=2.0, target=3.0)
    # the server went [3, 4], 5 long, the client [0, 2]: g = 2.5, step 2 / 3.5; K = 10 + floor(2 * .5) = 11
    found = case.take(Came([0, 2], tau=1, base=[0.0, 0.0], steps=10))
    assert found == pytest.approx([3.0, 4.0 + 2 * 2 / 3.5])
    assert case.said[0].scalars == (2.5, 11.0) and case.said[0].next_steps == 11
    # fresh: g = 0, step lambda / eps = 2; K = 1 + floor(6) = 7
    assert Case([1.0], rule="async-fed-ed", rate=2.0).take(Came([1])) == [3.0]
    # too late: g = 5 / .5 = 10: K = 3 + floor(2 * -7) < 1
    case = Case([5.0], rule="async-fed-ed", kappa=2.0)
    case.take(Came([0.5], tau=1, base=[0.0], steps=3))
    assert case.said[0].next_steps == 1
    case = Case([5.0], rule="async-fed-ed")
    assert case.take(Came([0.0], tau=1, base=[0.0], steps=3)) == [5.0] and case.said[0].next_steps == 0


def test_dc_asgd_compensates_stale_steps() -> None:
    case = Case([3.0], rule="dc-asgd", strength=0.5)
    # eta = .25 * 2: D = 2, moved 3 - 1 = 2: 3 + 2 - .5 / .5 * 4 * 2 = -3
    assert case.take(Came([2], tau=1, base=[1.0], steps=2, rate=0.25)) == [-3.0]
    assert case.take(Came([2], steps=2, rate=0.25)) == [-1.0]  # fresh: nothing moved


def test_dc_asgd_adaptive() -> None:
    case = Case([3.0], rule="dc-asgd", adaptive=True)
    # g = -D/eta = 4, ms = .05 * 16 = .8: lambda = 2 / sqrt(.8); 3 + 2 - lambda / .5 * 4 * 2
    expected = 5.0 - 2.0 / math.sqrt(0.8 + 1e-7) / 0.5 * 8.0
    assert case.take(Came([2], tau=1, base=[1.0], steps=2, rate=0.25)) == pytest.approx([expected], rel=1e-14)


def test_fadas_takes_steps_of_amsgrad() -> None:
    case = Case([0.0], rule="fadas", server_learning_rate=0.5, eps=1e-3)
    # mean 2; m / (1 - b1) = 2, v / (1 - b2) = 4: 2 / (2 + 1e-3) at tau_max 1
    first = 0.5 * 2.0 / (2.0 + 1e-3)
    assert case.take(Came([1], tau=0), Came([3], tau=1)) == pytest.approx([first], rel=1e-12)
    # mean 0 at tau 4: m = .9 * .2 = .18, over 1 - .81; vmax stays .04, over 1 - .9801; eta / 4
    second = 0.125 * (0.18 / 0.19) / (math.sqrt(0.04 / 0.0199) + 1e-3)
    assert case.take(Came([0], tau=4)) == pytest.approx([first + second], rel=1e-12)


def test_fadas_by_samples_takes_their_mean() -> None:
    """The first step is eta times the sign of the mean: (3 x 1 - 1 x 2) / 4 = 1/4, where equal shares give -1/2."""
    both = [Came([1.0], 0, n=3), Came([-2.0], 1, n=1)]
    settings = {"rule": "fadas", "server_learning_rate": 0.5, "eps": 1e-12}
    assert Case([0.0], **settings).take(*both) == pytest.approx([-0.5])
    case = Case([0.0], **settings, weighting="samples")
    assert case.take(*both) == pytest.approx([0.5]) and [said.weight for said in case.said] == [3.0, 1.0]
    assert float(case.state.first_P[0]) == pytest.approx(0.1 * 0.25)
    case.take(Came([1.0], 0, n=3))  # the next mean is of its own updates alone
    assert float(case.state.first_P[0]) == pytest.approx(0.9 * 0.025 + 0.1)


def test_async_fed_ed_leaves_out_what_is_too_stale_and_shortens_its_clients_tasks() -> None:
    case = Case([3.0, 4.0], rule="async-fed-ed", kappa=2.0, target=3.0, max_staleness=2)
    late = Came([1.0, 0.0], tau=3, base=[0.0, 0.0], version=3, steps=9)
    assert case.take(late) == [3.0, 4.0]
    assert case.said[0].weight == 0.0 and case.said[0].next_steps == 5  # the distance is 5: 9 + floor(2 (3 - 5))
    case.take(replace(late, tau=2))
    assert case.said[0].weight == pytest.approx(1 / 6) and case.said[0].next_steps == 5


def test_k_async_by_samples_takes_their_mean() -> None:
    both = [Came([1.0], 0, n=3), Came([-2.0], 1, n=1)]
    assert Case([0.0], rule="k-async").take(*both) == [-0.5]
    assert Case([0.0], rule="k-async", weighting="samples").take(*both) == [0.25]


def test_fadas_without_bias_correction() -> None:
    case = Case([0.0], rule="fadas", server_learning_rate=1.0, eps=1.0, bias_correction=False, beta2=0.75)
    assert case.take(Came([4])) == pytest.approx([0.4 / (2.0 + 1.0)], rel=1e-12)


def test_pisces_discounts_by_the_mean_of_the_last_staleness() -> None:
    case = Case([0.0], rule="pisces", window=2)
    # client 0: tau 3: 1/2; client 1 fresh: (10 * .5 * 4 + 30 * 2) / 40
    assert case.take(Came([4], 0, tau=3, n=10), Came([2], 1, n=30)) == [2.0]
    # client 0: lags 3, 13 -> mean 8: 1/3; then 13, 3 -> 8 again
    assert case.take(Came([3], 0, tau=13)) == pytest.approx([3.0])
    assert case.take(Came([3], 0, tau=3)) == pytest.approx([4.0])
    assert case.said[0].scalars == (8.0,)


def test_fedcompass_mixes_a_group() -> None:
    case = Case([8.0], FOUR, rule="fedcompass", alpha=0.5)
    # a = .5 / 4 fresh, .5 * .5 / 4 at staleness 3: (1 - .1875) * 8 + .125 * 16 + .0625 * 0
    assert case.take(Came([16], 0), Came([0], 1, tau=3)) == [8.5]
    case = Case([8.0], FOUR, rule="fedcompass", alpha=0.5, weighting="samples")
    assert case.take(Came([16], 0, n=20)) == [10.0]


# ------------------------------------------------------------------------------------------------ AFL-CS

LAYERS = (slice(0, 2), slice(2, 3))


def test_afl_cs_formulas() -> None:
    assert [compensation(lag) for lag in (-1.0, 0.0, 0.5, 1.0, 4.0)] == [0.0, 0.0, 0.5, 1.0, 0.25]
    assert mixing(0.5, 0.5, 0.0) == 0.625 and mixing(0.5, -0.5, 1.0) == 1.0 and mixing(0.25, 1.0, 0.0) == 0.5
    assert predecessor_mixing(0.5, 1.0, 0.0) == 0.5 and predecessor_mixing(0.5, -0.5, 0.0) == 0.25
    assert predecessor_mixing(0.5, 1.0, 1.0) == pytest.approx(0.5 * (1.0 + math.exp(-1.0)))
    assert predecessor_mixing(0.5, -1.0, 1.0) == pytest.approx(0.5 * (1.0 - math.exp(-1.0)))


def test_afl_cs_mixes_layers_by_the_direction_of_the_model() -> None:
    facts = Facts(n_clients=4, count_samples=lambda: 40, layers=LAYERS)
    case = Case([3.0, 4.0, 1.0], facts, rule="afl-cs", planned_updates=1)
    # base 0: layer 0 went [3, 4], the client [4, 3]: s = 24/25; layer 1 went 1, the client -1: s = -1
    # p = 10/40; t = 2, N = 4, u = 0: lag = .5, comp = .5: alpha = (1 + .9216) / 4 * 1.5 and .25 * 1.5
    found = case.take(Came([4, 3, -1], 0, tau=2, n=10, version=2, base=[0.0, 0.0, 0.0]))
    first, second = 1.9216 / 4 * 1.5, 0.375
    assert case.said[0].scalars == pytest.approx((second, first, 0.5))
    assert found == pytest.approx([3 + first, 4 - first, 1 - 2 * second])


def test_afl_cs_clamps_and_counts_a_model_at_rest_as_no_direction() -> None:
    facts = Facts(n_clients=1, count_samples=lambda: 10)
    case = Case([1.0], facts, rule="afl-cs")
    assert case.take(Came([5], n=10)) == [5.0] and case.said[0].weight == 1.0  # p = 1, s = 0


def test_afl_cs_as_released_starts_with_an_alpha_of_two() -> None:
    facts = Facts(n_clients=4, count_samples=lambda: 40)
    case = Case([1.0], facts, rule="afl-cs", mode="released")
    assert not case.rule.needs_base
    # p = 10/10, s = cos(1, 3) = 1: alpha = 2, and no clamp: 1 + 2 * (3 - 1)
    assert case.take(Came([3], 0, n=10)) == [5.0]
    # then p = 30/40, cos = -1: alpha = p: 5 + .75 * (-3 - 5)
    assert case.take(Came([-3], 1, n=30)) == [-1.0]


def test_fedcomp() -> None:
    facts = Facts(n_clients=4, count_samples=lambda: 40)
    case = Case([1.0], facts, rule="afl-cs", mode="fedcomp")
    # one client seen: alpha0 = 1/2; the model is where it was: s = 1: halfway
    assert case.take(Came([3], 0)) == [2.0]
    # the second: alpha0 = 1/3; went +2 against the client's -1: s = -1; t = 4, u = 0: cw = 1/e
    found = case.take(Came([-1], 1, tau=4, version=4, base=[0.0]))
    assert found == pytest.approx([2.0 - 3.0 / 3.0 * (1.0 - math.exp(-1.0))])


# ------------------------------------------------------------------------------------------------ laws

RULES = [get_args(rule.model_fields["rule"].annotation)[0] for rule in get_args(get_args(AggregationConfig)[0])]
NEEDED: dict[str, dict[str, Any]] = {"norm-bound": {"bound": 1.0}}  # keys without a default
ALL: list[dict[str, Any]] = [{"rule": name, **NEEDED.get(name, {})} for name in RULES if name != "user"] + [
    {"rule": "cyclic", "released": True},
    {"rule": "afl-cs", "mode": "released"},
    {"rule": "afl-cs", "mode": "fedcomp"},
    {"rule": "dc-asgd", "adaptive": True},
    {"rule": "fedfa", "queue": 1},
    {"rule": "ace", "warm_up": False},
]


@pytest.mark.parametrize("plain", ALL, ids=str)
def test_a_fresh_update_of_zeros_leaves_a_fresh_model_alone(plain: dict[str, Any]) -> None:
    start = [0.1, -3.7, 1e-3]
    case = Case(start, replace(FOUR, n_clients=1, n_updates=1, layers=LAYERS), **plain)
    nothing = start if case.rule.payload == "model" else [0.0] * 3
    before = published(case.state)
    case.take(Came(nothing, n=40))
    assert np.array_equal(published(case.state), before)


@pytest.mark.parametrize("plain", ALL, ids=str)
def test_without_updates_there_is_no_step(plain: dict[str, Any]) -> None:
    case = Case([1.0, 2.0, -1.0], replace(FOUR, n_updates=1, layers=LAYERS), **plain)
    for client in range(4):
        case.take(Came([1.5, 2.0, -0.5], client, n=10, version=client))
    after = case.state.weights_P.copy()
    case.state = case.rule.commit(case.state)
    assert np.array_equal(case.state.weights_P, after)


def busy(plain: dict[str, Any], n_versions: int = 5) -> Case:
    """A case after some versions of three updates each, stale ones among them."""
    facts = replace(FOUR, n_updates=2, layers=LAYERS, max_lag=2, planned_versions=6)
    case, rng = Case([1.0, 2.0, -1.0], facts, **plain), np.random.default_rng(6)
    for version in range(n_versions):
        case.take(*coming(rng, version))
    return case


def coming(rng: np.random.Generator, version: int) -> list[Came]:
    clients = rng.integers(0, 4, 3).tolist()
    return [
        Came(rng.standard_normal(3).tolist(), client, min(version, k), 10, rng.standard_normal(3).tolist(), version)
        for k, client in enumerate(clients)
    ]


@pytest.mark.parametrize("plain", ALL, ids=str)
def test_a_state_goes_on_from_its_snapshot(plain: dict[str, Any]) -> None:
    case, again = busy(plain), busy(plain, 1)
    snapshot.put(again.state, snapshot.of(case.state))
    later = [coming(np.random.default_rng(7 + version), version) for version in range(5, 9)]
    assert [case.take(*came) for came in later] == [again.take(*came) for came in later]


@pytest.mark.parametrize("plain", ALL, ids=str)
def test_completing_a_version_is_accumulating_committing_and_publishing(plain: dict[str, Any]) -> None:
    case, again = busy(plain), busy(plain)
    *first, last = coming(np.random.default_rng(8), 5)
    case.take(*first, last)
    again.take(*first, last, completes=True)
    assert np.array_equal(case.state.weights_P, again.state.weights_P)
    assert np.array_equal(case.rule.publish(case.state), again.made_P) and case.said == again.said


@pytest.mark.parametrize("tau", [0, 3])
@pytest.mark.parametrize(
    "plain",
    [
        {"rule": "mifa", "server_learning_rate": 0.5},
        {"rule": "ace", "server_learning_rate": 0.25},
        {"rule": "aced", "server_learning_rate": 0.25, "bound": 20},
        {"rule": "ca2fl"},
        {"rule": "dc-asgd", "strength": 0.0},
        {"rule": "aso-fed"},
    ],
    ids=str,
)
def test_quadratic_clients_settle_where_their_mean_gradient_vanishes(plain: dict[str, Any], tau: int) -> None:
    # clients minimise (c/2)(w - o)^2 by one step of rate r from the version tau back: D = -r c (w_base - o), in turn;
    # whoever takes all clients alike rests where sum c (w - o) = 0; ASO-Fed, a mean of local models, does too
    curvature, optimum, rate = [1.0, 4.0, 2.0], [3.0, -1.0, 0.5], 0.02
    facts = Facts(n_clients=3, count_samples=lambda: 30)
    case = Case([0.0], facts, **plain)
    history = [0.0]
    for version in range(3000):
        k, behind = version % 3, min(version, tau)
        base = history[version - behind]
        delta = -rate * curvature[k] * (base - optimum[k])
        vector = base + delta if case.rule.payload == "model" else delta
        came = Came([vector], k, behind, 10, [base], version, 1, rate)
        history.append(case.take(came)[0])
    expected = sum(c * o for c, o in zip(curvature, optimum, strict=True)) / sum(curvature)
    assert np.mean(history[-3:]) == pytest.approx(expected, abs=0.05)
