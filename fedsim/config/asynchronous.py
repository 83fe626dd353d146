"""The rules of the asynchronous family; `fedsim.config.aggregation` has the others, and the union of all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, CountOrZero, NonNegative, OpenFraction, Positive
from fedsim.config.staleness import PolynomialStaleness, RuleSection, StalenessConfig

_ANY_BUFFER = ("buffered", "k-async", "window", "pisces", "tiers")
_BUFFER_REFUSAL = "needs a buffer: schedule.policy buffered (or k-async, window, pisces, tiers)"
_ASYNC_REFUSAL = "makes a version of every arrival: schedule.policy must be async"
_Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class WkaflRule(RuleSection):
    """Buffered differences that agree with their estimate, by a softmax of the cosine (Zhou et al. 2022)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["wkafl"]
    server_learning_rate: Positive = 1.0
    momentum: NonNegative = 0.1
    clip_norm: Positive = 100.0
    threshold: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.3
    sharpness: NonNegative = 10.0
    second_clip: Positive = 10.0
    second_stage_from: CountOrZero | None = None
    rate_decay: NonNegative = 0.1
    max_staleness: CountOrZero | None = None


class PortRule(RuleSection):
    """Weights by samples, staleness and the cosine with the server's way (Su and Li 2022)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["port"]
    server_learning_rate: Positive = 1.0
    staleness_bound: Positive = 10.0
    similarity_weight: NonNegative = 1.0
    staleness_weight: NonNegative = 3.0
    max_staleness: CountOrZero | None = None


class KaflRule(RuleSection):
    """Models by samples, deviation from the server's and contribution frequency (after Wu and Wang 2022)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["kafl"]
    server_learning_rate: Positive = 1.0
    beta: NonNegative = 0.5
    max_staleness: CountOrZero | None = None


class PiscesRule(RuleSection):
    """Mean by samples, discounted by the client's mean staleness (Jiang et al. 2022)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["pisces"]
    server_learning_rate: Positive = 1.0
    power: NonNegative = 0.5
    window: Annotated[int, Field(ge=1, le=1000)] = 5
    max_staleness: CountOrZero | None = None


class AsyncFedEdRule(RuleSection):
    """Steps and local steps by the distance that the model moved meanwhile (Wang et al. 2022)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["async-fed-ed"]
    rate: Positive = 1.0
    eps: Positive = 1.0
    kappa: NonNegative = 1.0
    target: NonNegative = 3.0
    max_steps: Count = 100
    max_staleness: CountOrZero | None = None


class FedFaRule(RuleSection):
    """Mean of the last K local models, at each arrival (Xu et al. 2024)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["fedfa"]
    queue: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_staleness: CountOrZero | None = None


class Ca2FlRule(RuleSection):
    """Buffered differences calibrated by every client's last one (Wang et al. 2024)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["ca2fl"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


class FadasRule(RuleSection):
    """AMSGrad on the buffer's mean, slower where it is stale (Wang et al. 2024)."""

    policies = _ANY_BUFFER
    refusal = _BUFFER_REFUSAL

    rule: Literal["fadas"]
    server_learning_rate: Positive = 0.01
    beta1: _Fraction = 0.9
    beta2: _Fraction = 0.99
    eps: Positive = 1e-8
    tau_c: CountOrZero = 1
    bias_correction: bool = True
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class AceRule(RuleSection):
    """Mean of every client's last update, at each arrival (Chang et al. 2025)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["ace"]
    server_learning_rate: Positive = 1.0
    warm_up: bool = True


class AceDelayAwareRule(RuleSection):
    """Mean of the last updates that are not too old, at each arrival (Chang et al. 2025)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["aced"]
    server_learning_rate: Positive = 1.0
    bound: CountOrZero = 20


class MifaRule(RuleSection):
    """Mean of every client's last update, once a version (Gu et al. 2021)."""

    rule: Literal["mifa"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


class DcAsgdRule(RuleSection):
    """Stale differences compensated by a guess at the curvature (Zheng et al. 2017)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["dc-asgd"]
    server_learning_rate: Positive = 1.0
    strength: NonNegative = 0.04
    adaptive: bool = False
    adaptive_strength: NonNegative = 2.0
    decay: OpenFraction = 0.95
    max_staleness: CountOrZero | None = None


class FedCompassRule(RuleSection):
    """Groups that arrive together, mixed into the model (Li et al. 2024)."""

    policies = ("compass", "async", "buffered", "k-async", "window")
    refusal = "mixes groups of arrivals: schedule.policy compass (or async, buffered, k-async, window)"

    rule: Literal["fedcompass"]
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class FedAtRule(RuleSection):
    """Tiers' models, the slow ones weighed by the rounds of the fast ones (Chai et al. 2021)."""

    policies = ("tiers",)
    refusal = "weighs tiers against each other: schedule.policy must be tiers"

    rule: Literal["fedat"]


class SafaRule(RuleSection):
    """Mean of a cache of local models with lag tolerance and bypass (Wu et al. 2021)."""

    policies = ("safa",)
    refusal = "needs to know who is picked and who is deprecated: schedule.policy must be safa"

    rule: Literal["safa"]


class AsoFedRule(RuleSection):
    """Each client's change since its last local model, by samples, at each arrival (Chen et al. 2020)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["aso-fed"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


class AflCsRule(RuleSection):
    """Layers mixed by their agreement with the server's way (Yan et al. 2023)."""

    policies = ("async",)
    refusal = _ASYNC_REFUSAL

    rule: Literal["afl-cs"]
    mode: Literal["directions", "released", "fedcomp"] = "directions"
    planned_updates: Count = 100
    max_staleness: CountOrZero | None = None
