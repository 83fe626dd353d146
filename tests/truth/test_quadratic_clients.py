"""Every rule on two quadratic clients: its first versions worked out on paper, and where it comes to rest.

Client k minimises F_k = (a_k/2) (w - b_k)^2 with a = 1, 2 and b = 4, 8, and has 3 and 1 samples. A task of one step of
rate 1/4 changes the model by D_0 = (4 - w)/4 and D_1 = (8 - w)/2: from w = 0 by 1 and by 4. The model begins at 0.

`rounds`: both clients make each version. `turns`: one makes a version, then the other from that version; what rests
then is a cycle of two versions. Where a rule takes a mean of the changes with fixed shares p, it rests where
p_0 D_0 + p_1 D_1 = 0: at 5.6 by samples, at 20/3 for equal shares. Where turns move the model by e_k (b_k - w),
w = ((1 - e_1) e_0 b_0 + e_1 b_1) / (1 - (1 - e_0)(1 - e_1)) after client 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedsim.aggregation import Arrival, Facts, build
from fedsim.aggregation.rule import NO_TASK
from fedsim.config import AggregationConfig
from fedsim.types import TaskReport, Update

A, B, SAMPLES, RATE = (1.0, 2.0), (4.0, 8.0), (3, 1), 0.25
BY_SAMPLES, EQUAL = 5.6, 20 / 3
FEDAVG = [1.75, 2.953125]  # (3 + 4)/4; then D = .5625, 3.125: (1.6875 + 3.125)/4 more
MEAN = [2.5, 4.0625]  # (1 + 4)/2; then D = .375, 2.75
WHOLE = [1.0, 4.5]  # each local model as it is: 1; then D_1 = 3.5

RULES = [get_args(rule.model_fields["rule"].annotation)[0] for rule in get_args(get_args(AggregationConfig)[0])]
CLIENTS_TAKE_PART = {"scaffold", "feddyn"}  # on quadratics in test_client_methods_by_hand.py, with their clients


def rest(e_0: float, e_1: float) -> float:
    """Where turns rest after client 1."""
    return ((1 - e_1) * e_0 * B[0] + e_1 * B[1]) / (1 - (1 - e_0) * (1 - e_1))


@dataclass
class Case:
    """A rule's settings, how clients come, the first versions, and the last one."""

    rule: str
    how: str
    first: list[float]
    last: float | None
    sets: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] = (1, 1)
    n_tiers: int = 1
    times: tuple[int, int] = (1, 1)  # how often each client's update comes in a round

    def __str__(self) -> str:
        return " ".join([self.rule, self.how, *(f"{key}={value}" for key, value in self.sets.items())])

    def versions(self, n: int, optima: tuple[float, float] = B) -> list[float]:
        """The first n versions."""
        n_updates = 2 if self.how == "rounds" else 1
        tier_of = (lambda client: client) if self.n_tiers == 2 else (lambda client: 0)
        facts = Facts(2, lambda: sum(SAMPLES), n_updates=n_updates, n_tiers=self.n_tiers, max_lag=5, tier_of=tier_of)
        rule = build(TypeAdapter(AggregationConfig).validate_python({"rule": self.rule, **self.sets}), facts)
        state, made = rule.init(np.zeros(1, np.float32)), []
        for version in range(n):
            w = float(state.weights_P[0])
            coming = [k for k in (0, 1) for _ in range(self.times[k])]
            for k in coming if self.how == "rounds" else (version % 2,):
                change = (1 - (1 - RATE * A[k]) ** self.steps[k]) * (optima[k] - w)
                loss = A[k] / 2 * (w - optima[k]) ** 2
                report = TaskReport(0, 0, SAMPLES[k], self.steps[k], loss, 0.0, abs(change), 0.0)
                sent = np.array([change + (w if rule.payload == "model" else 0.0)], np.float32)
                task = NO_TASK._replace(client=k, n_steps=self.steps[k], learning_rate=RATE, base_version=version)
                arrival = Arrival(0, task, version, 0.0, np.array([w], np.float32))
                state, _ = rule.accumulate(state, Update(report, sent), arrival)
            state = rule.commit(state)
            made.append(float(state.weights_P[0]))
        return made


def opt(second_moment: Any) -> list[float]:
    """Two versions of FedAdam and its kin with eta = b1 = .5, tau = 1: D = 1.75, then (7 - 1.25 w)/4, v_0 = 1."""
    w, m, v, made = 0.0, 0.0, 1.0, []
    for _ in range(2):
        d = (7 - 1.25 * w) / 4
        m, v = 0.5 * m + 0.5 * d, second_moment(v, d * d)
        w += 0.5 * m / (math.sqrt(v) + 1)
        made.append(w)
    return made


