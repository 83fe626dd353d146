"""Pooled training data, clients left out, and Fed-TCGA-BRCA from a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import population
from fedsim.engine.plan import plan
from fedsim.errors import ConfigError, DataError

Make = Callable[..., Any]
EVERYONE = np.arange(4)
HEADER = "pid,a,b,E,T\n"


def folder_of(tmp_path: Path, patients: str, split: str) -> Path:
    (tmp_path / "brca.csv").write_text(HEADER + patients)
    (tmp_path / "train_test_split.csv").write_text("pid,fold,fold2\n" + split)
    return tmp_path


def small(tmp_path: Path) -> Path:
    """Two patients a region, one to train and one to test, and one in no fold."""
    patients = "".join(f"p{n},{n},1,{n % 2},{10.0 + n}\n" for n in range(12)) + "p99,1,1,0,5\n"
    split = "".join(f"p{n},x,{'train' if n < 6 else 'test'}_{n % 6}\n" for n in range(12))
    return folder_of(tmp_path, patients, split)


def test_pooled_has_everything_at_client_0(make_config: Make, tmp_path: Path) -> None:
    apart = population.build(make_config(), tmp_path)
    pooled = population.build(make_config(partition={"kind": "pooled"}), tmp_path)
    assert pooled.n_samples(EVERYONE).tolist() == [486, 0, 0, 0]
    together = np.concatenate([apart.shard(client).x for client in range(4)])
    assert np.array_equal(pooled.shard(0).x, together) and pooled.shard(2).y.size == 0
    assert np.array_equal(pooled.test_shard(3).x, apart.test_shard(3).x)
    assert plan(make_config(partition={"kind": "pooled"}), tmp_path).members.tolist() == [0]  # type: ignore[union-attr]


def test_pooled_standardisation_is_over_all_training_rows(make_config: Make, tmp_path: Path) -> None:
    config = make_config(data={"dataset": "heart", "standardize": "pooled"}, partition={"kind": "pooled"})
    people = population.build(config, tmp_path)
    x = people.shard(0).x.astype(np.float64)
    assert np.abs(x.mean(axis=0)).max() < 1e-6 and x.std(axis=0, ddof=1) == pytest.approx(1.0, abs=1e-5)
    apart = population.build(make_config(), tmp_path)
    assert np.array_equal(people.test_shard(1).x, apart.test_shard(1).x)


def test_only_some_clients_train(make_config: Make, tmp_path: Path) -> None:
    made = plan(make_config(partition={"kind": "natural", "only": [2, 0]}), tmp_path)
    assert made.members is not None and made.members.tolist() == [0, 2]
    with pytest.raises(ConfigError, match=r"partition.only: got 4, allowed: 0 to 3"):
        plan(make_config(partition={"kind": "natural", "only": [4]}), tmp_path)


def test_tcga_brca_regions(make_config: Make, tmp_path: Path) -> None:
    small(tmp_path)
    people = population.build(make_config(data={"dataset": "tcga-brca", "folder": "."}), tmp_path)
    assert people.targets == "survival" and people.sample_shape == (2,)
    assert people.n_samples(np.arange(6)).tolist() == [1] * 6
    assert people.shard(3).x.tolist() == [[3.0, 1.0]] and people.shard(3).y.tolist() == [[13.0, 1.0]]
    assert people.test_shard(5).y.tolist() == [[21.0, 1.0]] and list(people.test_clients()) == list(range(6))


@pytest.mark.parametrize(
    ("patients", "split", "words"),
    [
        ("p1,x,1,0,2\n", "p1,x,train_0\n", "patient p1, column 'a': got 'x', allowed: numbers"),
        ("p1,nan,1,0,2\n", "p1,x,train_0\n", "patient p1, column 'a': allowed: finite numbers"),
        ("p1,1,1,0,2\n", "p1,x,train_0\n", "column 'fold2' has no patient"),
        ("", "p1,x,train_0\n", "brca.csv: no rows"),
    ],
)
def test_bad_files_get_one_line(patients: str, split: str, words: str, make_config: Make, tmp_path: Path) -> None:
    folder_of(tmp_path, patients, split)
    with pytest.raises(DataError, match=words):
        population.build(make_config(data={"dataset": "tcga-brca", "folder": "."}), tmp_path)


def test_the_real_tcga_brca(make_config: Make, tmp_path: Path) -> None:
    beside = Path(__file__).parents[3].parent / "shared" / "data" / "tcga_brca"
    folder = Path(os.environ.get("FEDSIM_TEST_TCGA_BRCA", str(beside)))
    if not folder.is_dir():
        pytest.skip("Fed-TCGA-BRCA is not shipped: FEDSIM_TEST_TCGA_BRCA names no folder with its files")
    people = population.build(make_config(data={"dataset": "tcga-brca", "folder": str(folder)}), tmp_path)
    assert people.n_samples(np.arange(6)).tolist() == [248, 156, 164, 129, 129, 40]
    assert [people.test_shard(region).y.shape[0] for region in range(6)] == [63, 40, 42, 33, 33, 11]
    assert people.sample_shape == (39,)
