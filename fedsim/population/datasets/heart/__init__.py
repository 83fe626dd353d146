"""UCI Heart Disease as four hospitals: the recipe of FLamby's Fed-Heart-Disease.

Reference: du Terrail et al., "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic
Healthcare Settings", NeurIPS 2022 (Datasets and Benchmarks). Data: see LICENSE.txt beside this file.
740 complete rows of 303, 261, 46 and 130; 13 features; label 1 where the diagnosis is above 0.
"""

from __future__ import annotations

import csv
import hashlib
from importlib.resources import files
from typing import Literal

import numpy as np

from fedsim.population.partition import Partition
from fedsim.population.population import ArrayData, ArrayPopulation, Samples
from fedsim.types import Float64, Int64

NAMES = ("cleveland", "hungary", "switzerland", "va")
FEATURES = (
    *("age", "sex", "trestbps", "chol", "fbs", "thalch", "exang", "oldpeak"),
    *("cp: atypical angina", "cp: non-anginal", "cp: asymptomatic"),
    *("restecg: st-t abnormality", "restecg: lv hypertrophy"),
)
_CENTRES = {"Cleveland": 0, "Hungary": 1, "Switzerland": 2, "VA Long Beach": 3}
_MISPLACED = {"304": 1}  # the first row of the Hungarian file, which the table counts to Cleveland
_CONTINUOUS = ("age", "trestbps", "chol", "thalch", "oldpeak")
_TRUTH = {"sex": "Male", "fbs": "TRUE", "exang": "TRUE"}
_LEFT_OUT = ("slope", "ca", "thal")  # mostly missing outside Cleveland
_TRAIN_FRACTION = 0.66
_SPLIT_SEED = 43


def heart_population(standardize: Literal["centre", "pooled"] = "centre") -> ArrayPopulation:
    """The four hospitals, each with a training and a test set of its own; the same for every seed.

    FLamby scales pooled training samples by all of them, and each centre's test samples by its own training set still.
    """
    content = files(__package__).joinpath("heart_disease_uci.csv").read_bytes()
    x, y_N, centre_N = _table(content.decode())
    test_N = np.zeros(y_N.size, dtype=np.bool_)
    raw = x.copy()
    for centre in range(len(NAMES)):
        rows = np.flatnonzero(centre_N == centre)
        train, test = _split(y_N[rows])
        test_N[rows[test]] = True
        x[rows] = _standardized(x[rows], x[rows[train]])
    if standardize == "pooled":
        x[~test_N] = _standardized(raw[~test_N], raw[~test_N])
    train_part, test_part = (_samples(x[mask], y_N[mask]) for mask in (~test_N, test_N))
    data = ArrayData(train_part, test_part, 2, lambda: hashlib.sha256(content).hexdigest())
    owners, test_owners = (Partition.from_owners(centre_N[mask], len(NAMES)) for mask in (~test_N, test_N))
    return ArrayPopulation(data, owners, test_owners, NAMES)


def _table(text: str) -> tuple[Float64, Int64, Int64]:
    """Features (N, 13) as they are, labels (N,) and centres (N,) of the rows without gaps, in the file's order."""
    rows = [row for row in csv.DictReader(text.splitlines()) if all(v for k, v in row.items() if k not in _LEFT_OUT)]
    x = np.array([[_value(row, name) for name in FEATURES] for row in rows], dtype=np.float64)
    y_N = np.array([int(row["num"]) > 0 for row in rows], dtype=np.int64)
    centre_N = np.array([_MISPLACED.get(row["id"], _CENTRES[row["dataset"]]) for row in rows], dtype=np.int64)
    return x, y_N, centre_N


def _value(row: dict[str, str], feature: str) -> float:
    """A feature of a row: the number, the truth of a flag as 0 or 1, or whether a category is the one named."""
    column, _, category = feature.partition(": ")
    if column in _CONTINUOUS:
        return float(row[column])
    return float(row[column] == (category or _TRUTH[column]))


def _split(y_N: Int64) -> tuple[Int64, Int64]:
    """Rows of a centre for training and for testing, stratified where every class has more than two rows."""
    from sklearn.model_selection import train_test_split

    stratify = y_N if np.bincount(y_N).min() > 2 else None
    train, test = train_test_split(
        np.arange(y_N.size),
        train_size=_TRAIN_FRACTION,
        test_size=1 - _TRAIN_FRACTION,
        random_state=_SPLIT_SEED,
        shuffle=True,
        stratify=stratify,
    )
    return train, test


def _standardized(x: Float64, train: Float64) -> Float64:
    result: Float64 = (x - train.mean(axis=0)) / (train.std(axis=0, ddof=1) + 1e-9)
    return result


def _samples(x: Float64, y_N: Int64) -> Samples:
    inputs = x.astype(np.float32)
    return Samples(y_N, inputs.shape[1:], lambda: inputs)
