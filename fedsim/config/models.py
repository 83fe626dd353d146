"""The reference networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, Section

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Buffers = Literal["refuse", "average", "local"]
"""What becomes of values that a model keeps beside its parameters, such as batch normalisation's statistics."""


class LogisticModel(Section):
    """One linear layer: a single output for two classes (binary cross-entropy), else one a class."""

    kind: Literal["logistic"]


class MlpModel(Section):
    """Linear layers of these widths with ReLU, then a linear layer."""

    kind: Literal["mlp"]
    hidden: list[Count] = Field(default=[200], min_length=1, max_length=32)
    norm: Literal["none", "batch"] = "none"
    buffers: Buffers = "refuse"


class CnnModel(Section):
    """Convolution, ReLU and 2x2 max pooling for each entry of `channels`, then a linear layer."""

    kind: Literal["cnn"]
    channels: list[Count] = Field(default=[16, 32], min_length=1, max_length=8)
    kernel: Annotated[int, Field(ge=1, le=31)] = 5
    norm: Literal["none", "batch"] = "none"
    buffers: Buffers = "refuse"


class ResidualModel(Section):
    """Residual blocks of 3x3 convolutions with normalisation, mean pooling, and a linear layer."""

    kind: Literal["residual"]
    channels: list[Count] = Field(default=[16, 32], min_length=1, max_length=8)
    blocks: Annotated[int, Field(ge=1, le=32)] = 1
    groups: Count = 8
    dropout: Rate = 0.0
    norm: Literal["group", "batch"] = "group"
    buffers: Buffers = "refuse"


class TextModel(Section):
    """Samples of token numbers as vectors, averaged; then linear layers with ReLU and dropout, and a last one."""

    kind: Literal["text"]
    vocabulary: Annotated[int, Field(ge=2, le=2**24)]
    embedding: Count = 64
    hidden: list[Count] = Field(default=[64], min_length=0, max_length=32)
    dropout: Rate = 0.0


ModelConfig = Annotated[LogisticModel | MlpModel | CnnModel | ResidualModel | TextModel, Field(discriminator="kind")]
