"""A task's bits depend on the task alone: not on its slot, its company, its shard's place in memory, or the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim import models, training
from fedsim.layout import Layout
from fedsim.types import Float32, Shard, Task

Make = Callable[..., Any]
WIDTHS = [13, 39, 62]
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def shifted(array: Any, n_bytes: int) -> Any:
    """A copy of `array` that starts `n_bytes` after a 64-byte boundary."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + n_bytes
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == n_bytes % 64
    return copy


class Federation:
    """Clients of odd sizes with one model, and trainers over shards placed at given offsets."""

    def __init__(self, make: dict[str, Make], kind: dict[str, Any], shape: tuple[int, ...], n_classes: int) -> None:
        torch.set_num_threads(1)
        optimizer = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
        training_section = {"optimizer": optimizer, "batch_size": 5, "epochs": 2}
        self.make, self.n_classes = make, n_classes
        self.config = make["config"](model=kind, training=training_section)
        self.shards = [make["shard"](n, shape, n_classes, seed=n) for n in (17, 4, 11, 6)]
        self.module = models.build_initial(self.config.model, shape, n_classes, seed=2)
        self.base_P = Layout.of(self.module).flatten(self.module)

    def task(self, client: int, number: int) -> Task:
        task: Task = self.make["task"](self.config, client, self.shards[client].y.size, task=number)
        return task

    def trainer(self, offset_bytes: int, module: torch.nn.Module | None = None) -> training.Trainer:
        placed = [Shard(shifted(s.x, offset_bytes), shifted(s.y, offset_bytes)) for s in self.shards]
        return training.build(
            self.config,
            self.make["population"](placed, self.n_classes),
            module or self.module,
            payload="delta",
            device=torch.device("cpu"),
            worker=0,
            clock=lambda: 0.0,
        )

    def train(self, trainer: training.Trainer, tasks: list[Task], offset_bytes: int = 0) -> Float32:
        out_GP: Float32 = shifted(np.empty((len(tasks), self.base_P.size), np.float32), offset_bytes)
        base_P = shifted(self.base_P, offset_bytes)
        trainer.train(tasks, lambda version: base_P, out_GP, lambda: None)
        return out_GP


@pytest.fixture
def make(make_population: Make, make_config: Make, make_task: Make, make_shard: Make) -> dict[str, Make]:
    return {"population": make_population, "config": make_config, "task": make_task, "shard": make_shard}


CASES: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    *(({"kind": "logistic"}, (width,), 2) for width in WIDTHS),
    *(({"kind": "mlp", "hidden": [width]}, (width,), 7) for width in WIDTHS),
    ({"kind": "cnn", "channels": [3, 5], "kernel": 3}, (1, 13, 11), 7),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]['kind']}-{case[1][-1]}")
@SETTINGS
@given(
    company=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=5),
    slot=st.integers(0, 5),
    past=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=3),
    offset=st.integers(0, 15).map(lambda n: 4 * n),
)
def test_alone_or_in_company(
    make: dict[str, Make],
    case: Any,
    company: list[tuple[int, int]],
    slot: int,
    past: list[tuple[int, int]],
    offset: int,
) -> None:
    federation = Federation(make, *case)
    task = federation.task(0, 77)
    alone_P = federation.train(federation.trainer(0), [task])[0]
    others = [federation.task(*key) for key in company]
    slot = min(slot, len(others))
    trainer = federation.trainer(offset)
    for key in past:
        federation.train(trainer, [federation.task(*key)])
    rows_GP = federation.train(trainer, [*others[:slot], task, *others[slot:]], offset)
    assert np.array_equal(rows_GP[slot], alone_P) and alone_P.any()


@SETTINGS
@given(offset=st.integers(1, 15))
def test_parameters_that_are_views_at_odd_offsets(make: dict[str, Make], offset: int) -> None:
    federation = Federation(make, {"kind": "mlp", "hidden": [39]}, (13,), 7)
    task = federation.task(0, 77)
    alone_P = federation.train(federation.trainer(0), [task])[0]
    moved = models.build(federation.config.model, (13,), 7)
    for parameter in moved.parameters():
        parameter.data = torch.empty(parameter.numel() + 16)[offset : offset + parameter.numel()].view_as(parameter)
    assert np.array_equal(federation.train(federation.trainer(0, moved), [task])[0], alone_P)
