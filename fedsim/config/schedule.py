"""When versions are made, how many tasks are in flight, and who is chosen for them."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Count, CountOrZero, Fraction, NonNegative, Positive, PositiveSeconds, Section
from fedsim.config.user import UserSelection

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class PiscesSelection(Section):
    """By utility, samples x loss norm x (1 + mean staleness)^-power; exploration fades (Jiang et al. 2022)."""

    kind: Literal["pisces"]
    explore: Fraction = 0.9
    decay: Share = 0.98
    explore_min: Fraction = 0.3
    power: NonNegative = 0.5
    window: Annotated[int, Field(ge=1, le=1000)] = 5


class TiflSelection(Section):
    """Each round from one tier of like speed, drawn by the ranks of the tiers' losses (Chai et al. 2020)."""

    kind: Literal["tifl"]
    tiers: Annotated[int, Field(ge=1, le=1000)] = 5
    every_rounds: Count = 10
    credits: Count | None = None


class OortSelection(Section):
    """By utility, loss x speed, among the best; a fading share of the slots explores (Lai et al. 2021)."""

    kind: Literal["oort"]
    explore: Fraction = 0.9
    decay: Share = 0.98
    explore_min: Fraction = 0.2
    alpha: NonNegative = 2.0
    cutoff: Share = 0.95
    clip: Share = 0.95
    preferred: Share = 0.5
    pacer_step: Fraction = 0.05
    window: Annotated[int, Field(ge=1, le=1000)] = 20
    most_tasks: Count | None = None


class PowerOfChoiceSelection(Section):
    """Of `candidates` drawn by their samples, those of the greatest loss (Cho et al. 2022)."""

    kind: Literal["power-of-choice"]
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 10


SelectionConfig = Annotated[
    PiscesSelection | TiflSelection | OortSelection | PowerOfChoiceSelection | UserSelection,
    Field(discriminator="kind"),
]
Chosen = Literal["uniform", "size", "availability"]


class SyncSchedule(Section):
    """Rounds: `cohort` updates make a version; over-selected and late tasks are aborted at the round's end."""

    policy: Literal["sync"]
    cohort: Count
    over_selection: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.0
    deadline_s: PositiveSeconds | None = None
    selection: Literal["uniform", "size", "availability", "cyclic"] | SelectionConfig = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks that a round dispatches."""
        return math.ceil(round(self.cohort * self.over_selection, 9))


class AsyncSchedule(Section):
    """Every arrival makes a version, and its slot starts again at once."""

    policy: Literal["async"]
    concurrency: Count
    selection: Chosen | SelectionConfig = "uniform"


class BufferedSchedule(Section):
    """Every `buffer` arrivals make a version; slots start again at once (FedBuff, K-batch-async).

    With `max_lag` a version also waits for every task that it would leave further behind than that (PORT).
    """

    policy: Literal["buffered"]
    concurrency: Count
    buffer: Count = 10
    max_lag: Count | None = None
    selection: Chosen | SelectionConfig = "uniform"


class KAsyncSchedule(Section):
    """Every `k` arrivals make a version; the slots of those k wait for it (Dutta et al. 2018)."""

    policy: Literal["k-async"]
    concurrency: Count
    k: Count
    selection: Chosen | SelectionConfig = "uniform"

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        if self.k > self.concurrency:
            raise ValueError(
                f"k is {self.k}, above concurrency ({self.concurrency}): "
                "k tasks can never be in, so no version would be made"
            )
        return self


class WindowSchedule(Section):
    """Semi-synchronous: a version at the end of every window in which something arrived; finishers wait for it."""

    policy: Literal["window"]
    concurrency: Count
    window_s: PositiveSeconds
    selection: Chosen | SelectionConfig = "uniform"


class TiersSchedule(Section):
    """Clients ranked by expected task time into `tiers` equal tiers, each running rounds of its own."""

    policy: Literal["tiers"]
    tiers: Annotated[int, Field(ge=1, le=1000)]
    cohort: Count
    selection: Chosen = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks in flight when every tier has a round open."""
        return self.tiers * self.cohort


class PiscesSchedule(Section):
    """A version once the last is older than the longest latency at work, divided by `bound` (Jiang et al. 2022)."""

    policy: Literal["pisces"]
    concurrency: Count
    bound: Positive = 5.0
    selection: Chosen | SelectionConfig = "uniform"


class CompassSchedule(Section):
    """Local steps between `min_steps` and `max_steps`, so that groups of clients arrive together (Li et al. 2024)."""

    policy: Literal["compass"]
    min_steps: Count
    max_steps: Count
    latest_factor: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.2
    speed_momentum: Share = 0.9

    @property
    def concurrency(self) -> int:
        """Everybody takes part."""
        return 2**40

    @property
    def selection(self) -> Chosen:
        """Everybody takes part."""
        return "uniform"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps is {self.min_steps}, above max_steps ({self.max_steps})")
        return self


class SafaSchedule(Section):
    """Rounds of all: `quota` picked updates make a version, others go on up to `lag_tolerance` (Wu et al. 2021)."""

    policy: Literal["safa"]
    quota: Count
    lag_tolerance: CountOrZero = 5

    @property
    def concurrency(self) -> int:
        """Everybody takes part."""
        return 2**40

    @property
    def selection(self) -> Chosen:
        """Everybody takes part."""
        return "uniform"


ScheduleConfig = Annotated[
    SyncSchedule
    | AsyncSchedule
    | BufferedSchedule
    | KAsyncSchedule
    | WindowSchedule
    | TiersSchedule
    | PiscesSchedule
    | CompassSchedule
    | SafaSchedule,
    Field(discriminator="policy"),
]
