"""The rules that make versions of updates: the first ones, and the union of all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.asynchronous import (
    AceDelayAwareRule,
    AceRule,
    AflCsRule,
    AsoFedRule,
    AsyncFedEdRule,
    Ca2FlRule,
    DcAsgdRule,
    FadasRule,
    FedAtRule,
    FedCompassRule,
    FedFaRule,
    KaflRule,
    MifaRule,
    PiscesRule,
    PortRule,
    SafaRule,
    WkaflRule,
)
from fedsim.config.base import CountOrZero, Positive
from fedsim.config.robust import RobustRule
from fedsim.config.staleness import PolynomialStaleness, RuleSection, StalenessConfig
from fedsim.config.synchronous import SynchronousRule
from fedsim.config.user import UserRule


class FedAvgRule(RuleSection):
    """Mean of the updates, by samples or uniform (McMahan et al. 2017)."""

    rule: Literal["fedavg"]
    weighting: Literal["samples", "uniform"] = "samples"
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


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

    policies = ("buffered", "k-async", "window", "pisces", "tiers")
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
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


AggregationConfig = Annotated[
    FedAvgRule
    | FedAsyncRule
    | FedBuffRule
    | KAsyncRule
    | WkaflRule
    | PortRule
    | KaflRule
    | PiscesRule
    | AsyncFedEdRule
    | FedFaRule
    | Ca2FlRule
    | FadasRule
    | AceRule
    | AceDelayAwareRule
    | MifaRule
    | DcAsgdRule
    | FedCompassRule
    | FedAtRule
    | SafaRule
    | AsoFedRule
    | AflCsRule
    | SynchronousRule
    | RobustRule
    | UserRule,
    Field(discriminator="rule"),
]
