"""The data sets by name, and the one place that chooses between them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

from fedsim.config import (
    CsvData,
    DataConfig,
    DigitsData,
    Hdf5Data,
    HeartData,
    IdxData,
    NpzData,
    PartitionConfig,
    RunConfig,
    SyntheticImagesData,
    SyntheticLeafData,
    TcgaBrcaData,
    UserData,
)
from fedsim.population.datasets.csv_table import csv_population
from fedsim.population.datasets.digits import digits_population
from fedsim.population.datasets.hdf5 import Hdf5Population
from fedsim.population.datasets.heart import heart_population
from fedsim.population.datasets.idx import idx_population
from fedsim.population.datasets.npz import npz_population
from fedsim.population.datasets.own import OwnData
from fedsim.population.datasets.synthetic_images import SyntheticImages
from fedsim.population.datasets.synthetic_leaf import SyntheticLeaf
from fedsim.population.datasets.tcga_brca import TcgaBrca
from fedsim.population.pooled import Pooled
from fedsim.population.population import Population
from fedsim.userfiles import UserFunction


def build(config: RunConfig, base_dir: Path, own: UserFunction | None = None) -> Population:
    """The population of a run. Relative paths in `config.data` start at `base_dir`, the configuration file's folder;
    `own` is the user's own function, where that is the data set.

    Files are opened and checked here; samples are read, or made, when a shard is asked for, as far as the
    format allows. Raises DataError for files or numbers of clients that cannot be used.
    """
    if isinstance(config.data, UserData):
        assert own is not None
        people: Population = OwnData(own, config.seed, base_dir)
    else:
        people = _natural(config, base_dir)
    return Pooled(people) if config.partition.kind == "pooled" else people


def _natural(config: RunConfig, base_dir: Path) -> Population:
    data, seed = config.data, config.seed
    match data:
        case HeartData():
            return heart_population(data.standardize)
        case TcgaBrcaData():
            return TcgaBrca(data, base_dir)
        case DigitsData():
            return digits_population(data, config.partition, seed)
        case SyntheticImagesData():
            return SyntheticImages(data, seed)
        case SyntheticLeafData():
            return SyntheticLeaf(data, seed)
        case IdxData():
            return idx_population(data, config.partition, seed, base_dir)
        case NpzData():
            return npz_population(data, config.partition, seed, base_dir)
        case Hdf5Data():
            return Hdf5Population(data, base_dir)
        case CsvData():
            return csv_population(data, seed, base_dir)
        case UserData():
            raise AssertionError("made above")


def dataset_names() -> dict[str, str]:
    """Data sets that a configuration may name, each with a line that describes it."""
    return _described(DataConfig, "dataset")


def partition_names() -> dict[str, str]:
    """Kinds of partition that a configuration may name, each with a line that describes it."""
    return _described(PartitionConfig, "kind")


def _described(choice: Any, key: str) -> dict[str, str]:
    """Name -> first line of the docstring, for the classes of a discriminated union of the configuration."""
    classes = get_args(get_args(choice)[0])
    return {get_args(c.model_fields[key].annotation)[0]: inspect.cleandoc(c.__doc__).splitlines()[0] for c in classes}
