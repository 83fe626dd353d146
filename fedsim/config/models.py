"""The reference networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, Section


class LogisticModel(Section):
    """One linear layer: a single output for two classes (binary cross-entropy), else one a class."""

    kind: Literal["logistic"]


class MlpModel(Section):
    """Linear layers of these widths with ReLU, then a linear layer."""

    kind: Literal["mlp"]
    hidden: list[Count] = Field(default=[200], min_length=1, max_length=32)


class CnnModel(Section):
    """Convolution, ReLU and 2x2 max pooling for each entry of `channels`, then a linear layer."""

    kind: Literal["cnn"]
    channels: list[Count] = Field(default=[16, 32], min_length=1, max_length=8)
    kernel: Annotated[int, Field(ge=1, le=31)] = 5


ModelConfig = Annotated[LogisticModel | MlpModel | CnnModel, Field(discriminator="kind")]