OPT = {"server_learning_rate": 0.5, "beta1": 0.5, "beta2": 0.75, "tau": 1.0}
SECOND = 0.9 * 0.1 * 2.5 + 0.1 * 2.3125  # FADAS: m of the second version; its mean change from .5 is (.875 + 3.75)/2
FADAS = [0.5, 0.5 + 0.5 * (SECOND / 0.19) / math.sqrt((0.99 * 0.01 * 6.25 + 0.01 * 2.3125**2) / 0.0199)]
Q = 4 ** (1 / 3)  # q-FedAvg: F_0 D_0 + F_1 D_1 = (4 - w)^3/8 + (8 - w)^3/2 = 0
KAFL = [n * math.exp(-2 * (1 - 1.75 / w)) for n, w in ((3, 2.3125), (1, 4.875))]  # from 1.75, with shares of 1/2
COMP = 0.5 * math.exp(-0.5)  # FedComp: c e^-c for client 1, whose turn comes at t/N - u = .5

CASES = [
    Case("fedavg", "rounds", FEDAVG, BY_SAMPLES),
    Case("fedavg", "rounds", MEAN, EQUAL, {"weighting": "uniform"}),
    Case("fedasync", "turns", [0.5, 2.375], rest(0.125, 0.25), {"alpha": 0.5}),
    Case("fedbuff", "rounds", MEAN, EQUAL),
    Case("k-async", "rounds", MEAN, EQUAL),
    # one dimension: both agree, so the mean, by 1 + .1 x 1; then .1 of the estimate 2.5 is added to each
    Case("wkafl", "rounds", [2.5 / 1.1, (2.5 + 0.25 + 2.5 - 0.375 * 2.5 / 1.1) / 1.1], None),
    Case("port", "rounds", FEDAVG, BY_SAMPLES),  # fresh: every cosine counts as 1
    Case("kafl", "rounds", FEDAVG, BY_SAMPLES, {"beta": 0.0}),
    Case("kafl", "rounds", [1.75, (2.3125 * KAFL[0] + 4.875 * KAFL[1]) / sum(KAFL)], None, {"beta": 1.0}),
    Case("pisces", "rounds", FEDAVG, BY_SAMPLES),
    Case("async-fed-ed", "turns", [0.5, 2.375], rest(0.125, 0.25), {"rate": 0.5}),  # fresh: the step is rate/eps
    Case("fedfa", "turns", [0.0, 2.5, 3.4375], EQUAL, {"queue": 2}),  # (1 + 4)/2; (4 + 2.875)/2
    Case("ca2fl", "rounds", MEAN, EQUAL),  # everybody is in the buffer, so what was cached cancels
    Case("ca2fl", "turns", [1.0, 5.0], EQUAL),  # D_0 = 1, h = 1/2; D_1 = 3.5 + h
    Case("fadas", "rounds", FADAS, EQUAL, {"server_learning_rate": 0.5, "eps": 1e-12}),
    Case("ace", "turns", [0.0, 1.25, 2.421875], EQUAL, {"server_learning_rate": 0.5}),  # D_0 = .6875: (.6875 + 4)/4
    Case("aced", "turns", [0.5, 1.6875], EQUAL, {"server_learning_rate": 0.5}),  # D_1 = 3.75: (1 + 3.75)/4
    Case("mifa", "rounds", MEAN, EQUAL),
    Case("mifa", "turns", [0.5, 2.875], EQUAL),  # (1 + 0)/2; (1 + 3.75)/2 more
    Case("dc-asgd", "turns", WHOLE, rest(0.25, 0.5)),  # fresh: nothing to make up for
    Case("dc-asgd", "turns", WHOLE, rest(0.25, 0.5), {"adaptive": True}),
    Case("fedcompass", "rounds", [1.25, 2.265625], EQUAL, {"alpha": 0.5}),  # each moves it by a quarter
    Case("fedat", "rounds", FEDAVG, BY_SAMPLES),
    # tiers of one client: once both are there (1 + 4)/2; then 2.875 by 1/3, 4 by the two rounds of the fast one: 2/3
    Case("fedat", "turns", [0.0, 2.5, 3.625], EQUAL, n_tiers=2),
    Case("safa", "rounds", FEDAVG, BY_SAMPLES),
    Case("aso-fed", "turns", [0.75, 1.84375, 2.880859375], BY_SAMPLES),  # 3/4 1; + 4.375/4; + 3/4 (2.3828125 - 1)
    # s = 0; t/N - u = 0 for client 0, .5 for client 1: alpha = 3/4 and 3/8
    Case("afl-cs", "turns", [0.75, 2.109375], rest(3 / 16, 3 / 16), {"planned_updates": 1}),
    # s = 0 at w = 0, else 1; p = 3/3, then 1/4; comp = .005 for client 1
    Case("afl-cs", "turns", [1.0, 1 + 0.5025 * 3.5], rest(0.375, 0.25125), {"mode": "released"}),
    # alpha_0 = 1/2 for one client seen, then 1/3, times 1 + c e^-c for client 1
    Case("afl-cs", "turns", [0.5, 0.5 + (1 + COMP) / 3 * 3.75], rest(1 / 12, (1 + COMP) / 6), {"mode": "fedcomp"}),
    Case("fedavgm", "rounds", [1.75, 3.828125], BY_SAMPLES, {"beta": 0.5}),  # v = 1.75, then .875 + 1.203125
    Case("fedadam", "rounds", opt(lambda v, dd: 0.75 * v + 0.25 * dd), BY_SAMPLES, OPT),
    Case("fedyogi", "rounds", opt(lambda v, dd: v - 0.25 * dd * math.copysign(1, v - dd)), BY_SAMPLES, OPT),
    Case("fedadagrad", "rounds", opt(lambda v, dd: v + dd), BY_SAMPLES, OPT),
    Case("fednova", "rounds", FEDAVG, BY_SAMPLES),
    # client 1 takes two steps, 3/4 (8 - w): (3/4 + 2/4) (3/4 D_0 + 1/4 D_1/2); at rest 3/4 D_0 = -1/8 D_1
    Case("fednova", "rounds", [1.25 * (0.75 + 0.75)], 16 / 3, steps=(1, 2)),
    Case("q-fedavg", "rounds", MEAN, EQUAL, {"q": 0.0}),
    # F = 8, 64 and L = 4: (8 4 1 + 64 4 4) / (4^2 + 4 8 + 16^2 + 4 64)
    Case("q-fedavg", "rounds", [1056 / 560], (4 + 8 * Q) / (1 + Q), {"q": 1.0}),
    Case("cyclic", "turns", WHOLE, rest(0.25, 0.5)),
    Case("median", "rounds", MEAN, EQUAL),  # of two
    Case("trimmed-mean", "rounds", MEAN, EQUAL),  # nothing to trim of two
    Case("norm-bound", "rounds", [1.5, 2.8125], EQUAL, {"bound": 2.0}),  # (1 + 2)/2; then (.625 + 2)/2
    # three of client 0 lie together: the first is chosen, or these three, or the first of client 1 besides
    Case("krum", "rounds", [1.0, 1.75], 4.0, times=(3, 2)),
    Case("multi-krum", "rounds", [1.0, 1.75], 4.0, {"keep": 3}, times=(3, 2)),
    Case("multi-krum", "rounds", FEDAVG, BY_SAMPLES, times=(3, 2)),
    Case("cyclic", "turns", [1.0, 1.0, 1.75], 4.0, {"released": True}),  # the copy of client 0, as the server has it
]


