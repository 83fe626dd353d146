"""Values that a model keeps beside its parameters: carried, averaged apart from the rule, kept local, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

import fedsim
from fedsim import snapshot
from fedsim.aggregation import Arrival, Facts, Rule, build
from fedsim.aggregation.buffers import WithBuffers
from fedsim.config import AggregationConfig
from fedsim.engine.plan import plan
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.training.weights import Weights
from fedsim.types import Float32, TaskReport, Update

Make = Callable[..., Any]


def rule_of(n_in_flight: int | None = None, is_averaged: bool = True, **plain: Any) -> Rule:
    """A rule for two parameters and two values of buffers."""
    inner = build(TypeAdapter(AggregationConfig).validate_python(plain), Facts(2))
    return WithBuffers(inner, 2, n_in_flight, is_averaged)


def arrive(rule: Rule, state: Any, vector: list[float], n: int, base: list[float], tau: int = 0) -> None:
    report = TaskReport(0, 0, n, 1, 0.0, 0.0, 0.0, 0.0)
    base_P: Float32 = np.array(base, np.float32)
    task = Arrival(tau).task._replace(learning_rate=1.0)
    rule.accumulate(state, Update(report, np.array(vector, np.float32)), Arrival(tau, task, 0, 0.0, base_P))


def test_buffers_are_means_by_samples_whatever_the_rule_does() -> None:
    rule = rule_of(rule="fedavg", weighting="uniform", server_learning_rate=0.5)
    state = rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32))
    # clients' buffers are [2, 8] and [4, 0], of 3 and 1 samples: [2.5, 6]; the parameters' mean is halved
    arrive(rule, state, [4.0, 0.0, 1.0, 4.0], 3, [0.0, 0.0, 1.0, 4.0])
    arrive(rule, state, [0.0, 8.0, 3.0, -4.0], 1, [0.0, 0.0, 1.0, 4.0])
    assert rule.publish(rule.commit(state)).tolist() == [1.0, 2.0, 2.5, 6.0]
    assert rule.publish(rule.commit(state)).tolist() == [1.0, 2.0, 2.5, 6.0]


def test_without_rounds_a_version_takes_its_share_of_what_is_in_flight() -> None:
    rule = rule_of(4, rule="fedasync", alpha=1.0, max_staleness=3)
    state = rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32))
    arrive(rule, state, [4.0, 2.0, 5.0, 0.0], 7, [9.0, 9.0, 9.0, 9.0])  # a local model: 3/4 [1, 4] + 1/4 [5, 0]
    assert rule.publish(rule.commit(state)).tolist() == [4.0, 2.0, 2.0, 3.0]
    arrive(rule, state, [9.0, 9.0, 9.0, 9.0], 7, [0.0] * 4, tau=4)  # left out by the rule, and so here
    assert rule.publish(rule.commit(state)).tolist() == [4.0, 2.0, 2.0, 3.0]


def test_differences_are_those_from_the_base_and_not_from_the_version() -> None:
    rule = rule_of(2, rule="fedbuff")
    assert rule.needs_base
    state = rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32))
    arrive(rule, state, [2.0, 0.0, 1.0, -1.0], 1, [0.0, 0.0, 2.0, 2.0])  # [3, 1]: half of it, and half of [1, 4]
    assert rule.publish(rule.commit(state)).tolist() == [2.0, 0.0, 2.0, 2.5]


def test_local_buffers_stay_what_they_were_at_the_server() -> None:
    rule = rule_of(is_averaged=False, rule="fedavg")
    state = rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32))
    arrive(rule, state, [2.0, 0.0, 0.0, 0.0], 1, [0.0] * 4)
    assert not rule.needs_base and rule.publish(rule.commit(state)).tolist() == [2.0, 0.0, 1.0, 4.0]


def test_what_a_rule_sends_besides_has_no_buffers() -> None:
    rule = rule_of(rule="scaffold")
    state = rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32))
    arrive(rule, state, [2.0, 0.0, 1.0, 0.0], 1, [0.0, 0.0, 1.0, 4.0])
    # c = (1/2) (-D / (K lr)) with one client of two
    assert rule.publish(rule.commit(state)).tolist() == [2.0, 0.0, 2.0, 4.0, -1.0, 0.0, 0.0, 0.0]


def test_the_state_goes_on_from_its_snapshot() -> None:
    rule, versions = rule_of(2, rule="fedadam"), []
    state, again = (rule.init(np.array([0.0, 0.0, 1.0, 4.0], np.float32)) for _ in range(2))
    arrive(rule, state, [2.0, 1.0, 0.0, 0.5], 1, [0.0] * 4)
    rule.commit(state)
    arrive(rule, state, [1.0, -1.0, 2.0, 0.5], 3, [0.0] * 4)
    snapshot.put(again, snapshot.of(state))
    for each in (state, again):
        arrive(rule, each, [1.0, 1.0, 1.0, 1.0], 2, [0.0] * 4)
        versions.append(rule.publish(rule.commit(each)).tolist())
    assert versions[0] == versions[1]


def test_counts_of_batches_are_put_back_with_each_task() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = Weights(module, torch.device("cpu"))
    vector = Layout.of(module).flatten(module)
    for _ in range(2):
        weights.load(vector)
        assert int(weights.module[1].num_batches_tracked) == 0
        weights.module.train()(torch.randn(4, 2))
        assert int(weights.module[1].num_batches_tracked) == 1
    out = np.empty_like(vector)
    weights.read(out)
    assert not np.array_equal(out[-6:], vector[-6:]) and np.array_equal(out[:-6], vector[:-6])


# ------------------------------------------------------------------------------------- configurations

DATA = {"dataset": "synthetic-leaf", "clients": 6, "features": 9, "classes": 3, "min_samples": 50, "max_samples": 50}
BATCH = {"kind": "mlp", "hidden": [6], "norm": "batch"}
SECTIONS: dict[str, Any] = {"data": DATA, "training": {"batch_size": 8, "path": "auto"}}


def test_statistics_are_refused_until_somebody_decides(make_config: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"layer '1' \(BatchNorm1d\) keeps statistics.*model.buffers: average or local"
    ):
        plan(make_config(model=BATCH, **SECTIONS), Path())
    made = plan(make_config(model=BATCH | {"buffers": "average"}, **SECTIONS), Path())
    assert made.training_path == "loop" and "layer '1' (BatchNorm1d)" in made.path_reason
    assert ("averaged apart", "1.running_mean, 1.running_var") in made.lines()


@pytest.mark.parametrize(
    ("schedule", "rule", "share"),
    [
        ({"policy": "safa", "quota": 2}, "safa", 2 / 6),
        ({"policy": "compass", "min_steps": 1, "max_steps": 4}, "fedcompass", 2 / 6),
        ({"policy": "async", "concurrency": 50}, "fedavg", 2 / 6),  # more slots than clients
        ({"policy": "async", "concurrency": 4}, "fedavg", 2 / 4),
    ],
)
def test_the_share_is_of_what_can_be_in_flight(
    schedule: dict[str, Any], rule: str, share: float, make_config: Make
) -> None:
    """Two updates whose statistics are 10: of six clients, however many tasks the schedule would allow."""
    sections = SECTIONS | {"schedule": schedule, "aggregation": {"rule": rule}}
    made = plan(make_config(model=BATCH | {"buffers": "average"}, **sections), Path())
    n, state = made.layout.n_trained, made.rule.init(made.initial_P)
    vector_P = made.initial_P.copy()
    vector_P[n:] = 10.0 if made.rule.payload == "model" else 10.0 - made.initial_P[n:]
    task = Arrival(0).task._replace(learning_rate=1.0)
    for client in range(2):
        told = Arrival(0, task._replace(client=client), 0, 0.0, made.initial_P)
        state, _ = made.rule.accumulate(state, Update(TaskReport(0, 0, 40, 1, 0.0, 0.0, 0.0, 0.0), vector_P), told)
    found = made.rule.publish(made.rule.commit(state))[n:]
    assert found == pytest.approx((1.0 - share) * made.initial_P[n:] + share * 10.0, rel=1e-6)


@pytest.mark.parametrize("path", ["fused", "stacked"])
def test_stacked_paths_name_the_layer_and_what_to_use(path: str, make_config: Make) -> None:
    sections = SECTIONS | {"training": {"batch_size": 8, "path": path}}
    with pytest.raises(
        ConfigError, match=r"layer '1' \(BatchNorm1d\): .* use GroupNorm or LayerNorm; use auto or loop"
    ):
        plan(make_config(model=BATCH | {"buffers": "average"}, **sections), Path())


def test_a_batch_of_one_sample_is_found_before_the_run(make_config: Make) -> None:
    sections = SECTIONS | {"training": {"batch_size": 13, "path": "auto"}}  # 40 samples: 13, 13, 13 and 1
    with pytest.raises(ConfigError, match="client 0 has 40 samples, so that a batch has one sample"):
        plan(make_config(model=BATCH | {"buffers": "average"}, **sections), Path())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"personalization": {"kind": "fedbn", "layers": ["9"]}, "model": BATCH},
            "'9' matches no layer; allowed: 0, 1, 3",
        ),
        ({"personalization": {"kind": "fedbn"}}, "this model has none: set model.norm"),
        ({"personalization": {"kind": "fedbn", "layers": ["*"]}}, "use kind: local"),
        ({"personalization": {"kind": "ditto"}, "placement": "dynamic"}, "placement: dynamic"),
        (
            {
                "personalization": {"kind": "fine-tune", "steps": 1},
                "data": {"dataset": "digits"},
                "partition": {"kind": "iid", "clients": 4},
            },
            "data set 'digits' has none",
        ),
        (
            {
                "model": BATCH | {"buffers": "average"},
                "reduce": {"at": "workers", "norm_bound": 10.0},
                "schedule": {"policy": "sync", "cohort": 2},
            },
            "reduce: buffers",
        ),
        (
            {"model": BATCH | {"buffers": "average"}, "compression": {"updates": {"kind": "float16"}}},
            "compression.updates float16: these updates carry statistics",
        ),
        (
            {"personalization": {"kind": "local"}, "compression": {"updates": {"kind": "sign"}}},
            "compression.updates sign: parts of these updates stay",
        ),
    ],
    ids=["no layer", "no norm", "all", "dynamic", "no tests", "reduce", "halves", "signs"],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], words: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(make_config(**(SECTIONS | sections)), Path())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"personalization": {"kind": "ditto"}, "evaluation": {"clients": False}}, "evaluation.clients must be true"),
        ({"personalization": {"kind": "local"}, "training": {"path": "none"}}, "needs training"),
        ({"personalization": {"kind": "fedbn"}, "model": BATCH | {"buffers": "average"}}, "must be local or left out"),
        (
            {"personalization": {"kind": "local"}, "aggregation": {"rule": "cyclic", "released": True}},
            "with aggregation.released",
        ),
        ({"stop": {"versions": 1, "target": {"value": 0.5, "of": "personal"}}}, "must be ditto or fine-tune"),
        (
            {"training": {"objective": {"kind": "aso-fed"}, "optimizer": {"kind": "adam", "learning_rate": 0.1}}},
            "sgd without momentum and weight decay, got adam",
        ),
        ({"training": {"objective": {"kind": "aso-fed"}, "clip_norm": 1.0}}, "no clip_norm"),
        ({"training": {"objective": {"kind": "aso-fed"}}, "clock": "wall"}, "needs clock: virtual, got wall"),
        ({"training": {"objective": {"kind": "aso-fed"}}, "aggregation": {"rule": "scaffold"}}, "rule scaffold"),
    ],
    ids=["pooled", "alone", "averaged", "released", "target", "adam", "clip", "wall", "scaffold"],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], words: str, make_config: Make) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(**sections)


def test_the_record_says_what_became_of_each(make_config: Make, tmp_path: Path) -> None:
    sections = SECTIONS | {"personalization": {"kind": "fedbn"}, "schedule": {"policy": "sync", "cohort": 3}}
    run = fedsim.run(make_config(model=BATCH, **sections, stop={"versions": 4}), tmp_path / "fedbn")
    assert run is not None and run.weights is not None
    treatment = json.loads(str(run.attributes["treatment"]))
    assert treatment == dict.fromkeys(["1.running_mean", "1.running_var", "1.weight", "1.bias"], "local")
    places = {name: (offset, int(np.prod(shape))) for name, shape, offset in run.layout}
    first = {"1.weight": 1.0, "1.bias": 0.0, "1.running_mean": 0.0, "1.running_var": 1.0}
    for name, value in first.items():  # the server never saw them change
        offset, size = places[name]
        assert (run.weights[offset : offset + size] == value).all()
    rows = run.evaluations
    assert run.n_rows("personal") == 0 and sorted(rows[rows.version == 4].client) == list(range(6))
    averaged = fedsim.run(
        make_config(model=BATCH | {"buffers": "average"}, **SECTIONS, stop={"versions": 2}), tmp_path / "averaged"
    )
    assert averaged is not None
    assert json.loads(str(averaged.attributes["treatment"])) == {
        "1.running_mean": "averaged",
        "1.running_var": "averaged",
    }


def test_a_target_may_be_the_clients_own(make_config: Make, tmp_path: Path) -> None:
    sections: dict[str, Any] = SECTIONS | {
        "personalization": {"kind": "fine-tune", "steps": 40},
        "evaluation": {"every_versions": 1, "lag_versions": 0},
        "stop": {"versions": 30, "target": {"metric": "loss", "value": 0.9, "of": "personal"}},
    }
    run = fedsim.run(make_config(model={"kind": "logistic"}, **sections), tmp_path / "run")
    assert run is not None
    summary = run.summary()
    assert summary["personal"]["loss"] <= 0.9 < summary["metrics"]["loss"] and summary["versions"] < 30
