"""Sums of updates in float64, in place, and what every rule holds while it sums them.

float64, because float32 sums differ in their last bits with the order of arrival (83 % of the entries of a sum
of 64 updates); cast to float32 once, a float64 sum hides it. The passes go in blocks that stay in a core's cache: an
array is read and written once a pass. Shape: `P` parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim import whereabouts
from fedsim.recycled import Recycled
from fedsim.types import Float32, Float64, Int64

Ready = Callable[[int], None]

_ALL = slice(None)
_PART = 2**18  # values of an update that is coming in: 1 MiB, still in a cache

_BLOCK = 32768  # the fastest of 4096 to 65536: 58 us for 170,000 parameters, where whole arrays took 970


class Diagnostics(NamedTuple):
    """What a rule says of one update: the weight that it entered with (0 for one left out), and the rule's scalars.

    `next_steps`, if above 0, is how many local steps the client's next task is to have (`fedsim.types.Feedback`).
    """

    weight: float
    scalars: tuple[float, ...] = ()
    next_steps: int = 0


@dataclass(slots=True)
class ServerState:
    """The server model and the sum that will make its next version. Owned by one caller: rules change it in place.

    `weights_P` is the version itself, unrounded, and changes in `commit` alone. `accumulator_P` holds the sum of the
    `n_accumulated` updates that counted since, and means nothing while that is 0. `weight_sum` is what the rule
    divides by (for FedAsync: the share of the old model that is to be kept). A checkpoint holds these four, and
    what states derived from this one add: arrays, numbers, and dictionaries from numbers to arrays.
    """

    weights_P: Float64
    accumulator_P: Float64
    weight_sum: float = 0.0
    n_accumulated: int = 0


def fresh(weights_P: Float32) -> ServerState:
    """The state of a version, float32 (P,), with nothing accumulated."""
    assert weights_P.ndim == 1 and weights_P.dtype == np.float32
    return ServerState(weights_P.astype(np.float64), np.zeros(weights_P.size))


class Kernels:
    """Block-wise passes with a scratch block of their own: one instance a rule."""

    def __init__(self) -> None:
        self._scratch = np.empty(_BLOCK)
        self._scaled = np.empty(_BLOCK)
        self._compiled: ModuleType | None = None
        self.new: Callable[[int], Float32] = Recycled().empty  # memory for a version

    def hasten(self) -> None:
        """Takes the time to load compiled passes: the same bits in less time, which counts where vectors are short."""
        from fedsim.aggregation import compiled

        self._compiled = compiled

    @property
    def compiled(self) -> ModuleType:
        """`fedsim.aggregation.compiled`, once that is loaded."""
        assert self._compiled is not None
        return self._compiled

    @property
    def takes_batches(self) -> bool:
        """Whether `consume` can be asked for."""
        return self._compiled is not None

    def consume(
        self, state: ServerState, addresses: Int64, makes_version: NDArray[np.bool_], steps: Float64
    ) -> list[Float32]:
        """The versions made by `add` or `complete` of one vector after the other; bit for bit what these give.

        The vectors are flat float32 (P,), by the addresses of their first values (R,). `steps` (R, 5) are the weight,
        kept, keep and scale that `add` or `complete` are told of each, and whether it is the first of its sum. Sum and
        state of it are the caller's to keep.
        """
        new: list[Float32] = [self.new(state.weights_P.size) for _ in range(int(makes_version.sum()))]
        places = np.zeros(addresses.size, np.int64)
        places[makes_version] = whereabouts.addresses(new)
        self.compiled.consume(state.weights_P, state.accumulator_P, addresses, places, steps)
        return new

    def add(
        self, state: ServerState, vector_P: Float32, weight: float, keep: float = 1.0, ready: Ready | None = None
    ) -> None:
        """accumulator <- keep * accumulator + weight * vector, in one pass (`keep` ignored if nothing is in it yet).

        `ready` is asked before values are read: see `fedsim.types.Update`.
        """
        assert vector_P.shape == state.weights_P.shape and vector_P.dtype == np.float32
        is_first = state.n_accumulated == 0
        if self._compiled is not None:
            for part in _parts(vector_P.size, ready):
                self._compiled.add(state.accumulator_P[part], vector_P[part], weight, keep, is_first)
            return
        for start in range(0, vector_P.size, _BLOCK):
            total = state.accumulator_P[start : start + _BLOCK]
            if ready is not None:
                ready(start + total.size)
            term = total if is_first else self._scratch[: total.size]
            np.copyto(term, vector_P[start : start + _BLOCK])
            if weight != 1.0:
                term *= weight
            if is_first:
                continue
            if keep != 1.0:
                total *= keep
            total += term

    def merge(self, state: ServerState, keep: float, scale: float) -> None:
        """weights <- keep * weights + scale * accumulator, in one pass; nothing is accumulated afterwards."""
        for start in range(0, state.weights_P.size, _BLOCK):
            weights = state.weights_P[start : start + _BLOCK]
            term = state.accumulator_P[start : start + _BLOCK]
            if scale != 1.0:
                term = np.multiply(term, scale, out=self._scratch[: weights.size])
            if keep != 1.0:
                weights *= keep
            weights += term
        state.weight_sum, state.n_accumulated = 0.0, 0

    def complete(
        self,
        state: ServerState,
        vector_P: Float32,
        weight: float,
        *,
        kept: float = 1.0,
        keep: float,
        scale: float,
        ready: Ready | None = None,
    ) -> Float32:
        """`add` (with `kept`), `merge` and `published` in one pass over memory: bit for bit what the three give."""
        assert vector_P.shape == state.weights_P.shape and vector_P.dtype == np.float32
        is_first = state.n_accumulated == 0
        new_P: Float32 = self.new(vector_P.size)
        if self._compiled is not None:
            for part in _parts(vector_P.size, ready):
                own = (state.weights_P[part], state.accumulator_P[part], vector_P[part], new_P[part])
                self._compiled.complete(*own, weight, kept, keep, scale, is_first)
            state.weight_sum, state.n_accumulated = 0.0, 0
            return new_P
        for start in range(0, vector_P.size, _BLOCK):
            weights = state.weights_P[start : start + _BLOCK]
            if ready is not None:
                ready(start + weights.size)
            term = self._scratch[: weights.size]
            np.copyto(term, vector_P[start : start + _BLOCK])
            if weight != 1.0:
                term *= weight
            if not is_first:
                total = state.accumulator_P[start : start + _BLOCK]
                if kept != 1.0:
                    total = np.multiply(total, kept, out=self._scaled[: total.size])
                term += total
            if scale != 1.0:
                term *= scale
            if keep != 1.0:
                weights *= keep
            weights += term
            np.copyto(new_P[start : start + _BLOCK], weights, casting="same_kind")
        state.weight_sum, state.n_accumulated = 0.0, 0
        return new_P


def _parts(n: int, ready: Ready | None) -> Iterable[slice]:
    """All of a vector of n values at once; of one that is still coming in part by part, each once it is here."""
    return (_ALL,) if ready is None else _coming(n, ready)


def _coming(n: int, ready: Ready) -> Iterator[slice]:
    for start in range(0, n, _PART):
        ready(min(start + _PART, n))
        yield slice(start, start + _PART)


def published(state: ServerState) -> Float32:
    """The version as it is sent and recorded: the weights cast to float32 once, a new array (P,)."""
    return state.weights_P.astype(np.float32)
