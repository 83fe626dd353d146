"""K-async and K-batch-async against their laws, with exponential task times of mean 1 (rate 1) and m tasks in flight.

K-async (the K finishers wait): whenever a version is made all m tasks run, and are memoryless. So a version takes the
K-th of m exponentials, E[T] = H_m - H_{m-K}; and by symmetry a task is among the next K with probability K/m, whatever
its past: P(tau = j) = (K/m) (1 - K/m)^j, E[tau] = m/K - 1.

K-batch-async (they restart at once): arrivals are a Poisson stream of rate m, so T is Gamma(K, m), E[T] = K/m. While a
task runs, N others arrive, P(N = n) = (1/m) (1 - 1/m)^n, and it started with B of K updates in the buffer, B uniform on
0..K-1 and independent of N: tau = floor((B + N)/K), E[tau] = E[N]/K = (m - 1)/K, and
P(tau = 0) = 1 - (1/K) sum_{j=1..K} (1 - 1/m)^j.

A mean of n versions' times has standard error sd/sqrt(n), sd known. Staleness of neighbouring tasks is correlated, so
means over it get theirs from 40 batches, each many times as long as a task lives. All samples are drawn at a fixed
seed; means must lie within four standard errors of their laws, and these be small enough to tell the laws apart.

Reference: Dutta et al., "Slow and stale gradients can win the race", AISTATS 2018, lemmas 3 and 4.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedsim.config import BufferedSchedule, DevicesConfig, KAsyncSchedule
from fedsim.population.devices import Devices
from fedsim.schedule.building import build_policy
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import Domain, Selection
from fedsim.types import Float64, Int64

SETTINGS = [(20, 5), (20, 10), (50, 10)]
N_BATCHES = 40
WARM_UP = 20  # versions left out at the beginning, where all tasks start together


class Sample(NamedTuple):
    """Staleness of each update in order, and the time of each version after the warm-up."""

    staleness: Int64
    version_s: Float64


def drive(config: KAsyncSchedule | BufferedSchedule, n_clients: int, n_versions: int) -> Sample:
    """A schedule alone, on the devices that a configuration would get: nothing is trained."""
    law = {"compute": {"time": {"law": "exponential", "mean": 1.0}}}
    devices = Devices(DevicesConfig.model_validate(law), 20, n_clients, Path("."), 1, 1)
    work = Work(lambda clients: np.ones_like(clients), lambda n: 1, lambda n: 1, lambda version: 1.0, False)
    selection = Selection("uniform", 20, devices, None)
    schedule = Schedule(build_policy(config, n_clients), [Domain(n_clients)], selection, work, devices)
    staleness, version_s = [], []
    schedule.dispatch(0.0)
    while schedule.version < WARM_UP + n_versions:
        event = schedule.peek()
        assert event is not None
        step = schedule.step(event)
        met = schedule.version - step.merge
        if met >= WARM_UP:
            staleness += [met - task.base_version for task in step.consumed]
        if step.merge and schedule.version >= WARM_UP:
            version_s.append(event.time_s)
        if schedule.instant_over():
            schedule.dispatch(event.time_s)
    return Sample(np.array(staleness), np.array(version_s))


def assert_mean(values: Any, law: float, resolution: float) -> None:
    """Within four standard errors, by batch means, of a law; the standard error is at most `resolution` x the law."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), N_BATCHES)
    means = np.array([part.mean() for part in parts])
    error = means.std(ddof=1) / math.sqrt(N_BATCHES)
    assert 0.0 < error <= resolution * law
    assert abs(means.mean() - law) <= 4.0 * error


def assert_time(version_s: Float64, law: float, sd: float) -> None:
    """Mean time a version within four standard errors of its law, which follow from the law too."""
    n = version_s.size - 1
    mean = float(version_s[-1] - version_s[0]) / n
    assert sd / math.sqrt(n) <= 0.02 * law
    assert abs(mean - law) <= 4.0 * sd / math.sqrt(n)


@pytest.mark.parametrize("all_busy", [True, False], ids=["as many clients as slots", "many clients"])
@pytest.mark.parametrize(("m", "k"), SETTINGS)
def test_k_async(m: int, k: int, all_busy: bool) -> None:
    config = KAsyncSchedule(policy="k-async", concurrency=m, k=k)
    sample = drive(config, m if all_busy else 10_000, 24_000 // k)
    rates = np.arange(m, m - k, -1.0)
    assert_time(sample.version_s, float((1.0 / rates).sum()), math.sqrt(float((1.0 / rates**2).sum())))
    assert_mean(sample.staleness, m / k - 1.0, 0.05)
    assert_mean(sample.staleness == 0, k / m, 0.05)
    assert_mean(sample.staleness == 1, k / m * (1.0 - k / m), 0.05)


@pytest.mark.parametrize("all_busy", [True, False], ids=["as many clients as slots", "many clients"])
@pytest.mark.parametrize(("m", "k"), SETTINGS)
def test_k_batch_async(m: int, k: int, all_busy: bool) -> None:
    config = BufferedSchedule(policy="buffered", concurrency=m, buffer=k)
    sample = drive(config, m if all_busy else 10_000, 24_000 // k)
    assert_time(sample.version_s, k / m, math.sqrt(k) / m)
    assert_mean(sample.staleness, (m - 1) / k, 0.05)
    assert_mean(sample.staleness == 0, 1.0 - sum((1.0 - 1.0 / m) ** j for j in range(1, k + 1)) / k, 0.05)


def test_the_published_figures() -> None:
    # The laws at (20, 5), as numbers: .25, 3 and .2795 for K-async; 3.8 and .25 for K-batch.
    harmonic = sum(1.0 / i for i in range(16, 21))
    assert math.isclose(harmonic, 0.2795, abs_tol=5e-5)
    waiting = drive(KAsyncSchedule(policy="k-async", concurrency=20, k=5), 20, 4000)
    assert abs((waiting.staleness == 0).mean() - 0.25) < 0.01 and abs(waiting.staleness.mean() - 3.0) < 0.05
    assert abs(np.diff(waiting.version_s).mean() - 0.2795) < 0.01
    batch = drive(BufferedSchedule(policy="buffered", concurrency=20, buffer=5), 20, 4000)
    assert abs(batch.staleness.mean() - 3.8) < 0.05 and abs(np.diff(batch.version_s).mean() - 0.25) < 0.01
