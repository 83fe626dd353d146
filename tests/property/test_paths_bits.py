"""A client's bits on the stacked paths: the same in any slot, company, group size, filling and place in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedsim import models, training
from fedsim.layout import Layout
from fedsim.types import Float32, Shard, Task, TaskReport

Make = Callable[..., Any]
EXAMPLES = int(os.environ.get("FEDSIM_TEST_EXAMPLES", "10")) // 2 + 1  # of each kind; see test_paths_equal.py
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a case of trained groups takes many minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SIZES = (17, 4, 11, 6, 1, 30)  # samples of the clients
CASES: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    ({"kind": "logistic"}, (13,), 2),
    ({"kind": "logistic"}, (39,), 7),
    ({"kind": "mlp", "hidden": [62]}, (13,), 7),
    ({"kind": "mlp", "hidden": [39, 13]}, (62,), 3),
    ({"kind": "mlp", "hidden": [1]}, (1,), 2),
    ({"kind": "mlp", "hidden": [200]}, (28, 28), 62),
    ({"kind": "mlp", "hidden": [17]}, (2001,), 7),  # a first layer that is computed ahead, in many blocks
    ({"kind": "logistic"}, (1001,), 43),
    ({"kind": "cnn", "channels": [3, 5], "kernel": 3}, (1, 13, 11), 7),
    ({"kind": "cnn", "channels": [16, 32], "kernel": 5}, (28, 28), 62),
    ({"kind": "cnn", "channels": [8], "kernel": 2}, (3, 9, 9), 2),
    ({"module": "residual"}, (2, 9, 7), 5),
    ({"module": "mixer"}, (7, 11), 5),
    ({"module": "strided"}, (2, 11, 9), 5),
    ({"module": "deep"}, (2, 9, 7), 5),
    ({"module": "pooled"}, (2, 9, 7), 5),
    ({"kind": "residual", "channels": [4, 6], "groups": 2, "dropout": 0.2}, (1, 9, 7), 5),
    ({"module": "dropping"}, (2, 9, 7), 5),
    ({"module": "text"}, (6,), 5),
    ({"module": "tokens"}, (9,), 5),
    ({"kind": "mlp", "hidden": [13], "loss": "mse"}, (39,), 3),
    ({"kind": "mlp", "hidden": [13], "loss": "cox"}, (39,), 1),
]
STACKED: list[dict[str, Any]] = [  # every step there takes milliseconds
    {"kind": "logistic"},
    {"kind": "mlp", "hidden": [39, 13]},
    {"kind": "cnn", "channels": [3, 5], "kernel": 3},
    {"module": "strided"},
    {"module": "mixer"},
    {"module": "dropping"},
    {"module": "text"},
    {"kind": "mlp", "hidden": [13], "loss": "mse"},
    {"kind": "mlp", "hidden": [13], "loss": "cox"},
]
STEPS: list[dict[str, Any]] = [
    {"optimizer": {"kind": "sgd", "learning_rate": 0.05}},
    {"optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}},
    {"optimizer": {"kind": "sgd", "learning_rate": 0.05, "weight_decay": 1e-3}, "clip_norm": 0.3},
    {"optimizer": {"kind": "adam", "learning_rate": 0.01, "weight_decay": 1e-3}, "clip_norm": 0.3},
    {
        "optimizer": {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 1e-3},
        "objective": {"kind": "proximal", "mu": 0.1},
    },
]


def shifted(array: Any, n_bytes: int) -> Any:
    """A copy of `array` that starts `n_bytes` after a 64-byte boundary."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + n_bytes
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Federation:
    """Clients of odd sizes with one model; `train` gives what tasks come to in a group of a given size and place."""

    def __init__(self, make: dict[str, Make], case: Any, section: dict[str, Any], path: str, batch_size: int) -> None:
        self.make, (kind, self.shape, self.n_classes) = make, case
        loss = kind.get("loss", "auto")
        self.targets = {"mse": "values", "cox": "survival"}.get(loss, "classes")
        self.section = section | {"path": path, "batch_size": batch_size, "epochs": 2, "loss": loss}
        model = {"kind": "mlp"} if "module" in kind else {k: v for k, v in kind.items() if k != "loss"}
        self.config = make["config"](model=model, training=self.section)
        name = kind.get("module")
        self.shards = [self.shard(name, n) for n in SIZES]
        self.module = (
            make["module"](name, 2)[0]
            if name
            else models.build_initial(self.config.model, self.shape, self.n_classes, 2, loss)
        )
        base_P = Layout.of(self.module).flatten(self.module)
        self.bases = [base_P, base_P + np.float32(0.01)]

    def shard(self, name: str | None, n: int) -> Shard:
        if name:
            samples: Shard = self.make["samples"](name, n, n)
            return samples
        shard: Shard = self.make["shard"](n, self.shape, max(self.n_classes, 2), seed=n)
        if self.targets == "values":
            return Shard(shard.x, 0.1 * shard.x.reshape(n, -1)[:, : self.n_classes])
        if self.targets == "survival":
            return Shard(shard.x, np.stack([np.floor(9 * np.abs(shard.x[:, 0])), shard.y], 1).astype(np.float32))
        return shard

    def task(self, client: int, number: int, version: int = 0) -> Task:
        rate = self.config.training.optimizer.learning_rate * (1 - 0.3 * version)
        n = len(self.shards[client].y)
        task: Task = self.make["task"](self.config, client, n, task=number, base_version=version, learning_rate=rate)
        return task

    def trainer(self, group_size: int, offset_bytes: int = 0) -> training.Trainer:
        placed = [
            Shard(shifted(s.x, offset_bytes), shifted(s.y, offset_bytes // s.y.itemsize * s.y.itemsize))
            for s in self.shards
        ]
        config = self.config.model_copy(
            update={"training": self.config.training.model_copy(update={"group_size": group_size})}
        )
        population = self.make["population"](placed, self.n_classes)
        population.targets = self.targets
        return training.build(
            config,
            population,
            self.module,
            payload="delta",
            device=torch.device("cpu"),
            worker=0,
            clock=lambda: 0.0,
        )

    def train(
        self, trainer: training.Trainer, tasks: list[Task], offset_bytes: int = 0
    ) -> tuple[Float32, list[TaskReport]]:
        bases = [shifted(base_P, offset_bytes) for base_P in self.bases]
        out_GP: Float32 = shifted(np.full((len(tasks), bases[0].size), np.nan, np.float32), offset_bytes)
        return out_GP, trainer.train(tasks, bases.__getitem__, out_GP, lambda: None)


@pytest.fixture
def make(
    make_population: Make,
    make_config: Make,
    make_task: Make,
    make_shard: Make,
    make_module: Make,
    make_samples: Make,
) -> dict[str, Make]:
    rooms = {"population": make_population, "config": make_config, "task": make_task, "shard": make_shard}
    return rooms | {"module": make_module, "samples": make_samples}


others = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(0, 1)), max_size=9)


