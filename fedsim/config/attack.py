"""Simulated attackers: who they are and what they do."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import CountOrZero, Positive, Section


class AttackSection(Section):
    """Who attacks: a fraction of the clients with data, drawn from the seed, or those named."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    clients: list[CountOrZero] = Field(default=[], min_length=0, max_length=100_000)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.fraction is None) == (not self.clients):
            raise ValueError("exactly one of fraction and clients must be given")
        return self


class LabelFlip(AttackSection):
    """Trains on labels turned round: class c becomes classes - 1 - c (Fang et al. 2020)."""

    kind: Literal["label-flip"]


class SignFlip(AttackSection):
    """Sends -scale times its update (Li et al. 2019)."""

    kind: Literal["sign-flip"]
    scale: Positive = 1.0


class GaussianAttack(AttackSection):
    """Sends noise of this standard deviation in place of its update (Blanchard et al. 2017)."""

    kind: Literal["gaussian"]
    std: Positive = 1.0


class ScaledAttack(AttackSection):
    """Sends `factor` times its update (Bagdasaryan et al. 2020)."""

    kind: Literal["scaled"]
    factor: Positive = 10.0


AttackConfig = Annotated[LabelFlip | SignFlip | GaussianAttack | ScaledAttack, Field(discriminator="kind")]
