"""Updates that are consumed one after the other, handed to a rule together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float32, Float64, Int64, Update

if TYPE_CHECKING:
    from fedsim.aggregation.accumulate import ServerState
    from fedsim.aggregation.rule import Arrival, Rule


@dataclass(frozen=True, slots=True)
class Batch:
    """`R` updates in the order in which they are consumed, as columns (R,).

    `addresses` are those of the first values of the flat float32 vectors, which `one` hands out with all that is
    known of an update; `makes_version` says whether a version is made right after it.
    """

    n_samples: Int64
    staleness: Int64
    makes_version: NDArray[np.bool_]
    addresses: Int64
    one: Callable[[int], tuple[Update, Arrival]]

    def __len__(self) -> int:
        return self.n_samples.size

    def is_too_stale(self, max_staleness: int | None) -> bool:
        """Whether one of them is (`fedsim.aggregation.weighting`)."""
        return max_staleness is not None and bool((self.staleness > max_staleness).any())


class Consumed(NamedTuple):
    """What a rule made of a batch: the weights of its updates (R,), their scalars (R, number of scalars), and the
    versions, new float32 vectors (P,)."""

    weights: Float64
    scalars: Float64
    versions: Sequence[Float32]


def one_by_one(rule: Rule, state: ServerState, batch: Batch) -> tuple[ServerState, Consumed]:
    """What any rule makes of a batch."""
    weights: list[float] = []
    scalars: list[tuple[float, ...]] = []
    versions: list[Float32] = []
    for i, makes_version in enumerate(batch.makes_version.tolist()):
        update, arrival = batch.one(i)
        if makes_version:
            state, said, version_P = rule.complete(state, update, arrival)
            versions.append(version_P)
        else:
            state, said = rule.accumulate(state, update, arrival)
        weights.append(said.weight)
        scalars.append(said.scalars)
    scalars_RS = np.array(scalars, np.float64).reshape(len(batch), len(scalars[0]))
    return state, Consumed(np.array(weights), scalars_RS, versions)
