"""The rules that make versions of updates, and their staleness functions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import CountOrZero, NonNegative, Positive, Section


class FedAvgRule(Section):
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


class FedAsyncRule(Section):
    """w <- (1 - a) w + a w_k with a = alpha s(tau) (Xie et al. 2019)."""

    rule: Literal["fedasync"]
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    max_staleness: CountOrZero | None = None


class FedBuffRule(Section):
    """w <- w + eta (1/K) sum s(tau) D_k (Nguyen et al. 2022)."""

    rule: Literal["fedbuff"]
    server_learning_rate: Positive = 1.0
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class KAsyncRule(Section):
    """w <- w + eta mean of the K updates (Dutta et al. 2018)."""

    rule: Literal["k-async"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


AggregationConfig = Annotated[FedAvgRule | FedAsyncRule | FedBuffRule | KAsyncRule, Field(discriminator="rule")]
