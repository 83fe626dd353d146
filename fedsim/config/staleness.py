"""What all rules share: the policies that they go with, and the functions of staleness."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsim.config.base import NonNegative, Positive, Section


class RuleSection(Section):
    """What a rule says of itself: the policies that it goes with (none named: all), and the words for the others."""

    policies: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = ""


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
