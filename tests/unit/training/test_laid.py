"""Batches from where the data set lies: the same numbers as from shards, and no shard is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fedsim
from fedsim import population
from fedsim.configfile import from_mapping
from fedsim.errors import DataError
from fedsim.population import laid, nodecache
from fedsim.population.attackers import Poisoned, poisoned
from fedsim.population.laid import Laid
from fedsim.population.population import ArrayPopulation, inputs_of
from fedsim.training.objectives import CrossEntropy
from fedsim.training.shards import DeviceShard, LaidShard, ShardCache
from fedsim.types import Shard

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (60, 6, 7, 3), np.uint8)
ARRAYS = {
    "bytes": BYTES,
    "channels moved": np.moveaxis(BYTES, 3, 1),
    "float32": RNG.normal(size=(60, 9)).astype(np.float32),
    "float64": RNG.normal(size=(60, 9)) * 1e3,
    "whole numbers": RNG.integers(-(2**40), 2**40, (60, 5)),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_writes_what_a_shard_would_hold(name: str, dtype: Any) -> None:
    inputs, rows_N = ARRAYS[name], np.array([3, 59, 4, 17, 20])
    n_features = int(np.prod(inputs.shape[1:]))
    order_B, memory = np.array([4, 0, 0, 2]), np.full((4, n_features + 5), 7, dtype)
    Laid(inputs, rows_N, rows_N).write(order_B, memory[:, :n_features])
    wanted = inputs_of(inputs[rows_N])[order_B].reshape(4, -1)
    assert np.array_equal(memory[:, :n_features], wanted) and (memory[:, n_features:] == 7).all()


def test_no_shard_is_made_of_what_would_not_fit() -> None:
    inputs, made = ARRAYS["bytes"], list[int]()

    def make() -> Shard:
        made.append(1)
        return Shard(inputs_of(inputs[:4]), np.arange(4))

    small = Laid(inputs, np.arange(4), np.arange(4))
    for n_at_once, kind in ((1, DeviceShard), (8, LaidShard)):
        cache = ShardCache(small.n_bytes + 64, CPU, CrossEntropy(), n_at_once=n_at_once)
        assert isinstance(cache.get(0, make, lambda: small), kind)
        assert cache.n_bytes <= small.n_bytes + 64
    assert made == [1]


def test_both_kinds_of_shard_give_the_same_batches() -> None:
    inputs, labels = ARRAYS["channels moved"], np.arange(60) % 3
    rows_N = np.arange(5, 45, 3)
    whole = ShardCache(10**9, CPU, CrossEntropy()).get(0, lambda: Shard(inputs_of(inputs[rows_N]), labels[rows_N]))
    there = LaidShard(Laid(inputs, rows_N, labels[rows_N]), CrossEntropy())
    assert whole.n_samples == there.n_samples and whole.device == there.device
    for rows_B in (torch.tensor([2, 0, 11]), torch.arange(12)):
        for a, b in zip(whole.batch(rows_B), there.batch(rows_B), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype
            assert b.data_ptr() % 64 == 0  # products were seen to differ with the place of their operands


def test_tokens_are_checked_where_they_lie() -> None:
    inputs = np.full((10_000, 2), 5, np.int64)
    inputs[9_000, 1] = 6
    cache = ShardCache(0, CPU, CrossEntropy(), vocabulary=6)
    with pytest.raises(DataError, match=r"train samples of client 3: value at \(9000, 1\) is 6"):
        cache.get(("train", 3), lambda: pytest.fail("made"), lambda: Laid(inputs, np.arange(10_000), inputs[:, 0]))


def archive(folder: Path, images: NDArray[Any]) -> Path:
    labels = np.arange(len(images)) % 4
    np.savez(
        folder / "data.npz", train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9]
    )
    return folder / "data.npz"


def config(path: Path, training_path: str, worker_data_bytes: int) -> dict[str, Any]:
    return {
        "name": "laid",
        "data": {"dataset": "npz", "path": str(path)},
        "partition": {"kind": "dirichlet", "clients": 5, "alpha": 0.5, "min_samples": 2},
        "model": {"kind": "cnn", "channels": [3], "kernel": 3},
        "training": {
            "optimizer": {"kind": "sgd", "learning_rate": 0.05},
            "batch_size": 4,
            "epochs": 2,
            "path": training_path,
        },
        "schedule": {"policy": "sync", "cohort": 5},
        "aggregation": {"rule": "fedavg"},
        "record": {"losses": "full"},
        "memory": {"worker_data_bytes": worker_data_bytes},
        "stop": {"versions": 2},
    }


def test_turned_labels_are_turned_where_samples_lie(tmp_path: Path) -> None:
    plain = config(archive(tmp_path, RNG.integers(0, 256, (60, 8, 8), np.uint8)), "fused", 0)
    made = from_mapping({**plain, "attack": {"kind": "label-flip", "clients": [1, 3]}})
    people = poisoned(population.build(made, tmp_path), made, np.array([1, 3]))
    assert isinstance(people, Poisoned) and people.has_central_test
    for client in range(5):
        there, whole = people.laid(client), people.shard(client)
        assert there is not None and np.array_equal(there.y, whole.y)
        x = np.empty((whole.y.size, 64), np.float32)
        there.write(np.arange(whole.y.size), x)
        assert np.array_equal(x, whole.x.reshape(-1, 64))


def scores(run: Any) -> list[tuple[Any, ...]]:
    columns = ["version", "client", "n_samples", "loss", *run.metric_names]
    return list(zip(*(run.column("evaluations", name).tolist() for name in columns), strict=True))


@pytest.mark.parametrize("training_path", ["loop", "fused", "stacked"])
def test_runs_end_with_the_same_bits(training_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nodecache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(nodecache, "LEAST_BYTES", 100)
    path = archive(tmp_path, RNG.integers(0, 256, (60, 8, 8), np.uint8))
    whole = fedsim.run(config(path, training_path, 2**30), tmp_path / "whole")
    monkeypatch.setattr(ArrayPopulation, "shard", lambda *_: pytest.fail("a shard was made"))
    monkeypatch.setattr(ArrayPopulation, "central_test", lambda *_: pytest.fail("a shard was made"))
    bound = fedsim.run(config(path, training_path, 0), tmp_path / "bound")
    monkeypatch.setattr(laid, "LARGE_BYTES", 1)  # and where the data are mapped and large, whatever the bound
    large = fedsim.run(config(path, training_path, 2**30), tmp_path / "large")
    assert whole is not None and bound is not None and large is not None
    for other in (bound, large):
        assert other.summary()["model_sha256"] == whole.summary()["model_sha256"]
        assert scores(other) == scores(whole)
