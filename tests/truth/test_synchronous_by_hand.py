"""First steps of the rules of rounds, worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fedsim.aggregation import Arrival, Facts, Rule, build, published
from fedsim.config import AggregationConfig, RunConfig
from fedsim.engine.plan import plan
from fedsim.types import TaskReport, Update

Make = Callable[..., Any]
OPT = {"server_learning_rate": 0.5, "beta1": 0.5, "beta2": 0.75, "tau": 1.0}


def rule_of(facts: Facts = Facts(), **plain: Any) -> Rule:  # noqa: B008
    return build(TypeAdapter(AggregationConfig).validate_python(plain), facts)


def versions(rule: Rule, base: list[float], *rounds: list[tuple[list[float], dict[str, Any]]]) -> list[list[float]]:
    """The versions that rounds of updates make; an update is its vector, and what its report and task say else."""
    state, found = rule.init(np.array(base, np.float32)), []
    for updates in rounds:
        for vector, facts in updates:
            report = TaskReport(0, 0, facts.get("n", 1), facts.get("steps", 1), facts.get("loss", 0.0), 0.0,
                                float(np.linalg.norm(vector)), 0.0)  # fmt: skip
            task = Arrival(0).task._replace(client=facts.get("client", 0), learning_rate=facts.get("lr", 1.0))
            state, _ = rule.accumulate(state, Update(report, np.array(vector, np.float32)), Arrival(0, task))
        state = rule.commit(state)
        found.append(published(state).tolist())
    return found


def test_fedavgm() -> None:
    # D = (3 * 2 + 1 * 6) / 4 = 3, v = 3; then D = 1, v = .5 * 3 + 1 = 2.5; eta = 2
    rule = rule_of(rule="fedavgm", beta=0.5, server_learning_rate=2.0)
    assert versions(rule, [0.0], [([2], {"n": 3}), ([6], {"n": 1})], [([1], {})]) == [[6.0], [11.0]]


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        ("fedadam", [0.75 * 1 + 0.25 * 4, 0.75 * 1.75 + 0.25 * 1]),
        ("fedyogi", [1 + 0.25 * 4, 2 - 0.25 * 1]),  # v below D^2, then above
        ("fedadagrad", [1 + 4, 5 + 1]),
    ],
)
def test_fedopt(kind: str, second: list[float]) -> None:
    # D = 2, then 1: m = 1, then 1; v0 = tau^2 = 1
    first = 0.5 * 1.0 / (math.sqrt(second[0]) + 1.0)
    then = first + 0.5 * 1.0 / (math.sqrt(second[1]) + 1.0)
    found = versions(rule_of(rule=kind, **OPT), [0.0], [([2], {"n": 3}), ([2], {})], [([1], {})])
    assert np.ravel(found) == pytest.approx([first, then], rel=1e-6)


def test_fedadam_with_bias_correction_takes_a_step_of_eta_at_first() -> None:
    rule = rule_of(rule="fedadam", **OPT | {"tau": 1e-12}, initial_v=0.0, bias_correction=True)
    assert versions(rule, [0.0, 0.0], [([3, -0.2], {})])[0] == pytest.approx([0.5, -0.5], rel=1e-6)


def test_yogi_is_adagrad_while_v_stays_below_the_square() -> None:
    plain = {"beta1": 0.9, "beta2": 0.999, "tau": 1e-8, "initial_v": 0.0}
    updates = [[([0.3 * (k + 1), -0.1], {})] for k in range(15)]
    yogi = versions(rule_of(rule="fedyogi", server_learning_rate=0.01, **plain), [0.0, 0.0], *updates)
    adagrad = versions(rule_of(rule="fedadagrad", server_learning_rate=0.316228, **plain), [0.0, 0.0], *updates)
    assert yogi == pytest.approx(np.array(adagrad), rel=1e-5)


def test_fednova_by_steps_and_momentum() -> None:
    # p = 3/4, 1/4; a = 2, 6: (1.5 + 1.5) (3/4 * 4/2 + 1/4 * 12/6) = 3 * 2
    updates = [([4], {"n": 3, "steps": 2}), ([12], {"n": 1, "steps": 6})]
    assert versions(rule_of(rule="fednova"), [1.0], updates) == [[7.0]]
    # rho = .5: a = 1 for one step, 2.5 for two: (1 + 2.5)/2 (1/1 + 5/2.5)/2
    half = rule_of(Facts(client_momentum=0.5), rule="fednova", weighting="uniform")
    assert versions(half, [0.0], [([1], {"steps": 1}), ([5], {"steps": 2})]) == [[2.625]]


def test_fednova_with_equal_steps_is_fedavg() -> None:
    updates = [([4], {"n": 3, "steps": 5}), ([-2], {"n": 5, "steps": 5})]
    assert versions(rule_of(rule="fednova"), [1.0], updates) == versions(rule_of(rule="fedavg"), [1.0], updates)


def test_q_fedavg() -> None:
    # L = 2; q = 1: weights 2 F; h = ||2 D||^2 + 2 F: D = 1, F = 2: h = 8; D = -2, F = 1: h = 18
    updates = [([1], {"loss": 2.0, "lr": 0.5}), ([-2], {"loss": 1.0, "lr": 0.5})]
    assert versions(rule_of(rule="q-fedavg", q=1.0), [0.0], updates)[0] == pytest.approx([(4 - 4) / 26])
    updates[0][1]["loss"] = 4.0  # h = 4 + 8
    assert versions(rule_of(rule="q-fedavg", q=1.0), [0.0], updates)[0] == pytest.approx([(8 - 4) / 30])
    assert versions(rule_of(rule="q-fedavg", q=0.0), [0.0], updates)[0] == pytest.approx([-0.5])  # the mean


def test_q_fedavg_takes_the_norm_of_what_arrives() -> None:
    """Where an update may have been changed on its way: h = ||D||^2 + F of what is merged, whatever the report says."""
    for as_trained, h in ((True, 9.0 + 2.0), (False, 25.0 + 2.0)):
        rule = rule_of(Facts(as_trained=as_trained), rule="q-fedavg", q=1.0)
        state = rule.init(np.zeros(2, np.float32))
        report = TaskReport(0, 0, 1, 1, 2.0, 0.0, 3.0, 0.0)
        told = Arrival(0)._replace(task=Arrival(0).task._replace(learning_rate=1.0))
        rule.accumulate(state, Update(report, np.array([3.0, -4.0], np.float32)), told)
        assert published(rule.commit(state)) == pytest.approx([2.0 * 3.0 / h, 2.0 * -4.0 / h])


SENT: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"compression": {"updates": {"kind": "top-k", "fraction": 0.1}}}, False),
    ({"attack": {"kind": "scaled", "fraction": 0.5}}, False),
    ({"attack": {"kind": "label-flip", "fraction": 0.5}}, True),
    ({"model": {"kind": "mlp", "hidden": [6], "norm": "batch", "buffers": "local"}}, True),
    ({"model": {"kind": "mlp", "hidden": [6], "norm": "batch", "buffers": "average"}}, False),
]


@pytest.mark.parametrize(("sections", "as_trained"), SENT)
def test_q_fedavg_knows_whether_updates_arrive_as_they_were_trained(
    sections: dict[str, Any], as_trained: bool, make_config: Make
) -> None:
    """What a plan's rule does with a report of norm 0, by which each step is shorter where it looks for itself."""
    config = make_config(
        **{
            "data": {"dataset": "synthetic-leaf", "clients": 6, "features": 9, "min_samples": 50, "max_samples": 50},
            "aggregation": {"rule": "q-fedavg"},
            "record": {"losses": "full"},
            "training": {"batch_size": 8, "path": "auto"},
            **sections,
        }
    )
    rule = plan(config, Path()).rule
    size = plan(config, Path()).layout.n_parameters
    state = rule.init(np.zeros(size, np.float32))
    report = TaskReport(0, 0, 1, 1, 1.0, 0.0, 0.0, 0.0)
    told = Arrival(0, Arrival(0).task._replace(learning_rate=1.0), base_P=np.zeros(size, np.float32))
    _, said = rule.accumulate(state, Update(report, np.ones(size, np.float32)), told)
    assert (said.scalars[0] == 1.0) == as_trained  # h = q norm^2 + F


