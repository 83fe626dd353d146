"""Survival of breast cancer patients in six regions: the recipe of FLamby's Fed-TCGA-BRCA. Not shipped.

Reference: du Terrail et al., "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic
Healthcare Settings", NeurIPS 2022 (Datasets and Benchmarks). The folder holds `brca.csv` (a row a patient: pid, 39
clinical features, used as they are, E for a death and T for the days) and `train_test_split.csv`, whose column fold2
says which region's training or test set a patient is in; patients in none are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsim.config import TcgaBrcaData
from fedsim.errors import DataError
from fedsim.population.datasets.checks import data_file, files_sha256
from fedsim.population.population import Population
from fedsim.types import Float64, Int64, Shard, Targets

N_REGIONS = 6
_FOLD = re.compile(r"(train|test)_([0-5])")
_NOT_FEATURES = ("pid", "E", "T")


class TcgaBrca(Population):
    """Six regions, each with a training and a test set of its own; the same for every seed."""

    targets: Targets = "survival"
    n_classes = 1
    n_clients = N_REGIONS

    def __init__(self, data: TcgaBrcaData, base_dir: Path) -> None:
        self._paths = [data_file(base_dir, f"{data.folder}/{name}.csv", "data.folder") for name in _FILES]
        patients, split = (_rows(path, columns) for path, columns in zip(self._paths, _FILES.values(), strict=True))
        folds = {row["pid"]: _FOLD.fullmatch(row["fold2"]) for row in split}
        kept = [(row, folds[row["pid"]]) for row in patients if row["pid"] in folds]
        features = [name for name in patients[0] if name not in _NOT_FEATURES]
        self.sample_shape = (len(features),)
        self._x = _numbers(kept, features, self._paths[0]).astype(np.float32)
        self._y = _numbers(kept, ("T", "E"), self._paths[0]).astype(np.float32)
        places = [(fold[1], int(fold[2])) if fold else ("", -1) for _, fold in kept]
        self._rows = {
            part: [np.flatnonzero([place == (part, region) for place in places]) for region in range(N_REGIONS)]
            for part in ("train", "test")
        }
        for part, rows in self._rows.items():
            if not all(found.size for found in rows):
                raise DataError(f"{self._paths[1]}: column 'fold2' has no patient of {part}_0 to {part}_5 for a region")

    def n_samples(self, clients: Int64) -> Int64:
        sizes = np.array([rows.size for rows in self._rows["train"]], dtype=np.int64)
        found: Int64 = sizes[clients]
        return found

    def shard(self, client: int) -> Shard:
        return self._take("train", client)

    def test_clients(self) -> Sequence[int]:
        return range(N_REGIONS)

    def test_shard(self, client: int) -> Shard:
        return self._take("test", client)

    def data_sha256(self) -> str:
        return files_sha256(self._paths)

    def _take(self, part: str, client: int) -> Shard:
        rows = self._rows[part][self._checked(client)]
        return Shard(self._x[rows], self._y[rows])


_FILES = {"brca": ("pid", "E", "T"), "train_test_split": ("pid", "fold2")}


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns, and at least one row. Raises DataError if it has not."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    for column in columns:
        if column not in rows[0]:
            raise DataError(f"{path}: no column '{column}'")
    return rows


def _numbers(kept: Sequence[tuple[dict[str, str], object]], columns: Sequence[str], path: Path) -> Float64:
    """The values of some columns, float64 (N, columns). Raises DataError for one that is no finite number."""
    table = np.empty((len(kept), len(columns)))
    for i, (row, _) in enumerate(kept):
        for j, column in enumerate(columns):
            try:
                table[i, j] = float(row[column] or "")
            except (TypeError, ValueError):
                raise DataError(
                    f"{path}: patient {row['pid']}, column '{column}': got '{row[column]}', allowed: numbers"
                ) from None
    if not np.isfinite(table).all():
        i, j = (int(n) for n in np.argwhere(~np.isfinite(table))[0])
        raise DataError(f"{path}: patient {kept[i][0]['pid']}, column '{columns[j]}': allowed: finite numbers")
    return table
