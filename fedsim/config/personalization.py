"""Models of the clients' own, beside the federation's model or in place of parts of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, NonNegative, Positive, Section


class FineTunePersonalization(Section):
    """Each client takes some local steps from every version that is tested, and is scored; nothing is kept."""

    kind: Literal["fine-tune"]
    steps: Count
    learning_rate: Positive | None = None


class FedBnPersonalization(Section):
    """Normalisation layers, or those named, stay with their clients; all else is federated (Li et al. 2021)."""

    kind: Literal["fedbn"]
    layers: list[str] = Field(default=[], min_length=0, max_length=1000)


class DittoPersonalization(Section):
    """Each client trains a second model, which is pulled towards the version that it received (Li et al. 2021)."""

    kind: Literal["ditto"]
    strength: NonNegative = 0.1
    steps: Count | None = None
    learning_rate: Positive | None = None


class LocalPersonalization(Section):
    """Each client trains a model of its own on its data alone and shares nothing: the local-only baseline."""

    kind: Literal["local"]


PersonalizationConfig = Annotated[
    FineTunePersonalization | FedBnPersonalization | DittoPersonalization | LocalPersonalization,
    Field(discriminator="kind"),
]
