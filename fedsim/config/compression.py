"""What travels in fewer bytes than float32 takes: updates on their way up, versions on their way down."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, OpenFraction, Section

HalfForm = Literal["float32", "float16", "bfloat16"]


class NoCompression(Section):
    """Updates travel as they are: 4 bytes a parameter."""

    kind: Literal["none"]


class HalfCompression(Section):
    """2 bytes a parameter, each rounded to the nearest."""

    kind: Literal["float16", "bfloat16"]


class TopKCompression(Section):
    """The largest `fraction` of the values, by magnitude; the others stay with the client for its next update."""

    kind: Literal["top-k"]
    fraction: OpenFraction = 0.01
    error_feedback: bool = True


class QsgdCompression(Section):
    """Values rounded at random to 2^(bits - 1) - 1 levels of the norm of their bucket, so that the mean is right."""

    kind: Literal["qsgd"]
    bits: Literal[2, 4, 8] = 4
    bucket: Count | None = 512


class SignCompression(Section):
    """A bit a parameter, its sign, and the mean magnitude of all; what is left over stays with the client."""

    kind: Literal["sign"]
    error_feedback: bool = True


UpdateCompression = Annotated[
    NoCompression | HalfCompression | TopKCompression | QsgdCompression | SignCompression, Field(discriminator="kind")
]


class CompressionConfig(Section):
    """How updates and versions travel; what is simulated of the network counts the bytes that are left."""

    updates: UpdateCompression = NoCompression(kind="none")
    versions: HalfForm = "float32"
