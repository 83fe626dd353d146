"""Updates and versions in fewer bytes: pure functions from vectors to bytes of a fixed length, and back.

The length follows from the configuration and the number of parameters alone, so that the schedule knows at a task's
dispatch how long its upload takes. What a codec draws at random is keyed by client and task: the same bytes wherever
and however often a task is trained.
"""

from __future__ import annotations

from fedsim.compression.codec import Codec, Key
from fedsim.compression.halves import HalfCodec
from fedsim.compression.qsgd import QsgdCodec
from fedsim.compression.sign import SignCodec
from fedsim.compression.topk import TopKCodec
from fedsim.config import HalfCompression, NoCompression, QsgdCompression, SignCompression, TopKCompression

__all__ = ["Codec", "HalfCodec", "Key", "QsgdCodec", "SignCodec", "TopKCodec", "build"]


def build(
    config: NoCompression | HalfCompression | TopKCompression | QsgdCompression | SignCompression, n_parameters: int
) -> Codec | None:
    """The codec of updates of so many parameters; None where they travel as they are."""
    match config:
        case NoCompression():
            return None
        case HalfCompression(kind=form):
            return HalfCodec(n_parameters, form)
        case TopKCompression(fraction=fraction):
            return TopKCodec(n_parameters, fraction)
        case QsgdCompression(bits=bits, bucket=bucket):
            return QsgdCodec(n_parameters, bits, bucket)
        case SignCompression():
            return SignCodec(n_parameters)
