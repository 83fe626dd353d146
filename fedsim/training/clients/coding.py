"""The last thing that a client does to its update: it encodes what will travel, and keeps what that leaves out.

Shapes: `P` parameters, `B` bytes of an encoded update.
"""

from __future__ import annotations

import numpy as np

from fedsim.compression import Codec, Key
from fedsim.config import RunConfig
from fedsim.errors import ClientError
from fedsim.training import Payload
from fedsim.training.clients.methods import BaseMethod, Method, Received
from fedsim.types import Float32, Row


class Coding(BaseMethod):
    """Encodes the difference D from the version, with `error_feedback` the sum of D and what was left out before.

    Reference: Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019,
    algorithm 2: p = D + e; C(p) is sent; e <- p - C(p). So what was sent and what is left always sum to what was
    trained. Deviations: D is the difference that local training came to, in place of a step of SGD; a client whose
    update gets lost keeps the new e all the same, for it does not know.
    A rule that takes local models gets them as the version plus what was sent (`fedsim.engine.unpacking`). The bytes
    are left at the beginning of the update's own memory, where `encoded` finds them.
    """

    def __init__(self, codec: Codec, seed: int, error_feedback: bool, gives_models: bool) -> None:
        self.n_values = codec.n_parameters if error_feedback else 0
        self._codec = codec
        self._seed = seed
        self._gives_models = gives_models

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        if self._gives_models:
            out_P -= received.weights_P
        if received.state_S is not None and self.n_values:
            out_P += received.state_S
        task = received.task
        try:
            data_B = self._codec.encode(out_P, Key(self._seed, task.client, task.task))
        except OverflowError as error:
            raise ClientError(
                f"client {task.client}, task {task.task}, version {task.base_version}: compression.updates: {error}; "
                "allowed: a lower training.optimizer.learning_rate, training.clip_norm, or another kind"
            ) from None
        left_P = self._left(out_P, data_B) if self.n_values else None
        out_P.view(np.uint8)[: self._codec.n_bytes] = data_B
        return left_P

    def _left(self, sum_P: Float32, data_B: Row) -> Float32:
        left_P = np.empty_like(sum_P)
        self._codec.decode(data_B, left_P)
        return np.subtract(sum_P, left_P, out=left_P)


def encoded(out_GP: Float32, n_bytes: int) -> Row:
    """The encoded updates (G, B) of a group whose clients have left them in their rows."""
    rows: Row = np.ascontiguousarray(out_GP.view(np.uint8)[:, :n_bytes])
    return rows


def coding_of(config: RunConfig, codec: Codec | None, payload: Payload) -> tuple[Method, ...]:
    """What clients do last, where updates travel encoded; `payload` is what the rule takes."""
    if codec is None:
        return ()
    error_feedback: bool = getattr(config.compression.updates, "error_feedback", False)
    return (Coding(codec, config.seed, error_feedback, payload == "model"),)