def test_cyclic() -> None:
    given = [[([4], {"client": 2})], [([7], {"client": 0})], [([9], {"client": 1})]]
    assert versions(rule_of(rule="cyclic"), [1.0], *given) == [[4.0], [7.0], [9.0]]
    assert versions(rule_of(rule="cyclic", released=True), [1.0], *given) == [[1.0], [7.0], [7.0]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"aggregation": {"rule": "scaffold"}, "schedule": {"policy": "async", "concurrency": 2}}, "must be sync"),
    (
        {
            "aggregation": {"rule": "scaffold"},
            "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5}},
        },
        "sgd without momentum, got with momentum",
    ),
    (
        {"aggregation": {"rule": "fednova"}, "training": {"objective": {"kind": "proximal", "mu": 0.1}}},
        "got training.optimizer sgd and training.objective proximal",
    ),
    (
        {"aggregation": {"rule": "feddyn"}, "training": {"objective": {"kind": "proximal", "mu": 0.1}}},
        "training.objective must be plain, got proximal",
    ),
    ({"aggregation": {"rule": "q-fedavg"}}, "record.losses must be full, got running"),
    ({"aggregation": {"rule": "cyclic"}, "schedule": {"policy": "sync", "cohort": 2}}, "got 2 tasks a round"),
    ({"schedule": {"policy": "sync", "cohort": 2, "selection": "cyclic"}}, "gives each client its turn"),
]


@pytest.mark.parametrize(("sections", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], words: str, make_config: Make) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(**sections)


def test_what_goes_together_is_taken(make_config: Callable[..., RunConfig]) -> None:
    make_config(aggregation={"rule": "q-fedavg"}, record={"losses": "full"})
    make_config(aggregation={"rule": "cyclic"}, schedule={"policy": "sync", "cohort": 1, "selection": "cyclic"})