def test_no_rule_is_forgotten() -> None:
    assert {case.rule for case in CASES} | CLIENTS_TAKE_PART == set(RULES) - {"user"}  # whatever a user writes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_versions_by_hand(case: Case) -> None:
    assert case.versions(len(case.first)) == pytest.approx(case.first, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.last is not None], ids=str)
def test_where_it_rests(case: Case) -> None:
    made = case.versions(800)
    assert made[-1] == pytest.approx(case.last, abs=2e-3)
    assert made[-3] == pytest.approx(made[-1], abs=1e-3)  # after the same client, where they take turns


@pytest.mark.parametrize("case", CASES, ids=str)
def test_clients_of_one_optimum_are_brought_to_it(case: Case) -> None:
    assert case.versions(900, optima=(6.0, 6.0))[-1] == pytest.approx(6.0, abs=1e-3)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "mifa", "ace", "fadas", "ca2fl", "wkafl"])
def test_with_momentum_or_caches_a_zero_update_may_move_the_model(name: str) -> None:
    """The law that it does not holds for a fresh state; these remember."""
    rule = build(TypeAdapter(AggregationConfig).validate_python({"rule": name}), Facts(2, lambda: 4, n_updates=1))
    state = rule.init(np.zeros(1, np.float32))
    for client, change in ((0, 1.0), (1, 2.0), (0, 0.0)):
        before = float(state.weights_P[0])
        report = TaskReport(0, 0, 1, 1, 1.0, 0.0, change, 0.0)
        arrival = Arrival(0, NO_TASK._replace(client=client, learning_rate=RATE))
        state, _ = rule.accumulate(state, Update(report, np.array([change], np.float32)), arrival)
        state = rule.commit(state)
    assert float(state.weights_P[0]) > before


def test_mixing_at_a_staleness_moves_the_model_without_a_change() -> None:
    rule = build(TypeAdapter(AggregationConfig).validate_python({"rule": "fedasync", "alpha": 0.5}), Facts())
    state = rule.init(np.array([4.0], np.float32))
    report = TaskReport(0, 0, 1, 1, 1.0, 0.0, 0.0, 0.0)
    state, _ = rule.accumulate(state, Update(report, np.zeros(1, np.float32)), Arrival(3))  # it began at 0 and stayed
    assert rule.commit(state).weights_P.tolist() == [3.0]  # a = .5/2
