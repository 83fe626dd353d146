"""The compiled schedule makes the history of the reference schedule, to the last bit, wherever a block ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedsim import seeding
from fedsim.aggregation.rule import planned_weights
from fedsim.config import DevicesConfig, ScheduleConfig, StopConfig
from fedsim.errors import StalledError
from fedsim.population.devices import Devices
from fedsim.schedule import alone, bulk, compiled, draws
from fedsim.schedule.building import build_policy
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import Domain, Selection
from fedsim.seeding import Purpose
from fedsim.types import Int64, Outcome

SMALL = st.integers(1, 9)
LAWS = st.sampled_from(
    [
        {"law": "constant", "mean": 0.0},
        {"law": "constant", "mean": 1.0},  # many arrivals at one instant
        {"law": "exponential", "mean": 2.0},
        {"law": "lognormal", "mean": 1.0, "sigma": 2.0},
        {"law": "pareto", "minimum": 0.5, "shape": 1.5},
    ]
)
DEVICES = st.fixed_dictionaries(
    {
        "compute": st.fixed_dictionaries(
            {"time": LAWS, "slowness": LAWS, "per": st.sampled_from(["task", "step", "sample"])}
        ),
        "download": st.fixed_dictionaries({"latency_s": LAWS}),
        "upload": st.fixed_dictionaries({"latency_s": LAWS}),
        "loss_probability": st.sampled_from([0.0, 0.2, 0.7]),
    }
)


def policies() -> st.SearchStrategy[dict[str, Any]]:
    """Configurations of the policies that the compiled loop knows."""

    def one(name: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({"policy": st.just(name), **parts})

    over, deadline = st.sampled_from([1.0, 1.5, 3.0]), st.none() | st.sampled_from([0.3, 1.0, 2.5])
    return st.one_of(
        one("async", concurrency=SMALL),
        one("buffered", concurrency=SMALL, buffer=SMALL),
        one("k-async", concurrency=SMALL, k=SMALL).filter(lambda p: p["k"] <= p["concurrency"]),
        one("sync", cohort=SMALL, over_selection=over, deadline_s=deadline),
    )


def _sizes(clients: Int64) -> Int64:
    return 1 + clients % 7


def reference(
    config: Any, devices: Devices, domain: Domain, seed: int, stop: StopConfig
) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Rows of tasks and of versions as the engine makes them; rows of a run that stalls end with NaN."""
    work = Work(_sizes, lambda n: n, lambda n: 2 * n, lambda version: 1.0, False)
    schedule = Schedule(
        build_policy(config, domain.size), [domain], Selection("uniform", seed, devices, None), work, devices
    )
    tasks: list[tuple[float, ...]] = []
    versions: list[tuple[float, ...]] = []
    merged: list[int] = []
    schedule.dispatch(0.0)
    try:
        while (event := schedule.peek()) is not None:
            if stop.virtual_s is not None and event.time_s > stop.virtual_s:
                break
            step = schedule.step(event)
            met = schedule.version - step.merge
            for task in step.consumed:
                merged.append(met - task.base_version)
                tasks.append((*task[:5], Outcome.APPLIED, met + 1, *task[7:12]))
            for task, outcome in step.ended:
                tasks.append((*task[:5], outcome, -1, *task[7:12]))
            if step.merge:
                versions.append((schedule.version, schedule.now_s, len(merged), sum(merged) / len(merged), max(merged)))
                merged = []
            if schedule.n_consumed == stop.updates or schedule.version == stop.versions:
                break
            if schedule.instant_over():
                schedule.dispatch(schedule.now_s)
    except StalledError:
        tasks.append((math.nan,))
    return tasks, versions


def compiled_rows(
    history: bulk.ScheduleAlone,
) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """The same from the compiled loop, block after block."""
    tasks: list[tuple[float, ...]] = []
    versions: list[tuple[float, ...]] = []
    while not history.is_over:
        try:
            block = history.block()
        except StalledError:
            tasks.append((math.nan,))
            break
        t, v = block.tasks, block.versions
        columns = (t.task, t.client, t.base_version, t.n_samples, t.n_steps, t.outcome, t.applied_version)
        times = (t.dispatch_s, t.download_s, t.compute_s, t.upload_s, t.arrival_s)
        tasks += zip(*(column.tolist() for column in (*columns, *times)), strict=True)
        assert (t.staleness == np.where(t.applied_version < 0, -1, t.applied_version - 1 - t.base_version)).all()
        columns = (v.version, v.virtual_s, v.n_updates, v.staleness_mean, v.staleness_max)
        versions += zip(*(column.tolist() for column in columns), strict=True)
    return tasks, versions


