"""What holds for every schedule, whatever the policy, the devices and the population."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedsim.config import DevicesConfig, ScheduleConfig, TiersSchedule
from fedsim.errors import StalledError
from fedsim.population.devices import Devices
from fedsim.schedule.building import build_policy
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import Domain, Selection
from fedsim.schedule.tiers import tiers
from fedsim.types import Outcome, Task

N_EVENTS = 250
SELECTION = st.sampled_from(["uniform", "size", "availability"])
SMALL = st.integers(1, 8)
SECONDS = st.sampled_from([0.3, 1.0, 2.5, 7.0])


def policies() -> st.SearchStrategy[dict[str, Any]]:
    """Configurations of every policy."""

    def one(name: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({"policy": st.just(name), "selection": SELECTION, **parts})

    k_async = one("k-async", concurrency=SMALL, k=SMALL).filter(lambda p: p["k"] <= p["concurrency"])
    over, deadline = st.sampled_from([1.0, 1.5, 3.0]), st.none() | SECONDS
    return st.one_of(
        one("async", concurrency=SMALL),
        one("buffered", concurrency=SMALL, buffer=SMALL),
        k_async,
        one("window", concurrency=SMALL, window_s=SECONDS),
        one("sync", cohort=SMALL, over_selection=over, deadline_s=deadline),
        one("tiers", tiers=st.integers(1, 3), cohort=st.integers(1, 3)),
    )


LAWS = st.sampled_from(
    [
        {"law": "constant", "mean": 0.0},
        {"law": "constant", "mean": 1.0},  # many arrivals at one instant
        {"law": "exponential", "mean": 2.0},
        {"law": "lognormal", "mean": 1.0, "sigma": 2.0},
    ]
)
DEVICES = st.fixed_dictionaries(
    {
        "compute": st.fixed_dictionaries({"time": LAWS, "per": st.sampled_from(["task", "step", "sample"])}),
        "download": st.fixed_dictionaries({"latency_s": LAWS}),
        "upload": st.fixed_dictionaries({"latency_s": LAWS}),
        "availability": st.sampled_from(
            [
                {"kind": "always"},
                {"kind": "periodic", "period_s": 10.0, "on_fraction": 0.3},
                {"kind": "periodic", "period_s": 4.0, "on_fraction": 0.02},
            ]
        ),
        "on_offline": st.sampled_from(["pause", "lose", "finish"]),
        "loss_probability": st.sampled_from([0.0, 0.2, 0.7]),
    }
)


def build(policy: dict[str, Any], devices: dict[str, Any], n_clients: int, seed: int) -> tuple[Schedule, Devices]:
    config: Any = TypeAdapter(ScheduleConfig).validate_python(policy)
    sizes = 1 + np.arange(n_clients) % 7
    drawn = Devices(DevicesConfig.model_validate(devices), seed, n_clients, Path("."), 100, 100)
    work = Work(
        n_samples=lambda clients: sizes[clients],
        n_steps=lambda n: n,
        n_processed=lambda n: 2 * n,
        learning_rate=lambda version: 1.0,
        counts_steps=False,
    )
    domains = [Domain(n_clients)]
    if isinstance(config, TiersSchedule):
        parts = tiers(drawn.expected_s(np.arange(n_clients), sizes, 2 * sizes), config.tiers)
        domains = [Domain(n_clients, part) for part in parts]
    selection = Selection(config.selection, seed, drawn, sizes)
    return Schedule(build_policy(config, n_clients), domains, selection, work, drawn), drawn


@dataclass
class Run:
    """A schedule's life: what was dispatched, what ended how and when, how many went into each version."""

    schedule: Schedule
    devices: Devices
    most: int
    tasks: list[Task] = field(default_factory=list)
    rows: list[tuple[int, Outcome, float, int]] = field(default_factory=list)  # task, outcome, time, version met
    merged: list[int] = field(default_factory=list)
    dispatched_at: float = -1.0

    def go(self, n_events: int) -> None:
        """Plays so many events, or until none is left; checks what must hold at every moment."""
        in_flight: dict[int, int] = {}
        fresh = 0
        self._dispatch(0.0, in_flight)
        now_s = 0.0
        for _ in range(n_events):
            event = self.schedule.peek()
            if event is None:
                break
            assert event.time_s >= now_s
            now_s = event.time_s
            if event.kind <= 1 and event.time_s == self.dispatched_at:  # after a dispatch of its instant: its own task
                assert self.tasks[event.number].dispatch_s == self.dispatched_at
            step = self.schedule.step(event)
            met = self.schedule.version - step.merge
            for task in step.consumed:
                assert task.due_s == now_s and task.wanted
                self.rows.append((task.task, Outcome.APPLIED, now_s, met))
                in_flight.pop(task.client, None)
            for task, outcome in step.ended:
                self.rows.append((task.task, outcome, now_s, -1))
                in_flight.pop(task.client, None)
            fresh += len(step.consumed)
            if step.merge:
                self.merged.append(fresh)
                fresh = 0
            if self.schedule.instant_over():
                self._dispatch(now_s, in_flight)

    def _dispatch(self, now_s: float, in_flight: dict[int, int]) -> None:
        tasks = self.schedule.dispatch(now_s)
        for task in tasks:
            assert task.task == len(self.tasks), "task numbers follow dispatch order"
            assert task.dispatch_s == now_s and task.base_version == self.schedule.version
            assert task.client not in in_flight, "a client has at most one task in flight"
            assert self.devices.is_available(task.client, now_s)
            in_flight[task.client] = task.task
            self.tasks.append(task)
        if tasks:
            self.dispatched_at = now_s
        assert self.schedule.n_in_flight <= self.most


