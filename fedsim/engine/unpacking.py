"""Updates as they travel, made into the vectors that rules take. Shape: `P` parameters."""

from __future__ import annotations

import numpy as np

from fedsim.comm.transport import Lengths
from fedsim.compression import Codec
from fedsim.engine.plan import Plan
from fedsim.types import Float32, Row


class Unpacking:
    """Decodes into one vector, used again for each update; adds the version's weights where the rule takes models."""

    def __init__(self, codec: Codec, gives_models: bool) -> None:
        self.needs_base = gives_models
        self._codec = codec
        self._vector_P = np.empty(codec.n_parameters, np.float32)

    def vector(self, data_B: Row, base: Float32 | None) -> Float32:
        """The update (P,), which the next call overwrites; `base` is its version as it was sent."""
        vector_P = self._vector_P
        self._codec.decode(data_B, vector_P)
        if self.needs_base:
            assert base is not None
            vector_P += base[: vector_P.size]
        return vector_P


def streams(made: Plan) -> bool:
    """Whether updates are applied while they come in: large ones, by rules that can, and as they are."""
    return made.rule.streams and made.codec is None and 4 * made.layout.n_parameters > made.config.memory.piece_bytes


def lengths_of(made: Plan) -> Lengths:
    """How long what travels in a run is, and of what type."""
    halves = made.config.compression.versions != "float32"
    version_type = np.uint16 if halves else np.float32
    n_values, n_states = made.n_version_values, made.n_state_values
    if made.codec is None:
        return Lengths(n_values, made.layout.n_parameters, n_states, version_type)
    return Lengths(n_values, made.codec.n_bytes, n_states, version_type, np.uint8)
