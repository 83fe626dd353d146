"""The local training that a run's clients do, where its rule has a say in their objective. Does not load torch."""

from __future__ import annotations

from fedsim.config import AsoFedObjective, FedDynRule, ProximalObjective, RunConfig, TrainingConfig


def local_training(config: RunConfig) -> TrainingConfig:
    """The training section, with the quadratic term that rule or objective add to what clients minimise."""
    if isinstance(config.aggregation, FedDynRule):
        proximal = ProximalObjective(kind="proximal", mu=config.aggregation.alpha)
        return config.training.model_copy(update={"objective": proximal})
    objective = config.training.objective
    if isinstance(objective, AsoFedObjective):  # whose other part is its clients' own
        return config.training.model_copy(update={"objective": ProximalObjective(kind="proximal", mu=objective.mu)})
    return config.training
