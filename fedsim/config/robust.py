"""The rules that bear updates of attackers; `fedsim.config.aggregation` has the union of all."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedsim.config.base import Count, CountOrZero, Positive
from fedsim.config.staleness import ConstantStaleness, RuleSection, StalenessConfig

_SEVERAL = ("sync", "buffered", "k-async", "window", "pisces", "tiers")


class RobustSection(RuleSection):
    """What the rules share that compare the updates of a version with each other."""

    policies = _SEVERAL
    refusal = (
        "compares the updates of a version with each other: schedule.policy must be sync, buffered, k-async, window, "
        "pisces or tiers"
    )
    needs_least: ClassVar[str] = ""

    server_learning_rate: Positive = 1.0
    staleness: StalenessConfig = ConstantStaleness(kind="constant")
    max_staleness: CountOrZero | None = None

    @property
    def least_updates(self) -> int:
        """The fewest updates of a version among which the rule can tell anything."""
        return 3


class MedianRule(RobustSection):
    """w <- w + eta median of the updates, coordinate by coordinate (Yin et al. 2018)."""

    needs_least = "a median of fewer than 3 updates is their mean"

    rule: Literal["median"]


class TrimmedMeanRule(RobustSection):
    """w <- w + eta mean of what is left without the `trim` largest and smallest, a coordinate (Yin et al. 2018)."""

    needs_least = "without the largest and the smallest nothing would be left"

    rule: Literal["trimmed-mean"]
    trim: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2


class NormBoundRule(RuleSection):
    """Mean of the updates, each shortened to the norm `bound` if it is longer (Sun et al. 2019)."""

    rule: Literal["norm-bound"]
    bound: Positive
    server_learning_rate: Positive = 1.0
    staleness: StalenessConfig = ConstantStaleness(kind="constant")
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class KrumSection(RobustSection):
    """What Krum and multi-Krum share: f, the attackers that a version must bear."""

    needs_least = "with f attackers to bear a choice takes 2 f + 3 updates (attackers is f)"

    attackers: Count = 1

    @property
    def least_updates(self) -> int:
        """2 f + 3."""
        return 2 * self.attackers + 3


class KrumRule(KrumSection):
    """w <- w + eta the update that lies closest to its n - f - 2 nearest ones (Blanchard et al. 2017)."""

    rule: Literal["krum"]


class MultiKrumRule(KrumSection):
    """w <- w + eta mean of the `keep` updates that Krum ranks best, n - f if not given (Blanchard et al. 2017)."""

    rule: Literal["multi-krum"]
    keep: Count | None = None


RobustRule = MedianRule | TrimmedMeanRule | NormBoundRule | KrumRule | MultiKrumRule


def check_robust(rule: Any, n_updates: int | None) -> None:
    """Raises ValueError for a rule that cannot tell anything among the updates of a version; None: nobody knows them.

    `n_updates` are those of each version.
    """
    if not isinstance(rule, RobustSection) or n_updates is None:
        return
    if n_updates < rule.least_updates:
        raise ValueError(
            f"aggregation.rule {rule.rule} needs {rule.least_updates} updates a version: {rule.needs_least}, "  # type: ignore[attr-defined]
            f"got {n_updates} (schedule.cohort, buffer or k)"
        )
    keep = getattr(rule, "keep", None)
    if keep is not None and keep > n_updates:
        raise ValueError(f"aggregation.keep is {keep}, above the {n_updates} updates of a version")
