"""The four hospitals, against the published counts and against the recipe written a second time with pandas."""

import hashlib
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from fedsim.population.datasets import heart
from fedsim.population.datasets.heart import heart_population
from fedsim.population.population import ArrayPopulation

CLIENTS = np.arange(4)


@pytest.fixture(scope="module")
def hospitals() -> ArrayPopulation:
    return heart_population()


def test_names_and_shape(hospitals: ArrayPopulation) -> None:
    assert [hospitals.client_name(i) for i in CLIENTS] == ["cleveland", "hungary", "switzerland", "va"]
    assert [hospitals.client_named(hospitals.client_name(i)) for i in CLIENTS] == [0, 1, 2, 3]
    assert (hospitals.n_clients, hospitals.n_classes, hospitals.sample_shape) == (4, 2, (13,))
    assert tuple(hospitals.test_clients()) == (0, 1, 2, 3)
    assert hospitals.central_test() is None


def test_published_counts(hospitals: ArrayPopulation) -> None:
    train = hospitals.n_samples(CLIENTS)
    test = np.array([hospitals.test_shard(i).y.size for i in CLIENTS])
    assert train.tolist() == [199, 172, 30, 85]
    assert test.tolist() == [104, 89, 16, 45]
    assert (train + test).tolist() == [303, 261, 46, 130]
    assert (train + test).sum() == 740


def test_shards_are_what_training_expects(hospitals: ArrayPopulation) -> None:
    for client in CLIENTS:
        for shard in (hospitals.shard(client), hospitals.test_shard(client)):
            assert shard.x.dtype == np.float32 and shard.x.flags.c_contiguous
            assert shard.x.shape == (shard.y.size, 13)
            assert shard.y.dtype == np.int64 and set(shard.y.tolist()) <= {0, 1}
            assert np.isfinite(shard.x).all()


def test_scaled_by_the_centres_own_training_rows(hospitals: ArrayPopulation) -> None:
    for client in CLIENTS:
        x = hospitals.shard(client).x.astype(np.float64)
        varies = np.ptp(x, axis=0) > 0
        np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=1e-6)
        np.testing.assert_allclose(x.std(axis=0, ddof=1)[varies], 1.0, atol=1e-5)
    # cholesterol is 0 throughout in Switzerland
    assert not hospitals.shard(2).x[:, 3].any()


def test_same_rows_as_a_second_program(hospitals: ArrayPopulation) -> None:
    from sklearn.model_selection import train_test_split

    path = files(heart).joinpath("heart_disease_uci.csv")
    frame = pd.read_csv(str(path)).drop(columns=["slope", "ca", "thal"])
    frame.loc[frame.id == 304, "dataset"] = "Hungary"
    frame = frame.dropna()
    for column, first in (("cp", "typical angina"), ("restecg", "normal")):
        assert first in set(frame[column])
    plain = pd.DataFrame({"age": frame.age, "sex": frame.sex == "Male", "trestbps": frame.trestbps, "chol": frame.chol})
    plain["fbs"], plain["thalch"] = frame.fbs.astype(str).str.upper() == "TRUE", frame.thalch
    plain["exang"], plain["oldpeak"] = frame.exang.astype(str).str.upper() == "TRUE", frame.oldpeak
    for level in ("atypical angina", "non-anginal", "asymptomatic"):
        plain[level] = frame.cp == level
    for level in ("st-t abnormality", "lv hypertrophy"):
        plain[level] = frame.restecg == level
    for client, centre in enumerate(["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]):
        here = (frame.dataset == centre).to_numpy()
        x, y = plain[here].to_numpy(np.float64), (frame.num[here] > 0).to_numpy().astype(np.int64)
        stratify = y if (np.bincount(y, minlength=2) > 2).all() else None
        train, test = train_test_split(
            np.arange(y.size), train_size=0.66, test_size=1 - 0.66, random_state=43, stratify=stratify
        )
        train, test = np.sort(train), np.sort(test)
        scaled = (x - x[train].mean(0)) / (x[train].std(0, ddof=1) + 1e-9)
        for shard, rows in ((hospitals.shard(client), train), (hospitals.test_shard(client), test)):
            np.testing.assert_array_equal(shard.y, y[rows])
            np.testing.assert_allclose(shard.x, scaled[rows], rtol=1e-5, atol=1e-6)


def test_the_shipped_table_is_the_one_the_licence_names(hospitals: ArrayPopulation) -> None:
    folder = files(heart)
    digest = hashlib.sha256(folder.joinpath("heart_disease_uci.csv").read_bytes()).hexdigest()
    text = folder.joinpath("LICENSE.txt").read_text()
    assert digest == hospitals.data_sha256()
    assert all(word in text for word in (digest, "10.24432/C52P4X", "CC BY 4.0", "Janosi", "Detrano", "1989"))


def test_a_shard_is_the_callers_own(hospitals: ArrayPopulation) -> None:
    hospitals.shard(0).x[:] = 7.0
    hospitals.shard(0).y[:] = 7
    assert hospitals.shard(0).x.max() != 7.0 and hospitals.shard(0).y.max() == 1
