"""Fixtures for tests of several rooms: configurations, and populations whose shards are given outright."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim.bench.launch import SESSIONS
from fedsim.config import RunConfig
from fedsim.population.population import Population
from fedsim.training.plan import learning_rate, plan_steps
from fedsim.types import Int64, Shard, Task


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the work, a file's tests stay together, and so do those that share a Slurm."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


class GivenPopulation(Population):
    """Clients whose shards are listed; counts how often each was asked for."""

    def __init__(
        self,
        shards: Sequence[Shard],
        n_classes: int,
        tests: Mapping[int, Shard] | None = None,
        central: Shard | None = None,
    ) -> None:
        self.n_clients = len(shards)
        self.sample_shape = shards[0].x.shape[1:]
        self.n_classes = n_classes
        self.shards = list(shards)
        self.tests = dict(tests or {})
        self.central = central
        self.n_asked = 0

    def n_samples(self, clients: Int64) -> Int64:
        sizes = np.array([shard.y.size for shard in self.shards])
        found: Int64 = sizes[clients]
        return found

    def shard(self, client: int) -> Shard:
        self.n_asked += 1
        return self.shards[client]

    def data_sha256(self) -> str:
        return "0" * 64

    def test_clients(self) -> Sequence[int]:
        return sorted(self.tests)

    def test_shard(self, client: int) -> Shard:
        return self.tests[client]

    def central_test(self) -> Shard | None:
        return self.central


def _config(**sections: Any) -> RunConfig:
    training = {
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "batch_size": 4,
        "epochs": 1,
        "path": "loop",
    }
    plain: dict[str, Any] = {
        "name": "test",
        "seed": 7,
        "data": {"dataset": "heart"},
        "model": {"kind": "logistic"},
        "schedule": {"policy": "sync", "cohort": 1},
        "aggregation": {"rule": "fedavg"},
        "stop": {"versions": 1},
    }
    plain |= sections
    lengths = {"epochs": None} if "steps" in sections.get("training", {}) else {}
    plain["training"] = training | lengths | sections.get("training", {})
    return RunConfig(**plain)


def _task(config: RunConfig, client: int, n_samples: int, **changes: Any) -> Task:
    plain = Task(
        task=11,
        client=client,
        base_version=3,
        n_samples=n_samples,
        n_steps=plan_steps(config.training, n_samples),
        first_step=0,
        learning_rate=learning_rate(config.training, 3),
        dispatch_s=0.0,
        download_s=0.0,
        compute_s=1.0,
        upload_s=0.0,
        arrival_s=1.0,
        due_s=1.0,
        lost=False,
        wanted=True,
    )
    return plain._replace(**changes)


def _shard(n: int, shape: tuple[int, ...], n_classes: int, seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    return Shard(rng.standard_normal((n, *shape), dtype=np.float32), rng.integers(0, n_classes, n))


@pytest.fixture(autouse=True, scope="session")
def no_sessions_of_others() -> Iterator[None]:
    """A folder for the files of mpirun: fixtures that last find none there of one that was killed."""
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
        os.environ[SESSIONS] = folder
        yield
        del os.environ[SESSIONS]


@pytest.fixture(autouse=True)
def no_sessions_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same for each test: some of them kill mpirun, and numbers of processes come again."""
    folder = tempfile.mkdtemp(prefix="fedsim-")
    monkeypatch.setenv(SESSIONS, folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_population() -> type[GivenPopulation]:
    """Call it as `GivenPopulation`."""
    return GivenPopulation


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """A small FedAvg run by the reference path; keyword arguments replace sections, and add to `training`."""
    return _config


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """`make_task(config, client, n_samples, **changes)`: a task with the steps that the configuration plans."""
    return _task


@pytest.fixture
def make_shard() -> Callable[..., Shard]:
    """`make_shard(n, shape, n_classes, seed=0)`: normal inputs and uniform labels."""
    return _shard
