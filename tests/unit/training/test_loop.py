"""The reference loop: its reports, payloads, failures, and that every call stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import training
from fedsim.config import RunConfig
from fedsim.errors import ClientError
from fedsim.layout import Layout
from fedsim.types import Float32, Shard, Task, TaskReport

Make = Callable[..., Any]


class Clock:
    """A clock that goes on by `step_s` at each reading."""

    def __init__(self, step_s: float = 1e-4) -> None:
        self.step_s, self.now_s = step_s, 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Bench:
    """A trainer over given shards, with a four-class linear model unless another is given."""

    def __init__(
        self,
        population: Any,
        config: RunConfig,
        module: nn.Module | None = None,
        payload: training.Payload = "delta",
        clock: Callable[[], float] | None = None,
    ) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(3)
        self.module = module or nn.Linear(3, 4)
        layout = Layout.of(self.module)
        self.base_P = layout.flatten(self.module)
        self.base_P.flags.writeable = False
        self.trainer = training.build(
            config,
            population,
            self.module,
            payload=payload,
            device=torch.device("cpu"),
            worker=5,
            clock=clock or Clock(),
        )

    def train(self, *tasks: Task, progress: Callable[[], None] = lambda: None) -> tuple[Float32, list[TaskReport]]:
        out_GP = np.full((len(tasks), self.base_P.size), np.nan, np.float32)
        return out_GP, self.trainer.train(tasks, {3: self.base_P}.__getitem__, out_GP, progress)


@pytest.fixture
def two(make_population: Make, make_shard: Make) -> Any:
    """Two clients of 10 and 7 samples of three features in four classes."""
    return make_population([make_shard(10, (3,), 4, 1), make_shard(7, (3,), 4, 2)], 4)


def test_report(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"epochs": 2})
    out_GP, (report,) = Bench(two, config).train(make_task(config, 0, 10))
    assert report[:4] == (11, 5, 10, 6)
    assert report.update_norm == pytest.approx(np.linalg.norm(out_GP[0].astype(np.float64)), rel=1e-14)
    assert report.train_s > 0


def test_payloads_differ_by_the_base(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config()
    task = make_task(config, 1, 7)
    bench = Bench(two, config)
    delta_GP, (report,) = bench.train(task)
    model_GP, (same,) = Bench(two, config, payload="model").train(task)
    assert np.array_equal(delta_GP[0], model_GP[0] - bench.base_P) and delta_GP.any()
    assert report.update_norm == same.update_norm


def test_the_given_module_and_base_are_left_alone(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config()
    bench = Bench(two, config)
    before = bench.base_P.copy()
    bench.train(make_task(config, 0, 10))
    assert np.array_equal(bench.base_P, before)
    assert np.array_equal(Layout.of(bench.module).flatten(bench.module), before)


def test_group_size(two: Any, make_config: Make) -> None:
    assert Bench(two, make_config()).trainer.group_size == 1
    assert Bench(two, make_config(training={"group_size": 4})).trainer.group_size == 4
    assert Bench(two, make_config()).trainer.path == "loop"


def test_running_losses_are_those_of_the_first_and_last_batch(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 1, "order": "sequential"})
    bench = Bench(two, config)
    _, (report,) = bench.train(make_task(config, 0, 10))
    x, y = torch.from_numpy(two.shards[0].x), torch.from_numpy(two.shards[0].y)
    assert report.loss_before == report.loss_after == functional.cross_entropy(bench.module(x[:4]), y[:4]).item()
    two_steps = make_task(config, 0, 10, n_steps=2)
    _, (report,) = bench.train(two_steps)
    assert report.loss_before != report.loss_after


def test_full_losses_are_those_of_the_shard(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(record={"losses": "full"}, evaluation={"batch_size": 4})
    bench = Bench(two, config)
    out_GP, (report,) = bench.train(make_task(config, 0, 10))
    x, y = torch.from_numpy(two.shards[0].x), torch.from_numpy(two.shards[0].y)
    for vector, loss in ((bench.base_P, report.loss_before), (bench.base_P + out_GP[0], report.loss_after)):
        Layout.of(bench.module).load(bench.module, vector)
        assert loss == pytest.approx(functional.cross_entropy(bench.module(x), y).item(), rel=1e-6)
    assert np.array_equal(Bench(two, make_config()).train(make_task(config, 0, 10))[0], out_GP)


def test_no_losses(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(record={"losses": "none"})
    _, (report,) = Bench(two, config).train(make_task(config, 0, 10))
    assert math.isnan(report.loss_before) and math.isnan(report.loss_after)


def test_the_tasks_learning_rate_is_used(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 1})
    bench = Bench(two, config)
    out_GP, _ = bench.train(make_task(config, 0, 10, learning_rate=0.1), make_task(config, 0, 10, learning_rate=0.2))
    np.testing.assert_allclose(out_GP[1], 2 * out_GP[0], atol=1e-6)


@pytest.mark.parametrize("losses", ["running", "full", "none"])
def test_a_loss_that_is_not_finite_names_client_task_version_and_step(
    make_population: Make, make_config: Make, make_task: Make, losses: str
) -> None:
    config = make_config(record={"losses": losses}, training={"order": "sequential"})
    x = np.ones((10, 3), np.float32)
    x[5] = np.inf
    bench = Bench(make_population([Shard(x, np.zeros(10, np.int64))], 4), config)
    with pytest.raises(ClientError, match=r"client 0, task 11, version 3, step 1 of 3: loss is nan"):
        bench.train(make_task(config, 0, 10))


def test_an_update_that_is_not_finite_is_refused(make_population: Make, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 1})
    steep = Shard(np.full((7, 3), 100.0, np.float32), np.zeros(7, np.int64))
    with pytest.raises(
        ClientError, match=r"client 0, task 11, version 3, step 1 of 1: norm of the update is (inf|nan)"
    ):
        Bench(make_population([steep], 4), config).train(make_task(config, 0, 7, learning_rate=3e38))


def test_clipping_bounds_the_global_norm_of_each_step(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"steps": 1, "clip_norm": 0.01})
    out_GP, (report,) = Bench(two, config).train(make_task(config, 0, 10, learning_rate=1.0))
    assert report.update_norm == pytest.approx(0.01, rel=1e-3)
    free_GP, (free,) = Bench(two, make_config(training={"steps": 1})).train(make_task(config, 0, 10, learning_rate=1.0))
    assert free.update_norm > 0.02
    np.testing.assert_allclose(out_GP[0], free_GP[0] * (0.01 / free.update_norm), rtol=1e-2, atol=1e-5)


def test_a_large_proximal_term_holds_the_client_back(two: Any, make_config: Make, make_task: Make) -> None:
    norms = []
    for mu in (0.0, 1.0, 9.0):
        config = make_config(training={"epochs": 20, "objective": {"kind": "proximal", "mu": mu}})
        norms.append(Bench(two, config).train(make_task(config, 0, 10))[1][0].update_norm)
    assert norms[0] > norms[1] > norms[2] > 0


def test_progress_is_called_about_every_millisecond(two: Any, make_config: Make, make_task: Make) -> None:
    config, calls = make_config(training={"steps": 200}), list[int]()
    Bench(two, config, clock=Clock(5e-4)).train(make_task(config, 0, 10), progress=lambda: calls.append(1))
    assert 50 <= len(calls) <= 120
    calls.clear()
    Bench(two, config, clock=Clock(2e-3)).train(make_task(config, 0, 10), progress=lambda: calls.append(1))
    assert len(calls) == 200


def test_shards_are_kept_between_tasks_within_the_bound(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config()
    Bench(two, config).train(*[make_task(config, 0, 10)] * 3)
    assert two.n_asked == 1
    tight = make_config(memory={"worker_data_bytes": 0})
    Bench(two, tight).train(*[make_task(config, 0, 10)] * 3)
    assert two.n_asked == 4


def test_dropout_depends_on_the_task_alone(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config()
    bench = Bench(two, config, nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)))
    tasks = [make_task(config, 0, 10), make_task(config, 1, 7, task=12), make_task(config, 0, 10)]
    state = torch.random.get_rng_state()
    out_GP, _ = bench.train(*tasks)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(out_GP[0], out_GP[2])
    torch.rand(5)
    again_GP, _ = bench.train(tasks[1])
    assert np.array_equal(out_GP[1], again_GP[0])
    sequential = make_config(training={"order": "sequential"})
    bench = Bench(two, sequential, nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)))
    out_GP, _ = bench.train(make_task(config, 0, 10), make_task(config, 0, 10, task=12))
    assert not np.array_equal(out_GP[0], out_GP[1])


def test_a_frozen_parameter_does_not_move(two: Any, make_config: Make, make_task: Make) -> None:
    config = make_config(training={"objective": {"kind": "proximal", "mu": 0.1}, "clip_norm": 1.0})
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    out_GP, _ = Bench(two, config, module).train(make_task(config, 0, 10))
    assert out_GP[0, :12].all() and not out_GP[0, 12:].any()


def test_a_modules_memory_format_does_not_matter(make_population: Make, make_config: Make, make_task: Make) -> None:
    rng = np.random.default_rng(0)
    shard = Shard(rng.standard_normal((6, 2, 8, 8), dtype=np.float32), rng.integers(0, 4, 6))
    config, rows = make_config(), list[Float32]()
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 3, 3)
    module = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        conv.weight.data = conv.weight.data.to(memory_format=memory_format)
        bench = Bench(make_population([shard], 4), config, module)
        rows.append(bench.train(make_task(config, 0, 6))[0][0])
    assert np.array_equal(rows[0], rows[1]) and rows[0].any()
