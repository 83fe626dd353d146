"""The local training that a run's clients do, where its rule has a say in their objective. Does not load torch."""

from __future__ import annotations

from fedsim.config import FedDynRule, ProximalObjective, RunConfig, TrainingConfig


def local_training(config: RunConfig) -> TrainingConfig:
    """The training section, with the quadratic term that the rule adds to the clients' objective."""
    if isinstance(config.aggregation, FedDynRule):
        proximal = ProximalObjective(kind="proximal", mu=config.aggregation.alpha)
        return config.training.model_copy(update={"objective": proximal})
    return config.training
