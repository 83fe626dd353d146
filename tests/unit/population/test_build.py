"""`build` from a whole configuration, the tables for `fedsim list`, and the digits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import population
from fedsim.config import DigitsData, IidPartition, RunConfig
from fedsim.errors import DataError
from fedsim.population.datasets.digits import digits_population
from fedsim.population.population import ArrayPopulation


def config(data: dict[str, Any], partition: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "data": data,
            "partition": partition or {"kind": "natural"},
            "model": {"kind": "logistic"},
            "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "batch_size": 4, "steps": 1},
            "schedule": {"policy": "async", "concurrency": 1},
            "aggregation": {"rule": "fedasync"},
            "stop": {"versions": 1},
        }
    )


def digits(seed: int = 0, clients: int = 5) -> ArrayPopulation:
    return digits_population(DigitsData(dataset="digits"), IidPartition(kind="iid", clients=clients), seed)


def test_build_chooses_by_name(tmp_path: Path) -> None:
    assert population.build(config({"dataset": "heart"}), tmp_path).client_name(3) == "va"
    people = population.build(config({"dataset": "synthetic-images", "clients": 10**6}), tmp_path)
    assert people.n_clients == 10**6 and people.shard(999_999).x.shape == (40, 1, 28, 28)
    people = population.build(config({"dataset": "synthetic-leaf", "clients": 7}), tmp_path)
    assert people.n_clients == 7 and people.sample_shape == (60,)
    people = population.build(config({"dataset": "digits"}, {"kind": "shards", "clients": 4}), tmp_path)
    assert people.n_clients == 4 and people.n_classes == 10


def test_relative_paths_start_at_the_configurations_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "t.csv"
    path.write_text("site,f,y\na,1,0\nb,2,1\n")
    options = {"dataset": "csv", "client": "site", "label": "y"}
    relative = population.build(config({**options, "path": "data/t.csv"}), tmp_path)
    absolute = population.build(config({**options, "path": str(path)}), tmp_path / "elsewhere")
    assert relative.data_sha256() == absolute.data_sha256()
    with pytest.raises(DataError, match="does not exist"):
        population.build(config({**options, "path": "data/t.csv"}), tmp_path / "elsewhere")


def test_more_dirichlet_clients_than_samples_are_refused(tmp_path: Path) -> None:
    partition = {"kind": "dirichlet", "clients": 5000, "alpha": 0.5}
    with pytest.raises(DataError, match=r"partition\.clients is 5000, above .* allowed: up to 1438"):
        population.build(config({"dataset": "digits"}, partition), tmp_path)


def test_the_tables_name_every_choice() -> None:
    assert set(population.dataset_names()) == {
        *("heart", "tcga-brca", "digits", "synthetic-images", "synthetic-leaf", "idx", "npz", "hdf5", "csv", "user")
    }
    assert set(population.partition_names()) == {"natural", "pooled", "iid", "dirichlet", "shards", "quantity"}
    for line in (*population.dataset_names().values(), *population.partition_names().values()):
        assert line and "\n" not in line and not line.startswith("Base of")


def test_importing_the_room_is_light() -> None:
    heavy = "{'torch', 'mpi4py', 'h5py', 'pandas', 'sklearn', 'scipy', 'matplotlib'}"
    code = f"import sys, fedsim.population; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_digits_are_scaled_and_split() -> None:
    people = digits()
    test = people.central_test()
    assert test is not None and people.sample_shape == (1, 8, 8) and people.n_classes == 10
    sizes = people.n_samples(np.arange(5))
    assert sizes.sum() + test.y.size == 1797 and sizes.max() - sizes.min() <= 1
    assert abs(test.y.size - 0.2 * 1797) < 5
    for shard in (test, *(people.shard(i) for i in range(5))):
        assert shard.x.dtype == np.float32 and shard.x.min() >= 0.0 and shard.x.max() <= 1.0
    assert max(people.shard(i).x.max() for i in range(5)) == 1.0
    counts = np.bincount(test.y, minlength=10)
    assert counts.min() >= 34 and counts.max() <= 37  # a fifth of 174 to 183 of each


def test_digits_training_and_test_samples_make_up_the_set() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    people = digits()
    test = people.central_test()
    assert test is not None
    shards = [test, *(people.shard(i) for i in range(5))]
    pixels = np.concatenate([np.rint(shard.x * 16).reshape(-1, 64) for shard in shards])
    got = np.c_[pixels, np.concatenate([shard.y for shard in shards])].tolist()
    assert sorted(got) == sorted(np.c_[images, labels].tolist())


def test_digits_follow_the_seed() -> None:
    first, again, other = (digits(seed).central_test() for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert first.x.tobytes() == again.x.tobytes() != other.x.tobytes()
    assert digits(0).data_sha256() == digits(1).data_sha256()
