"""The rules of rounds: optimisers at the server, normalised and fair means, clients that correct their drift."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import CountOrZero, NonNegative, Positive
from fedsim.config.staleness import RuleSection

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Weighting = Literal["samples", "uniform"]


class FedAvgMRule(RuleSection):
    """v <- beta v + D, w <- w + eta v with D the mean of the updates (Hsu et al. 2019)."""

    rule: Literal["fedavgm"]
    server_learning_rate: Positive = 1.0
    beta: Beta = 0.9
    weighting: Weighting = "samples"
    max_staleness: CountOrZero | None = None


class FedOptSection(RuleSection):
    """m <- b1 m + (1 - b1) D, w <- w + eta m / (sqrt(v) + tau) (Reddi et al. 2021); v0 is tau^2 unless given."""

    server_learning_rate: Positive = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Positive = 1e-3
    initial_v: NonNegative | None = None
    bias_correction: bool = False
    weighting: Weighting = "samples"
    max_staleness: CountOrZero | None = None


class FedAdamRule(FedOptSection):
    """Adam at the server: v <- b2 v + (1 - b2) D^2 (Reddi et al. 2021)."""

    rule: Literal["fedadam"]


class FedYogiRule(FedOptSection):
    """Yogi at the server: v <- v - (1 - b2) D^2 sign(v - D^2) (Reddi et al. 2021)."""

    rule: Literal["fedyogi"]


class FedAdagradRule(FedOptSection):
    """Adagrad at the server: v <- v + D^2 (Reddi et al. 2021); beta2 means nothing here."""

    rule: Literal["fedadagrad"]


class FedNovaRule(RuleSection):
    """w <- w + eta (sum p a) sum p D / a: clients of many steps do not count for more (Wang et al. 2020)."""

    rule: Literal["fednova"]
    server_learning_rate: Positive = 1.0
    weighting: Weighting = "samples"
    max_staleness: CountOrZero | None = None


class QFedAvgRule(RuleSection):
    """Updates weighted by the client's loss to the power q, for even losses over clients (Li et al. 2020)."""

    policies = ("sync",)
    refusal = "compares losses under one version: schedule.policy must be sync"

    rule: Literal["q-fedavg"]
    q: NonNegative = 1.0


class ScaffoldRule(RuleSection):
    """Control variates at server and clients correct the drift of local training (Karimireddy et al. 2020)."""

    policies = ("sync",)
    refusal = "has no asynchronous variant here: schedule.policy must be sync"

    rule: Literal["scaffold"]
    server_learning_rate: Positive = 1.0
    weighting: Weighting = "uniform"


class FedDynRule(RuleSection):
    """A linear and a quadratic term align each client's optimum with that of all (Acar et al. 2021)."""

    policies = ("sync",)
    refusal = "has no asynchronous variant here: schedule.policy must be sync"

    rule: Literal["feddyn"]
    alpha: Positive = 0.1


class CyclicRule(RuleSection):
    """The model goes from client to client; `released`: nothing is passed on, and the copy of client 0 is scored."""

    policies = ("sync",)
    refusal = "passes one model on: schedule.policy must be sync, with cohort 1"

    rule: Literal["cyclic"]
    released: bool = False


SynchronousRule = (
    FedAvgMRule
    | FedAdamRule
    | FedYogiRule
    | FedAdagradRule
    | FedNovaRule
    | QFedAvgRule
    | ScaffoldRule
    | FedDynRule
    | CyclicRule
)
