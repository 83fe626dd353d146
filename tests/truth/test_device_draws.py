"""Draws against the closed forms of their laws, at one seed, within five standard errors or the DKW bound."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.config import DevicesConfig
from fedsim.population.devices import Devices

N = 20_000
# Dvoretzky, Kiefer and Wolfowitz: the empirical distribution is farther off with probability 1e-6 only.
FARTHEST = math.sqrt(math.log(2 / 1e-6) / (2 * N))


def normal_below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


# Each law with its mean, standard deviation (None: infinite) and distribution function, from the textbook.
CASES: dict[str, tuple[dict[str, object], float, float | None, Callable[[float], float]]] = {
    "exponential": ({"law": "exponential", "mean": 2.0}, 2.0, 2.0, lambda x: 1 - math.exp(-x / 2)),
    "shifted-exponential": (
        {"law": "shifted-exponential", "mean": 5.0, "shift": 3.0},
        5.0,
        2.0,
        lambda x: 1 - math.exp(-max(x - 3, 0) / 2),
    ),
    "lognormal": (
        {"law": "lognormal", "mean": 3.0, "sigma": 0.5},
        3.0,
        3.0 * math.sqrt(math.exp(0.25) - 1),
        lambda x: normal_below((math.log(x) - math.log(3.0) + 0.125) / 0.5),
    ),
    "pareto": (
        {"law": "pareto", "minimum": 2.0, "shape": 3.0},
        3.0,
        math.sqrt(3.0),
        lambda x: 1 - (2.0 / x) ** 3,
    ),
    "heavy pareto": ({"law": "pareto", "minimum": 1.0, "shape": 1.5}, 3.0, None, lambda x: 1 - x**-1.5),
}


def task_draws(law: object) -> np.ndarray:
    """Compute times of tasks 0 to N - 1."""
    devices = Devices(DevicesConfig.model_validate({"compute": {"time": law}}), 11, 1, Path("."), 0, 0)
    zeros = np.zeros(N, np.int64)
    return np.array([p.compute_s for p in devices.plan_many(zeros, np.arange(N), zeros, zeros, 0.0)])


def client_draws(law: object) -> np.ndarray:
    """Slowness of clients 0 to N - 1."""
    devices = Devices(DevicesConfig.model_validate({"compute": {"slowness": law}}), 11, N, Path("."), 0, 0)
    return devices.expected_s(np.arange(N), np.ones(N, np.int64), np.ones(N, np.int64))


@pytest.mark.parametrize("draws", [task_draws, client_draws])
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_their_law(name: str, draws: Callable[[object], np.ndarray]) -> None:
    law, mean, deviation, below = CASES[name]
    values = np.sort(draws(law))
    distribution = np.array([below(x) for x in values.tolist()])
    assert np.abs(distribution - (np.arange(N) + 0.5) / N).max() < FARTHEST + 0.5 / N
    if deviation is not None:
        assert abs(values.mean() - mean) < 5 * deviation / math.sqrt(N)


@pytest.mark.parametrize("name", CASES)
def test_the_expected_duration_is_the_mean(name: str) -> None:
    law, mean, _, _ = CASES[name]
    devices = Devices(DevicesConfig.model_validate({"compute": {"time": law}}), 11, 1, Path("."), 0, 0)
    assert devices.mean_task_s(1, 1) == pytest.approx(mean, rel=1e-12)


def test_losses_have_their_probability_and_do_not_depend_on_the_time() -> None:
    config = {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.2}
    devices = Devices(DevicesConfig.model_validate(config), 5, 1, Path("."), 0, 0)
    zeros = np.zeros(N, np.int64)
    plans = devices.plan_many(zeros, np.arange(N), zeros, zeros, 0.0)
    lost, times = np.array([p.lost for p in plans]), np.array([p.compute_s for p in plans])
    assert abs(lost.mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / N)
    assert abs(np.corrcoef(lost, times)[0, 1]) < 5 / math.sqrt(N)


def test_periodic_clients_are_there_for_their_fraction_at_any_time() -> None:
    config = {"availability": {"kind": "periodic", "period_s": 86_400.0, "on_fraction": 0.3}}
    devices = Devices(DevicesConfig.model_validate(config), 5, N, Path("."), 0, 0)
    clients = np.arange(N)
    for time_s in (0.0, 1234.5, 50_000.0, 1e8):
        assert abs(devices.available(clients, time_s).mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / N)
    # Absent clients wait for up to (1 - fraction) of a period, evenly spread; those there stay for up to `fraction`.
    there = devices.available(clients, 777.0)
    wait = devices.next_available_s(clients, 777.0)[~there] - 777.0
    stay = devices.remaining_s(clients, 777.0)[there]
    for values, longest in ((wait, 0.7 * 86_400.0), (stay, 0.3 * 86_400.0)):
        assert values.min() > 0.0 and values.max() <= longest * (1 + 1e-12)
        assert abs(values.mean() - longest / 2) < 5 * longest / math.sqrt(12 * values.size)


def test_over_a_long_task_periodic_pauses_stretch_time_by_the_fraction() -> None:
    config = {
        "compute": {"time": {"law": "constant", "mean": 12_345.0}},
        "availability": {"kind": "periodic", "period_s": 10.0, "on_fraction": 0.25},
    }
    devices = Devices(DevicesConfig.model_validate(config), 5, 100, Path("."), 0, 0)
    for client in range(100):
        start = float(devices.next_available_s(np.array([client]), 0.0)[0])
        assert abs(devices.plan(client, 0, 1, 1, start).arrival_s - start - 12_345.0 / 0.25) <= 7.5
