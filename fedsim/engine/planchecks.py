"""What a plan is refused for: schedules and stops that could never come to anything, and compression that misleads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.compression import Codec
from fedsim.config import (
    BufferedSchedule,
    FedCompassRule,
    FedDynRule,
    KAsyncSchedule,
    RunConfig,
    SafaSchedule,
    ScaffoldRule,
    SyncSchedule,
    TiersSchedule,
    TiflSelection,
)
from fedsim.errors import ConfigError
from fedsim.population.devices import Devices

if TYPE_CHECKING:
    from fedsim.aggregation import Rule


def check_schedule(config: RunConfig, n: int) -> None:
    """Refuses policies that could never make a version with `n` clients."""
    schedule = config.schedule
    if isinstance(schedule, SyncSchedule) and schedule.cohort > n:
        raise ConfigError(f"schedule.cohort is {schedule.cohort}, above the {n} clients with data: no round could end")
    if isinstance(schedule, KAsyncSchedule) and schedule.k > n:
        raise ConfigError(f"schedule.k is {schedule.k}, above the {n} clients with data: no version could be made")
    if isinstance(schedule, TiersSchedule) and schedule.tiers * schedule.cohort > n:
        raise ConfigError(
            f"schedule.tiers x schedule.cohort is {schedule.tiers} x {schedule.cohort}, above the {n} clients with data"
        )
    if isinstance(schedule, SafaSchedule) and schedule.quota > n:
        raise ConfigError(
            f"schedule.quota is {schedule.quota}, above the {n} clients with data: no round would fill it"
        )
    if isinstance(schedule.selection, TiflSelection) and n // schedule.selection.tiers < schedule.concurrency:
        raise ConfigError(
            f"schedule.selection.tiers: {schedule.selection.tiers} tiers of {n} clients with data are smaller than a "
            f"round's {schedule.concurrency} tasks; fewer tiers or a smaller cohort would do"
        )
    shares_by_client = isinstance(config.aggregation, FedCompassRule)
    if shares_by_client and isinstance(schedule, BufferedSchedule) and schedule.buffer > n:
        raise ConfigError(
            f"schedule.buffer is {schedule.buffer}, above the {n} clients with data: rule fedcompass gives an update "
            "the share of a client, and the shares of a version would add up to more than all"
        )
    n_updates = config.stop.updates
    too_few = n_updates is not None and isinstance(schedule, BufferedSchedule) and n_updates < schedule.buffer
    if too_few and config.stop.versions is None:
        raise ConfigError(f"schedule.buffer is above stop.updates ({n_updates}): no version would be made")


def check_time(config: RunConfig, devices: Devices) -> None:
    """A virtual clock that stands still never reaches a virtual time."""
    stop = config.stop
    only_virtual = stop.virtual_s is not None and stop.versions is None and stop.updates is None
    if only_virtual and devices.mean_task_s(1, 1) == 0.0 and config.schedule.policy != "window":
        raise ConfigError(
            "stop.virtual_s is never reached: a task takes no virtual time (devices.compute, latency, bytes_per_s)"
        )


def check_target(config: RunConfig, metric_names: Sequence[str]) -> None:
    """A target is on something that the task's loss measures."""
    target = config.stop.target
    if target is not None and target.metric not in ("loss", *metric_names):
        raise ConfigError(
            f"stop.target.metric: {target.metric} is not measured; allowed: {', '.join(metric_names)}, loss"
        )


def check_compression(config: RunConfig, codec: Codec | None, n_parameters: int, n_extras: int) -> None:
    """Refuses what would not make messages shorter, or would change what a rule believes to have sent."""
    kind, versions = config.compression.updates.kind, config.compression.versions
    if codec is not None and codec.n_bytes >= 4 * n_parameters:
        raise ConfigError(
            f"compression.updates {kind}: {codec.n_bytes:,} bytes an update of {n_parameters:,} parameters, and "
            f"{4 * n_parameters:,} without it; allowed: none, or another kind"
        )
    is_forgetful = getattr(config.compression.updates, "error_feedback", True) is False
    if is_forgetful and isinstance(config.aggregation, ScaffoldRule | FedDynRule):
        raise ConfigError(
            f"compression.updates {kind} with error_feedback false: with rule {config.aggregation.rule} clients reckon "
            "with what they trained, and the server would never get all of it; allowed: error_feedback true, or none"
        )
    if versions != "float32" and n_extras:
        raise ConfigError(
            f"compression.versions {versions}: rule {config.aggregation.rule} sends more than weights, and reckons "
            "with what it sent; allowed: float32"
        )


def check_versions(config: RunConfig, rule: Rule) -> None:
    """Refuses rounded versions where a rule sets what was sent against its own weights, which are not rounded."""
    versions = config.compression.versions
    if versions != "float32" and rule.needs_base:
        raise ConfigError(
            f"compression.versions {versions}: rule {rule.name} reckons with how far the model moved since the version "
            "that a client got, which rounding would falsify; allowed: float32"
        )
