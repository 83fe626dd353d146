"""What a checkpoint holds of the objects whose state changes: plain arrays by name, nothing to be unpickled.

Whoever keeps a state between two events of a run offers `snapshot()`, which returns copies, and `restore(snapshot)`,
which takes the state over. Names of parts are joined by slashes, as HDF5 joins groups and datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
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


def of(state: Any) -> Snapshot:
    """Copies of a dataclass's fields: arrays, numbers, None, and dictionaries from whole numbers to arrays or numbers.

    A dictionary becomes its keys in their order and a stack of its values, which all have one shape and type. A field
    that is a dataclass itself becomes a part of its own.
    """
    found: Snapshot = {}
    for each in fields(state):
        value = getattr(state, each.name)
        if isinstance(value, dict):
            found[f"{each.name}/keys"] = np.array(list(value), dtype=np.int64)
            found[f"{each.name}/values"] = np.array(list(value.values()))
        elif is_dataclass(value):
            found |= joined({each.name: of(value)})
        elif value is not None:
            found[each.name] = np.array(value)
    return found


def put(state: Any, snapshot: Snapshot) -> None:
    """Sets the fields of a dataclass to what `of` took of one like it.

    Raises:
        RecordError: something is missing, or of another kind or shape than `state` has or the other fields allow.
    """
    for each in fields(state):
        old = getattr(state, each.name)
        if isinstance(old, dict):
            setattr(state, each.name, _dictionary(snapshot, each.name))
        elif is_dataclass(old):
            put(old, part(snapshot, each.name))
        elif each.default is None and (old is None or each.name not in snapshot):
            found = snapshot.get(each.name)
            setattr(state, each.name, None if found is None else found.copy())
        elif isinstance(old, np.ndarray):
            new = array(snapshot, each.name, old.dtype, old.ndim)
            if new.shape != old.shape:
                raise RecordError(f"checkpoint: '{each.name}' has shape {new.shape}, not {old.shape}")
            setattr(state, each.name, new)
        else:
            setattr(state, each.name, type(old)(array(snapshot, each.name, type(old))))


def _dictionary(snapshot: Snapshot, name: str) -> dict[int, Any]:
    keys = array(snapshot, f"{name}/keys", np.int64, 1)
    values = snapshot.get(f"{name}/values")
    if values is None or len(values) != len(keys) or np.unique(keys).size != keys.size:
        raise RecordError(f"checkpoint: '{name}' has {len(keys)} keys and not as many values")
    rows = [value.copy() for value in values] if values.ndim > 1 else values.tolist()
    return dict(zip(keys.tolist(), rows, strict=True))