@settings(max_examples=150, deadline=None)
@given(
    policies(),
    DEVICES,
    st.integers(9, 300),
    st.integers(0, 2**40),
    st.booleans(),
    st.sampled_from([{"updates": 60}, {"versions": 20}, {"virtual_s": 12.5, "updates": 400}]),
)
def test_same_history(
    policy: dict[str, Any], devices: dict[str, Any], n: int, seed: int, some: bool, stop: dict[str, Any]
) -> None:
    config: Any = TypeAdapter(ScheduleConfig).validate_python(policy)
    drawn = Devices(DevicesConfig.model_validate(devices), seed, n, Path("."), 100, 100)
    limits = StopConfig(**stop)
    members = np.flatnonzero(np.arange(n) % 3 < 2) if some else None
    assume(policy.get("k", 0) <= (n if members is None else members.size))  # `check` refuses more: no version is made
    federation = alone.Federation(n, members, _sizes, lambda k: k, lambda k: 2 * k, drawn)
    assert not alone.reason_against(config, drawn)
    history = bulk.ScheduleAlone(config, limits, federation, seed, n_rows=40)
    found, found_versions = compiled_rows(history)
    tasks, versions = reference(config, drawn, Domain(n, members), seed, limits)
    if tasks and math.isnan(tasks[-1][0]):  # stalled: a block that ends so is not told
        assert math.isnan(found.pop()[0]) and found == tasks[: len(found)]
        return
    assert found == tasks
    assert found_versions == versions


@given(st.integers(1, 700_000), st.data())
@settings(max_examples=60, deadline=None)
def test_the_kth_idle_position(n: int, data: st.DataObject) -> None:
    idle = bulk._all_idle(n)
    n_busy = data.draw(st.integers(0, min(n - 1, 40)))
    near = data.draw(st.integers(0, n - 1))  # busy ones side by side, so that words and blocks fill up
    busy = sorted({(near + i) % n for i in range(n_busy)})
    for position in busy:
        compiled.set_idle(idle, position, -1)
    left = np.setdiff1d(np.arange(n), busy)
    for k in {0, left.size // 2, left.size - 1, min(near, left.size - 1)}:
        assert compiled.kth_idle(idle, k) == left[k]
    for position in busy:
        compiled.set_idle(idle, position, 1)
    assert compiled.kth_idle(idle, n - 1) == n - 1 and int(idle.regions.sum()) == int(idle.blocks.sum()) == n


@pytest.mark.parametrize(
    ("schedule", "devices", "reason"),
    [
        ({"policy": "window", "concurrency": 2, "window_s": 1.0}, {}, "policy window"),
        ({"policy": "async", "concurrency": 2, "selection": "size"}, {}, "selection size"),
        (
            {"policy": "async", "concurrency": 2},
            {"availability": {"kind": "periodic", "period_s": 10.0, "on_fraction": 0.5}},
            "not always available",
        ),
    ],
)
def test_what_it_does_not_take(schedule: dict[str, Any], devices: dict[str, Any], reason: str) -> None:
    config: Any = TypeAdapter(ScheduleConfig).validate_python(schedule)
    drawn = Devices(DevicesConfig.model_validate(devices), 0, 10, Path("."), 100, 100)
    assert reason in alone.reason_against(config, drawn)


def test_weights_are_added_up_in_the_order_of_rows() -> None:
    weights = np.array([1e16, 1.0, 0.5, -1e16, 7.0, 2.0])
    sums = np.array([0.25, 0.0])
    compiled.weight_sums(weights, np.array([3, 3, -1, 3, 4, 4]), 3, sums)
    assert sums.tolist() == [((0.25 + 1e16) + 1.0) - 1e16, 9.0]


@given(st.integers(0, 2**40), st.integers(0, 2**45), st.integers(0, 2**45), st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_compiled_draws_are_those_of_the_streams(seed: int, client: int, first: int, n: int) -> None:
    tasks = np.arange(first, first + 5)
    for purpose in (Purpose.SELECTION, Purpose.LOSS):
        assert np.array_equal(
            draws.uniforms(seed, purpose, client, tasks, n), seeding.uniforms(seed, purpose, client, tasks, n)
        )


@given(st.lists(st.tuples(st.sampled_from([3, 4, 900, 10**6]), st.integers(-1, 12)), max_size=40), st.booleans())
def test_planned_weights_are_the_rule_s_one_by_one(rows: list[tuple[int, int]], alike: bool) -> None:
    n_samples = np.array([7 if alike else n for n, _ in rows], np.int64)
    staleness = np.array([s for _, s in rows], np.int64)

    def weight_of(n: int, s: int) -> float:
        return n / (1 + s) ** 0.5

    wanted = [
        math.nan if s < 0 else weight_of(n, s) for n, s in zip(n_samples.tolist(), staleness.tolist(), strict=True)
    ]
    assert np.array_equal(planned_weights(weight_of, n_samples, staleness), wanted, equal_nan=True)
