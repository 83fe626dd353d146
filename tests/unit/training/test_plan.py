"""Steps and learning rates that are fixed at dispatch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from fedsim.config import RunConfig
from fedsim.training.plan import learning_rate, plan_steps, samples_processed

Make = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("training", "n_samples", "n_steps"),
    [
        ({"epochs": 1, "batch_size": 4}, 199, 50),
        ({"epochs": 3, "batch_size": 4}, 8, 6),
        ({"epochs": 2, "batch_size": 10}, 1, 2),
        ({"steps": 100, "batch_size": 4}, 3, 100),
    ],
)
def test_steps(make_config: Make, training: dict[str, int], n_samples: int, n_steps: int) -> None:
    assert plan_steps(make_config(training=training).training, n_samples) == n_steps


def test_rate_decays_with_the_base_version(make_config: Make) -> None:
    training = make_config(training={"decay": {"factor": 0.5, "every_versions": 10}}).training
    assert [learning_rate(training, version) for version in (0, 9, 10, 25)] == [0.1, 0.1, 0.05, 0.025]


def test_rate_is_constant_without_decay(make_config: Make) -> None:
    assert learning_rate(make_config().training, 10**9) == 0.1


@pytest.mark.parametrize("module", ["training", "training.plan", "training.batches", "aggregation", "layout", "models"])
def test_loads_without_torch(module: str) -> None:
    code = f"import sys, fedsim.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'mpi4py', 'h5py')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("training", "n_samples", "n_processed"),
    [
        ({"epochs": 3, "batch_size": 4}, 10, 30),
        ({"steps": 2, "batch_size": 4}, 10, 8),
        ({"steps": 3, "batch_size": 4}, 10, 10),
        ({"steps": 7, "batch_size": 4}, 10, 24),
        ({"steps": 5, "batch_size": 64}, 10, 50),
    ],
)
def test_samples_processed(make_config: Make, training: dict[str, int], n_samples: int, n_processed: int) -> None:
    assert samples_processed(make_config(training=training).training, n_samples) == n_processed
