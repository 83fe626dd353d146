"""The rules that make versions of updates, and their staleness functions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsim.config.base import CountOrZero, NonNegative, Positive, Section


class RuleSection(Section):
    """What a rule says of itself: the policies that it goes with (none named: all), and the words for the others."""

    policies: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = ""


class FedAvgRule(RuleSection):
    """Mean of the updates, by samples or uniform (McMahan et al. 2017)."""

    rule: Literal["fedavg"]
    weighting: Literal["samples", "uniform"] = "samples"
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


class ConstantStaleness(Section):
    """1: stale updates count like fresh ones."""

    kind: Literal["constant"]


class PolynomialStaleness(Section):
    """(1 + tau)^-a"""

    kind: Literal["polynomial"]
    a: NonNegative = 0.5


class HingeStaleness(Section):
    """1 for tau <= b, else 1 / (a (tau - b) + 1)"""

    kind: Literal["hinge"]
    a: Positive = 10.0
    b: NonNegative = 4.0


StalenessConfig = Annotated[ConstantStaleness | PolynomialStaleness | HingeStaleness, Field(discriminator="kind")]


class FedAsyncRule(RuleSection):
    """w <- (1 - a) w + a w_k with a = alpha s(tau) (Xie et al. 2019)."""

    policies = ("async",)
    refusal = "makes a version of every arrival: schedule.policy must be async"

    rule: Literal["fedasync"]
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    max_staleness: CountOrZero | None = None


class FedBuffRule(RuleSection):
    """w <- w + eta (1/K) sum s(tau) D_k (Nguyen et al. 2022)."""

    policies = ("buffered", "k-async", "window", "tiers")
    refusal = "needs a buffer: schedule.policy buffered (or k-async, window, tiers)"

    rule: Literal["fedbuff"]
    server_learning_rate: Positive = 1.0
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class KAsyncRule(RuleSection):
    """w <- w + eta mean of the K updates (Dutta et al. 2018)."""

    policies = ("k-async", "buffered", "sync", "window", "tiers")
    refusal = "needs schedule.policy k-async or buffered"

    rule: Literal["k-async"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


AggregationConfig = Annotated[FedAvgRule | FedAsyncRule | FedBuffRule | KAsyncRule, Field(discriminator="rule")]