@pytest.mark.parametrize(
    ("path", "n_threads", "case"),
    [("fused", n_threads, case) for case in CASES for n_threads in (1, 2)]
    + [("stacked", 1, case) for case in CASES if case[0] in STACKED],
    ids=lambda part: "-".join(map(str, (*part[0].values(), *part[1]))) if isinstance(part, tuple) else str(part),
)
@SETTINGS
@given(
    data=st.data(),
    section=st.sampled_from(STEPS),
    batch_size=st.sampled_from([1, 3, 5, 8, 10, 16]),
    client=st.integers(0, 5),
    version=st.integers(0, 1),
    company=others,
    past=others,
    group_size=st.integers(1, 12),
    offset=st.integers(0, 15).map(lambda n: 4 * n),
)
def test_alone_or_in_company(
    make: dict[str, Make],
    case: Any,
    path: str,
    n_threads: int,
    data: st.DataObject,
    section: dict[str, Any],
    batch_size: int,
    client: int,
    version: int,
    company: list[tuple[int, int, int]],
    past: list[tuple[int, int, int]],
    group_size: int,
    offset: int,
) -> None:
    torch.set_num_threads(1)
    federation = Federation(make, case, section, path, batch_size)
    task = federation.task(client, 77, version)
    alone_GP, (alone,) = federation.train(federation.trainer(1), [task])
    tasks = [federation.task(*key) for key in company]
    slot = data.draw(st.integers(0, len(tasks)), label="slot")
    tasks.insert(slot, task)
    trainer = federation.trainer(group_size, offset)
    torch.set_num_threads(n_threads)
    try:
        if past:
            federation.train(trainer, [federation.task(*key) for key in past], offset)
        out_GP, reports = federation.train(trainer, tasks, offset)
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(out_GP[slot], alone_GP[0])
    assert alone_GP.any() or case[0].get("loss") == "cox"  # which gives a batch of one sample nothing to learn
    assert reports[slot] == alone
    assert [report.task for report in reports] == [task.task for task in tasks]
