"""What a checkpoint holds of the objects whose state changes: plain arrays by name, nothing to be unpickled.

Whoever keeps a state between two events of a run offers `snapshot()`, which returns copies, and `restore(snapshot)`,
which takes the state over. Names of parts are joined by slashes, as HDF5 joins groups and datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import RecordError

Snapshot = dict[str, NDArray[Any]]
"""Arrays of numbers, booleans or fixed-length bytes; a single number is an array without dimensions."""


def joined(parts: Mapping[str, Snapshot]) -> Snapshot:
    """One snapshot of several, each under its own name.

    >>> joined({"rule": {"n": np.array(2)}})
    {'rule/n': array(2)}
    """
    return {f"{name}/{key}": array for name, part in parts.items() for key, array in part.items()}


def part(snapshot: Snapshot, name: str) -> Snapshot:
    """What `joined` put under a name; empty if nothing is there."""
    prefix = name + "/"
    return {key[len(prefix) :]: array for key, array in snapshot.items() if key.startswith(prefix)}


def array(snapshot: Snapshot, name: str, dtype: Any, ndim: int = 0) -> NDArray[Any]:
    """The array of that name, as `dtype`. Raises RecordError if it is missing or of another kind or shape."""
    found = snapshot.get(name)
    if found is None:
        raise RecordError(f"checkpoint: '{name}' is missing")
    wanted = np.dtype(dtype)
    if found.ndim != ndim or found.dtype.kind != wanted.kind:
        raise RecordError(
            f"checkpoint: '{name}' is {found.dtype} with {found.ndim} dimensions, not {wanted} with {ndim}"
        )
    return found.astype(wanted)


def integer(snapshot: Snapshot, name: str) -> int:
    """The whole number of that name; raises RecordError as `array` does."""
    return int(array(snapshot, name, np.int64))


def real(snapshot: Snapshot, name: str) -> float:
    """The floating-point number of that name; raises RecordError as `array` does."""
    return float(array(snapshot, name, np.float64))
