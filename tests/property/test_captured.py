"""The captured path's logic on a CPU: one recording, replays that no Python steers, and slots that rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.config import RunConfig
from fedsim.layout import Layout
from fedsim.training import captured
from fedsim.training.choice import Choice
from fedsim.training.flat import Flat
from fedsim.training.fused.machine import FusedMachine
from fedsim.training.group import GroupTrainer
from fedsim.training.objectives import loss_of
from fedsim.training.stacked import StackedMachine
from fedsim.types import Float32, Task

Make = Callable[..., Any]
CPU = torch.device("cpu")
SIZES = (17, 4, 11, 6, 1, 30)  # samples of the clients
N_SLOTS = 5
STEPS: list[dict[str, Any]] = [
    {"optimizer": {"kind": "sgd", "learning_rate": 0.05}},
    {"optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}},
    {"optimizer": {"kind": "adam", "learning_rate": 0.01, "weight_decay": 1e-3}, "clip_norm": 0.3},
    {
        "optimizer": {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 1e-3},
        "objective": {"kind": "proximal", "mu": 0.1},
    },
]
keys = st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(0, 1))


def smooth(seed: int) -> nn.Module:
    """Layers that only the stacked path takes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(13, 9), nn.SiLU(), nn.Dropout(0.2), nn.Linear(9, 5))


class Captured:
    """Clients, and a trainer whose machine replays what a recorder recorded."""

    def __init__(
        self, make: dict[str, Make], name: str, section: dict[str, Any], batch_size: int = 4, n_slots: int = N_SLOTS
    ) -> None:
        options = section | {"batch_size": batch_size, "epochs": 2, "path": "fused"}
        self.make = make
        self.config: RunConfig = make["config"](model={"kind": "mlp"}, training=options)
        self.module = smooth(2) if name == "smooth" else make["module"](name, 2)[0]
        shards = [
            make["shard"](n, (13,), 5, seed=n) if name == "smooth" else make["samples"](name, n, n) for n in SIZES
        ]
        population = make["population"](shards, 5)
        self.graph = make["graph"]()
        self.machine = captured.build(
            self.module, population.sample_shape, self.config.training, loss_of(self.config, population), n_slots,
            device=CPU, graph=self.graph,
        )  # fmt: skip
        self.trainer = GroupTrainer(
            Choice("captured", n_slots, ""), lambda loss, n: self.machine, self.config, population, self.module,
            payload="model", device=CPU, worker=0, clock=lambda: 0.0,
        )  # fmt: skip
        base_P = Layout.of(self.module).flatten(self.module)
        self.bases = [base_P, base_P * np.float32(0.9)]

    def task(self, client: int, number: int, version: int = 0) -> Task:
        rate = self.config.training.optimizer.learning_rate * (1 - 0.3 * version)
        task: Task = self.make["task"](
            self.config, client, SIZES[client], task=number, base_version=version, learning_rate=rate
        )
        return task

    def train(self, tasks: list[Task]) -> Float32:
        out_GP: Float32 = np.full((len(tasks), self.bases[0].size), np.nan, np.float32)
        self.trainer.train(tasks, self.bases.__getitem__, out_GP, lambda: None)
        return out_GP


@pytest.fixture
def make(
    make_population: Make,
    make_config: Make,
    make_task: Make,
    make_shard: Make,
    make_module: Make,
    make_samples: Make,
    make_graph: Make,
) -> dict[str, Make]:
    rooms = {"population": make_population, "config": make_config, "task": make_task, "shard": make_shard}
    return rooms | {"module": make_module, "samples": make_samples, "graph": make_graph}


@pytest.mark.parametrize("name", ["dropping", "text", "smooth"])
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    data=st.data(),
    section=st.sampled_from(STEPS),
    batch_size=st.sampled_from([1, 3, 5, 8]),
    key=keys,
    company=st.lists(keys, max_size=9),
    past=st.lists(keys, max_size=7),
)
def test_bits_alone_or_in_company(
    make: dict[str, Make],
    name: str,
    data: st.DataObject,
    section: dict[str, Any],
    batch_size: int,
    key: tuple[int, int, int],
    company: list[tuple[int, int, int]],
    past: list[tuple[int, int, int]],
) -> None:
    torch.set_num_threads(1)
    run = Captured(make, name, section, batch_size)
    task = run.task(key[0], 77, key[2])
    alone_P = run.train([task])[0]
    tasks = [run.task(*other) for other in company]
    slot = data.draw(st.integers(0, len(tasks)), label="slot")
    tasks.insert(slot, task)
    if past:
        run.train([run.task(*other) for other in past])
    assert np.array_equal(run.train(tasks)[slot], alone_P)
    assert np.array_equal(run.train([task])[0], alone_P)
    assert run.machine.n_recorded == run.graph.n_records == 1


@pytest.mark.parametrize(("name", "kind"), [("dropping", FusedMachine), ("smooth", StackedMachine)])
def test_one_replay_a_step_whatever_the_group(make: dict[str, Make], name: str, kind: type) -> None:
    run = Captured(make, name, STEPS[1])
    assert type(run.machine._machine) is kind
    run.train([run.task(0, 1)])
    assert run.graph.n_replays == 10  # two passes over 17 samples in batches of 4
    run.train([run.task(client, 2) for client in (1, 5, 4)])  # 2, 16 and 2 steps in one group
    assert run.graph.n_replays == 26
    run.train([run.task(client, 3) for client in range(6)])  # two groups: 0 to 4, then 5
    assert run.graph.n_replays == run.machine.n_replayed == 52
    assert run.machine.n_recorded == run.graph.n_records == 1


@pytest.mark.parametrize("name", ["text", "smooth"])
@pytest.mark.parametrize("section", STEPS)
def test_a_task_that_is_through_rests(make: dict[str, Make], name: str, section: dict[str, Any]) -> None:
    """Neither momentum nor decay nor moments move a slot on while its neighbours still train."""
    run = Captured(make, name, section)
    trained = run.train([run.task(5, 1), run.task(0, 2), run.task(1, 3)])  # 16, 10 and 2 steps: the order of the slots
    kept = torch.empty(3, run.bases[0].size)
    run.machine.read(0, Flat.of(kept))
    assert np.array_equal(kept.numpy(), trained)


def test_without_a_gpu_it_is_refused(make: dict[str, Make]) -> None:
    from fedsim.errors import ConfigError

    run = Captured(make, "smooth", STEPS[0])
    loss = loss_of(run.config, make["population"]([make["shard"](3, (13,), 5)], 5))
    with pytest.raises(ConfigError, match=r"training\.path: captured records CUDA graphs, but .* has no GPU"):
        captured.build(run.module, (13,), run.config.training, loss, 3, device=CPU)
