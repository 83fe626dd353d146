"""The simulated devices: laws of time and rate, links, availability, loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import NonNegative, Positive, PositiveSeconds, Section


class ConstantLaw(Section):
    """The same value every time."""

    law: Literal["constant"]
    mean: NonNegative


class ExponentialLaw(Section):
    """Exponential of the given mean."""

    law: Literal["exponential"]
    mean: Positive


class ShiftedExponentialLaw(Section):
    """shift + Exponential(mean - shift); `mean` is that of the whole."""

    law: Literal["shifted-exponential"]
    shift: NonNegative
    mean: Positive

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.mean <= self.shift:
            raise ValueError(f"mean is {self.mean}, must be above shift ({self.shift})")
        return self


class LognormalLaw(Section):
    """Lognormal of the given mean; `sigma` is the standard deviation of the logarithm."""

    law: Literal["lognormal"]
    mean: Positive
    sigma: NonNegative


class ParetoLaw(Section):
    """Pareto of tail index `shape` above `minimum`."""

    law: Literal["pareto"]
    minimum: Positive
    shape: Positive


class TraceLaw(Section):
    """Values drawn from a CSV file with a column `value` and, if they differ by client, a column `client`."""

    law: Literal["trace"]
    path: str


LawConfig = Annotated[
    ConstantLaw | ExponentialLaw | ShiftedExponentialLaw | LognormalLaw | ParetoLaw | TraceLaw,
    Field(discriminator="law"),
]


class ComputeConfig(Section):
    """Virtual compute time of a task, in seconds: time(task) x speed(client) x the units of work in it."""

    time: LawConfig = ConstantLaw(law="constant", mean=1.0)
    per: Literal["task", "step", "sample"] = "task"
    slowness: LawConfig = ConstantLaw(law="constant", mean=1.0)


class LinkConfig(Section):
    """One direction of a client's network; each law is drawn once a client."""

    latency_s: LawConfig = ConstantLaw(law="constant", mean=0.0)
    bytes_per_s: LawConfig | None = None


class AlwaysAvailable(Section):
    """Every client is always there."""

    kind: Literal["always"]


class PeriodicAvailability(Section):
    """Each client is there for `on_fraction` of every period, from a phase of its own."""

    kind: Literal["periodic"]
    period_s: PositiveSeconds
    on_fraction: Annotated[float, Field(gt=0.0, le=1.0)]


class TraceAvailability(Section):
    """Windows from a CSV file with columns client, start_s, end_s; repeated every `period_s` if that is given."""

    kind: Literal["trace"]
    path: str
    period_s: PositiveSeconds | None = None


AvailabilityConfig = Annotated[AlwaysAvailable | PeriodicAvailability | TraceAvailability, Field(discriminator="kind")]


class DevicesConfig(Section):
    compute: ComputeConfig = ComputeConfig()
    download: LinkConfig = LinkConfig()
    upload: LinkConfig = LinkConfig()
    availability: AvailabilityConfig = AlwaysAvailable(kind="always")
    on_offline: Literal["pause", "lose", "finish"] = "pause"
    loss_probability: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
