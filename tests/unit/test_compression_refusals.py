"""What compression cannot be combined with, and what it says of itself before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import configfile
from fedsim.bench.large import config_of
from fedsim.engine.plan import Plan, plan
from fedsim.engine.servermemory import server_memory
from fedsim.engine.versions import VersionStore
from fedsim.errors import ConfigError

CONFIG: dict[str, Any] = {
    "name": "compressed",
    "data": {"dataset": "synthetic-leaf", "clients": 6, "features": 9, "classes": 3, "max_samples": 60},
    "model": {"kind": "logistic"},  # 30 parameters
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 8, "steps": 5},
    "schedule": {"policy": "sync", "cohort": 4},
    "aggregation": {"rule": "fedavg"},
    "stop": {"versions": 2},
}

ASYNC = {"policy": "async", "concurrency": 3}


def planned(**sections: Any) -> Plan:
    return plan(configfile.from_mapping(CONFIG | sections), Path())


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"compression": {"updates": {"kind": "sign"}}, "reduce": {"at": "workers", "norm_bound": 1.0}},
            "workers send sums and no updates, so there is none to compress",
        ),
        (
            {"compression": {"versions": "float16"}, "aggregation": {"rule": "scaffold"}},
            "rule scaffold sends more than weights, and reckons with what it sent; allowed: float32",
        ),
        *(
            (
                {"compression": {"updates": {"kind": kind, "error_feedback": False}}, "aggregation": {"rule": rule}},
                f"updates {kind} with error_feedback false: with rule {rule} clients reckon with what they trained",
            )
            for kind in ("top-k", "sign")
            for rule in ("scaffold", "feddyn")
        ),
        *(
            (
                {"compression": {"versions": versions}, "aggregation": rule, "schedule": {**ASYNC, **more}},
                f"versions {versions}: rule {rule['rule']} reckons with how far the model moved .*; allowed: float32",
            )
            for versions, rule, more in (
                ("float16", {"rule": "afl-cs"}, {}),
                ("bfloat16", {"rule": "afl-cs", "mode": "fedcomp"}, {}),
                ("float16", {"rule": "async-fed-ed"}, {}),
                ("bfloat16", {"rule": "dc-asgd"}, {}),
                ("float16", {"rule": "port"}, {"policy": "buffered", "buffer": 2}),
            )
        ),
        (
            {"compression": {"updates": {"kind": "top-k", "fraction": 0.99}}},
            "124 bytes an update of 30 parameters, and 120 without it; allowed: none, or another kind",
        ),
        (
            {"compression": {"updates": {"kind": "top-k"}}, "placement": "dynamic"},
            "placement: dynamic lets any worker take any client's task, but these clients keep a state",
        ),
    ],
)
def test_refusals(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        planned(**sections)


def test_rules_that_read_no_base_may_get_rounded_versions() -> None:
    released = {"rule": "afl-cs", "mode": "released"}
    for rule in (released, {"rule": "fedasync"}):
        assert planned(compression={"versions": "float16"}, aggregation=rule, schedule=ASYNC).version_bytes == 60


def test_error_feedback_lets_clients_with_control_variates_compress() -> None:
    for rule in ("scaffold", "feddyn"):
        assert planned(compression={"updates": {"kind": "sign"}}, aggregation={"rule": rule}).codec is not None
    planned(compression={"updates": {"kind": "sign", "error_feedback": False}})


def test_a_plan_says_how_many_bytes_travel() -> None:
    lines = dict(
        planned(compression={"updates": {"kind": "qsgd", "bits": 8, "bucket": 10}, "versions": "float16"}).lines()
    )
    assert lines["compression"] == "an update 42 bytes (qsgd), a version 60 bytes (float16)"
    assert "compression" not in dict(planned().lines())


def test_a_version_beyond_float16_ends_the_run_with_a_line() -> None:
    store = VersionStore(2, 10**6, None, "float16")
    with pytest.raises(
        ConfigError, match=r"versions: version 3: 70000 is beyond float16, which ends at 65,504; allowed"
    ):
        store.add(3, np.array([1.0, 7e4], np.float32))


def test_what_rank_zero_takes_is_stated() -> None:
    config = config_of("fedasync", 10_000, 20)
    made = plan(configfile.from_mapping({"name": "large", **config}), Path())
    n = made.layout.n_parameters
    assert n == pytest.approx(10_000, rel=0.02)
    # The model as built and as a vector; weights and accumulator in float64; an update; two versions and one new.
    stated = server_memory(made, 1)
    assert stated.total(n_workers=0) == 8 * n + 16 * n + 4 * n + 3 * 4 * n + 2**25
    assert stated.total(n_workers=3) - stated.total(n_workers=0) == 3 * 4 * n
    coded = planned(compression={"updates": {"kind": "float16"}, "versions": "float16"})
    assert (coded.update_bytes, coded.version_bytes) == (60, 60)
    assert server_memory(coded, 4).updates == coded.bounds.server_rows * coded.group_size * 60 + 120