CASES = given(policies(), DEVICES, st.sampled_from([1, 2, 9, 40, 1500]), st.integers(0, 2**40))


def play(policy: dict[str, Any], devices: dict[str, Any], n_clients: int, seed: int) -> Run:
    config: Any = TypeAdapter(ScheduleConfig).validate_python(policy)
    if policy["policy"] == "tiers":
        assume(n_clients >= config.tiers)
    schedule, drawn = build(policy, devices, n_clients, seed)
    run = Run(schedule, drawn, config.concurrency)
    run.go(N_EVENTS)
    return run


@CASES
@settings(max_examples=120, deadline=None)
def test_laws_of_every_schedule(policy: dict[str, Any], devices: dict[str, Any], n_clients: int, seed: int) -> None:
    run = play(policy, devices, n_clients, seed)
    ended = [row[0] for row in run.rows]
    assert len(set(ended)) == len(ended), "each ended task has exactly one row"
    by_number = {task.task: task for task in run.tasks}
    tiered = policy["policy"] == "tiers"  # arrived updates of an open round are neither in flight nor ended
    if not tiered:
        assert len(run.tasks) == len(ended) + run.schedule.n_in_flight
        assert all(run.schedule.is_in_flight(number) != (number in set(ended)) for number in by_number)
    for number, outcome, time_s, met in run.rows:
        task = by_number[number]
        assert outcome is not Outcome.APPLIED or met - task.base_version >= 0
        assert (outcome is Outcome.APPLIED) == task.wanted, "what ends untaken was known to at dispatch"
        assert outcome is Outcome.ABORTED or task.arrival_s == time_s or tiered
        assert outcome is not Outcome.LOST or task.lost
    check_merges(policy, run)


def check_merges(policy: dict[str, Any], run: Run) -> None:
    """How many updates go into a version."""
    assert len(run.merged) == run.schedule.version and 0 not in run.merged
    exact = {"async": 1, "buffered": policy.get("buffer"), "k-async": policy.get("k")}
    name = policy["policy"]
    if name in exact:
        assert set(run.merged) <= {exact[name]}
    elif name in ("sync", "tiers"):
        assert all(n <= policy["cohort"] for n in run.merged)
    aborted = [row for row in run.rows if row[1] is Outcome.ABORTED]
    assert name == "sync" or not aborted
    if policy.get("deadline_s") is not None:
        starts = {task.task: task.dispatch_s for task in run.tasks}
        assert all(row[2] <= starts[row[0]] + policy["deadline_s"] for row in run.rows)


@CASES
@settings(max_examples=60, deadline=None)
def test_arrival_is_dispatch_plus_durations_plus_absence(
    policy: dict[str, Any], devices: dict[str, Any], n_clients: int, seed: int
) -> None:
    run = play(policy, devices, n_clients, seed)
    pauses = devices["on_offline"] == "pause" and not run.devices.always_available
    for task in run.tasks[:40]:
        busy_s = task.download_s + task.compute_s + task.upload_s
        if not pauses:
            assert task.arrival_s == task.dispatch_s + task.download_s + task.compute_s + task.upload_s
            continue
        there_s = presence_s(run.devices, task.client, task.dispatch_s, task.arrival_s)
        assert math.isclose(there_s, busy_s, rel_tol=1e-9, abs_tol=1e-9 * (1.0 + task.arrival_s))


def presence_s(devices: Devices, client: int, start_s: float, end_s: float) -> float:
    """Seconds for which a client is there between two times, window by window."""
    one, total, now_s = np.array([client]), 0.0, start_s
    for _ in range(10_000):
        now_s = float(devices.next_available_s(one, now_s)[0])
        if now_s >= end_s:
            return total
        gone_s = now_s + float(devices.remaining_s(one, now_s)[0])
        total += min(gone_s, end_s) - now_s
        now_s = gone_s
    raise AssertionError("too many windows")


@CASES
@settings(max_examples=40, deadline=None)
def test_a_schedule_is_a_pure_function(
    policy: dict[str, Any], devices: dict[str, Any], n_clients: int, seed: int
) -> None:
    first, second = (play(policy, devices, n_clients, seed) for _ in range(2))
    assert first.tasks == second.tasks and first.rows == second.rows and first.merged == second.merged


@given(st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_every_slot_is_used(seed: int) -> None:
    """With everyone there, an asynchronous policy has exactly `concurrency` tasks in flight after every dispatch."""
    policy = {"policy": "buffered", "concurrency": 7, "buffer": 3}
    schedule, _ = build(policy, {"compute": {"time": {"law": "exponential", "mean": 1.0}}}, 20, seed)
    schedule.dispatch(0.0)
    for _ in range(100):
        event = schedule.peek()
        assert event is not None and schedule.n_in_flight == 7
        schedule.step(event)
        schedule.dispatch(event.time_s)


def test_endless_loss_ends() -> None:
    lossy = {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.999999}
    schedule, _ = build({"policy": "async", "concurrency": 3}, lossy, 5, 1)
    counts: Counter[str] = Counter()
    try:
        schedule.dispatch(0.0)
        while (event := schedule.peek()) is not None:
            counts["lost"] += len(schedule.step(event).ended)
            schedule.dispatch(event.time_s)
    except StalledError as error:
        assert "10501 tasks were all lost" in str(error) and counts["lost"] == 10_500
    else:
        raise AssertionError("it went on for ever, or ended without a word")
