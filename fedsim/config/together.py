"""What a rule asks of the sections around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config.personalization import DittoPersonalization, FedBnPersonalization, FineTunePersonalization
from fedsim.config.robust import check_robust
from fedsim.config.schedule import SyncSchedule
from fedsim.config.synchronous import CyclicRule, FedDynRule, FedNovaRule, QFedAvgRule, ScaffoldRule
from fedsim.config.training import AdamOptimizer, AsoFedObjective, SgdOptimizer

if TYPE_CHECKING:
    from fedsim.config.run import RunConfig


def check_rule(config: RunConfig) -> None:
    """Raises ValueError for a rule whose schedule, clients or record do not give what it needs."""
    rule, policy = config.aggregation, config.schedule.policy
    if rule.policies and policy not in rule.policies:
        raise ValueError(f"aggregation.rule {rule.rule} {rule.refusal}, got {policy}")
    optimizer, objective = config.training.optimizer, config.training.objective
    if isinstance(rule, ScaffoldRule) and not (isinstance(optimizer, SgdOptimizer) and optimizer.momentum == 0.0):
        got = "with momentum" if isinstance(optimizer, SgdOptimizer) else optimizer.kind
        raise ValueError(
            "aggregation.rule scaffold reads clients' mean gradients off their updates: training.optimizer must be sgd "
            f"without momentum, got {got}"
        )
    if isinstance(rule, FedNovaRule) and (isinstance(optimizer, AdamOptimizer) or objective.kind != "plain"):
        raise ValueError(
            "aggregation.rule fednova knows the weights of gradients in an update for sgd on a plain objective: "
            f"got training.optimizer {optimizer.kind} and training.objective {objective.kind}"
        )
    if isinstance(rule, FedDynRule) and objective.kind != "plain":
        raise ValueError(
            "aggregation.rule feddyn adds its own terms to the clients' objective: training.objective must be plain, "
            f"got {objective.kind}"
        )
    if isinstance(rule, QFedAvgRule) and config.record.losses != "full":
        raise ValueError(
            "aggregation.rule q-fedavg reads the loss of the version on all of a client's samples: record.losses must "
            f"be full, got {config.record.losses}"
        )
    schedule = config.schedule
    merged = (getattr(schedule, name, None) for name in ("cohort", "buffer", "k"))
    check_robust(rule, next((n for n in merged if n is not None), None))
    _check_cycle(config)


def _check_cycle(config: RunConfig) -> None:
    schedule = config.schedule
    if isinstance(config.aggregation, CyclicRule) and schedule.concurrency != 1:
        raise ValueError(
            "aggregation.rule cyclic passes one model on: schedule.cohort and over_selection must be 1, "
            f"got {schedule.concurrency} tasks a round"
        )
    if not isinstance(schedule, SyncSchedule) or schedule.selection != "cyclic":
        return
    if schedule.concurrency != 1 or config.devices.availability.kind != "always":
        raise ValueError(
            "schedule.selection cyclic gives each client its turn: schedule.cohort and over_selection must be 1 and "
            "devices.availability.kind always"
        )


def check_personal(config: RunConfig) -> None:
    """Raises ValueError for models of the clients' own that cannot be, and for an objective that needs what is not."""
    _check_aso_fed(config)
    personal, target = config.personalization, config.stop.target
    has_second = isinstance(personal, DittoPersonalization | FineTunePersonalization)
    if target is not None and target.of == "personal" and not has_second:
        raise ValueError("stop.target.of personal reads second models: personalization.kind must be ditto or fine-tune")
    buffers = getattr(config.model, "buffers", "refuse")
    if isinstance(personal, FedBnPersonalization) and not personal.layers and buffers == "average":
        raise ValueError(
            "personalization fedbn keeps the statistics of normalisation layers with their clients: model.buffers must "
            "be local or left out, got average"
        )
    if personal is None and buffers != "local":
        return
    what = "model.buffers local" if personal is None else f"personalization {personal.kind}"
    if not config.evaluation.clients:
        raise ValueError(f"{what} gives each client a model of its own: evaluation.clients must be true")
    if config.training.path == "none":
        raise ValueError(f"{what} needs training, got training.path none")
    if isinstance(config.aggregation, CyclicRule) and config.aggregation.released:
        raise ValueError(
            f"{what} does not go with aggregation.released, where each client goes on with its own model anyway"
        )


def _check_aso_fed(config: RunConfig) -> None:
    objective, optimizer = config.training.objective, config.training.optimizer
    if not isinstance(objective, AsoFedObjective):
        return
    if not (isinstance(optimizer, SgdOptimizer) and optimizer.momentum == 0.0 and optimizer.weight_decay == 0.0):
        raise ValueError(
            "training.objective aso-fed reads clients' mean gradients off their updates: training.optimizer must be "
            f"sgd without momentum and weight decay, got {optimizer.kind}"
        )
    if config.training.clip_norm is not None:
        raise ValueError("training.objective aso-fed reads clients' mean gradients off their updates: no clip_norm")
    if objective.dynamic_step and config.clock == "wall":
        raise ValueError(
            "training.objective.dynamic_step follows simulated delays: it needs clock: virtual, got wall (set it to "
            "false)"
        )
    if isinstance(config.aggregation, ScaffoldRule | FedDynRule):
        raise ValueError(
            f"training.objective aso-fed does not go with aggregation.rule {config.aggregation.rule}, which adds its "
            "own terms to the clients' gradients"
        )
