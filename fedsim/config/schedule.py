"""When versions are made and how many tasks are in flight."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Count, PositiveSeconds, Section


class SyncSchedule(Section):
    """Rounds: `cohort` updates make a version; over-selected and late tasks are aborted at the round's end."""

    policy: Literal["sync"]
    cohort: Count
    over_selection: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.0
    deadline_s: PositiveSeconds | None = None
    selection: Literal["uniform", "size", "availability"] = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks that a round dispatches."""
        return math.ceil(round(self.cohort * self.over_selection, 9))


class AsyncSchedule(Section):
    """Every arrival makes a version, and its slot starts again at once."""

    policy: Literal["async"]
    concurrency: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"


class BufferedSchedule(Section):
    """Every `buffer` arrivals make a version; slots start again at once (FedBuff, K-batch-async)."""

    policy: Literal["buffered"]
    concurrency: Count
    buffer: Count = 10
    selection: Literal["uniform", "size", "availability"] = "uniform"


class KAsyncSchedule(Section):
    """Every `k` arrivals make a version; the slots of those k wait for it (Dutta et al. 2018)."""

    policy: Literal["k-async"]
    concurrency: Count
    k: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"

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
    selection: Literal["uniform", "size", "availability"] = "uniform"


class TiersSchedule(Section):
    """Clients ranked by expected task time into `tiers` equal tiers, each running rounds of its own."""

    policy: Literal["tiers"]
    tiers: Annotated[int, Field(ge=1, le=1000)]
    cohort: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks in flight when every tier has a round open."""
        return self.tiers * self.cohort


ScheduleConfig = Annotated[
    SyncSchedule | AsyncSchedule | BufferedSchedule | KAsyncSchedule | WindowSchedule | TiersSchedule,
    Field(discriminator="policy"),
]
