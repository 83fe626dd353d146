"""Tasks and reports in columns: groups are trained from records, and answered in records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import models, training
from fedsim.errors import ClientError
from fedsim.layout import Layout
from fedsim.tables import SENT, ReportTable, TaskTable
from fedsim.training.group import named, wanted
from fedsim.types import Float32, Shard, Task
from fedsim.whereabouts import address

Make = Callable[..., Any]
SIZES = (3, 40, 9, 17, 40)


class Bench:
    """A trainer of one path, with tasks of unlike length from two versions at rates of their own."""

    def __init__(self, path: str, make: dict[str, Make], shards: list[Shard], **sections: Any) -> None:
        config = make["config"](
            model={"kind": "mlp", "hidden": [5]}, training={"path": path, "group_size": 3, "epochs": 2}, **sections
        )
        module = models.build_initial(config.model, (7,), 3, seed=1)
        self.trainer = training.build(
            config, make["population"](shards, 3), module,
            payload="delta", device=torch.device("cpu"), worker=4, clock=lambda: 0.0,
        )  # fmt: skip
        first_P = Layout.of(module).flatten(module)
        self.bases = [first_P, first_P * np.float32(1.5)]
        self.tasks: list[Task] = [
            make["task"](config, i, n, task=20 + i, base_version=i % 2, learning_rate=0.1 / (1 + i))
            for i, n in enumerate(SIZES)
        ]

    def train(self, tasks: Any) -> tuple[Any, Float32]:
        out_GP = np.empty((len(tasks), self.bases[0].size), np.float32)
        return self.trainer.train(tasks, self.bases.__getitem__, out_GP, lambda: None), out_GP


@pytest.fixture
def make(make_population: Make, make_config: Make, make_task: Make) -> dict[str, Make]:
    return {"population": make_population, "config": make_config, "task": make_task}


@pytest.fixture
def shards(make_shard: Make) -> list[Shard]:
    return [make_shard(n, (7,), 3, seed=n) for n in SIZES]


@pytest.mark.parametrize("losses", ["running", "full"])
@pytest.mark.parametrize("path", ["loop", "fused", "stacked"])
def test_records_train_as_their_tasks_do(make: dict[str, Make], shards: list[Shard], path: str, losses: str) -> None:
    bench = Bench(path, make, shards, record={"losses": losses})
    by_tasks, from_tasks_GP = bench.train(bench.tasks)
    rows = TaskTable.of(bench.tasks).rows.repeat(2)
    for table in (TaskTable.of(bench.tasks), TaskTable(rows)[::2]):
        by_table, from_table_GP = bench.train(table)
        assert list(by_tasks) == list(by_table) and from_tasks_GP.tobytes() == from_table_GP.tobytes()
    for report, task in zip(by_tasks, bench.tasks, strict=True):
        assert report[:4] == (task.task, 4, task.n_samples, task.n_steps)
        assert [type(value) for value in report] == [int] * 4 + [float] * 4
    sent = ReportTable.of(by_tasks).rows["sent"]
    assert (sent == SENT).all()


@pytest.mark.parametrize("path", ["fused", "stacked"])
def test_the_first_that_fails_as_they_were_given_is_named(
    make: dict[str, Make], shards: list[Shard], path: str
) -> None:
    for client in (0, 1):
        shards[client].x[:] *= 1e30
    bench = Bench(path, make, shards)
    for order, at in (((2, 0, 1), 0), ((2, 1, 0), 1)):
        with pytest.raises(ClientError, match=rf"client {at}, task {20 + at}, version {at}, step \d of "):
            bench.train([bench.tasks[i] for i in order])


@pytest.mark.parametrize("path", ["loop", "fused", "stacked"])
def test_no_tasks_have_no_reports(make: dict[str, Make], shards: list[Shard], path: str) -> None:
    reports, _ = Bench(path, make, shards).train(TaskTable.of([]))
    assert len(reports) == 0 and list(reports) == []


def test_a_client_twice_in_a_group_trains_twice(make: dict[str, Make], shards: list[Shard]) -> None:
    bench = Bench("fused", make, shards)
    (alone,), alone_GP = bench.train(bench.tasks[:1])
    again = bench.tasks[0]._replace(task=99)
    fresh = Bench("fused", make, shards, memory={"worker_data_bytes": 0})
    (first, second), out_GP = fresh.train([bench.tasks[0], again])
    assert first == alone and second.task == 99 and np.array_equal(out_GP[0], alone_GP[0])


@pytest.mark.parametrize("names", [[7, 7, 7], [7, 3, 7, 5]])
def test_vectors_by_name(names: list[int]) -> None:
    vectors = {name: np.full(4, name, np.float32) for name in set(names)}
    flat = named(vectors, names)
    assert flat.is_one == (len(vectors) == 1) and len(flat) == len(names)
    assert flat.addresses_G.tolist() == [address(vectors[name]) for name in names]
    assert flat.tensor()[:, 0].tolist() == names
    order_G = np.arange(len(names))[::-1]
    turned = flat.ordered(order_G)
    assert turned.tensor()[:, 0].tolist() == names[::-1]
    assert turned.addresses_G.tolist() == flat.addresses_G[order_G].tolist()


def test_rows_that_are_written_to_lie_together_or_not() -> None:
    rows_GP = np.zeros((5, 7), np.float32)
    for rows in (rows_GP, rows_GP[1:4], [rows_GP[3], rows_GP[0]]):
        assert wanted(rows).addresses_G.tolist() == [address(row) for row in rows]
