"""Policies and selections from their configurations, and who of them decides steps or learns from updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsim.config import (
    AsyncSchedule,
    BufferedSchedule,
    CompassSchedule,
    KAsyncSchedule,
    OortSelection,
    PiscesSchedule,
    PiscesSelection,
    PowerOfChoiceSelection,
    SafaSchedule,
    ScheduleConfig,
    SyncSchedule,
    TiersSchedule,
    TiflSelection,
    UserSelection,
    WindowSchedule,
)
from fedsim.schedule.adaptive import CompassPolicy, LagBoundedPolicy, PiscesPolicy, SafaPolicy
from fedsim.schedule.guided import GuidedSelection, PiscesChoice, TiflChoice
from fedsim.schedule.learning import Learner, Pace, ToldPace
from fedsim.schedule.own import OwnChoice
from fedsim.schedule.policies import (
    BufferedPolicy,
    KAsyncPolicy,
    Policy,
    SyncPolicy,
    TiersPolicy,
    WindowPolicy,
)
from fedsim.schedule.selection import Availability, Selection
from fedsim.schedule.utility import OortChoice, PowerOfChoice
from fedsim.types import Int64
from fedsim.userfiles import UserFunction


def build_policy(config: ScheduleConfig, n_clients: int, may_fail: bool = False) -> Policy:
    """The state machine that a configuration asks for, among `n_clients` that can be selected.

    Never more tasks are in flight than there are clients: a slot that nobody can fill must not let a client that waits
    for the next version start before it. Where training `may_fail` and be dropped, updates beyond a round's cohort
    may be needed in the place of those that failed.
    """
    in_flight = min(config.concurrency, n_clients)
    match config:
        case SyncSchedule():
            return SyncPolicy(config.cohort, in_flight, config.deadline_s, may_fail)
        case AsyncSchedule():
            return BufferedPolicy(in_flight, 1)
        case BufferedSchedule(max_lag=None):
            return BufferedPolicy(in_flight, config.buffer)
        case BufferedSchedule():
            assert config.max_lag is not None
            return LagBoundedPolicy(in_flight, config.buffer, config.max_lag)
        case KAsyncSchedule():
            return KAsyncPolicy(in_flight, config.k)
        case WindowSchedule():
            return WindowPolicy(in_flight, config.window_s)
        case TiersSchedule():
            return TiersPolicy(config.tiers, config.cohort)
        case PiscesSchedule():
            return PiscesPolicy(in_flight, config.bound)
        case CompassSchedule():
            bounds = (config.min_steps, config.max_steps, config.latest_factor, config.speed_momentum)
            return CompassPolicy(n_clients, *bounds)
        case SafaSchedule():
            return SafaPolicy(n_clients, config.quota, config.lag_tolerance)


def build_selection(
    config: ScheduleConfig,
    seed: int,
    devices: Availability,
    sizes: Int64 | None,
    tiers_of: Callable[[int], Sequence[Int64]],
    own: UserFunction | None = None,
) -> Selection:
    """Who chooses the clients.

    Selection by size and power-of-choice need `sizes` (C,); `tiers_of(n)` gives n tiers of speed; `own` is the user's
    own function.
    """
    selection = config.selection
    match selection:
        case PiscesSelection():
            return PiscesChoice(selection, seed, devices)
        case TiflSelection():
            return TiflChoice(selection, seed, devices, tiers_of(selection.tiers))
        case OortSelection():
            return OortChoice(selection, seed, devices, config.concurrency if isinstance(config, SyncSchedule) else 1)
        case PowerOfChoiceSelection():
            assert sizes is not None
            return PowerOfChoice(selection, seed, devices, sizes)
        case UserSelection():
            assert own is not None
            return OwnChoice(own, seed, devices)
        case _:
            return Selection(selection, seed, devices, sizes)


def pace_and_learners(
    policy: Policy, selection: Selection, rule_decides_steps: bool
) -> tuple[Pace | None, list[Learner]]:
    """Who decides the steps of tasks, if anybody does, and who is to be told of consumed updates."""
    learners: list[Learner] = [selection] if isinstance(selection, GuidedSelection) else []
    if isinstance(policy, CompassPolicy):
        return policy, learners
    if not rule_decides_steps:
        return None, learners
    pace = ToldPace()
    return pace, [*learners, pace]
