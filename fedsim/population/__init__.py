"""Who takes part: clients, their data and their devices."""

from fedsim.population.datasets import build, dataset_names, partition_names
from fedsim.population.population import Population

__all__ = ["Population", "build", "dataset_names", "partition_names"]
