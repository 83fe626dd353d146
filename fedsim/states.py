"""Snapshots of states that consist of plain values, whatever their shape: for objects that write none of their own.

Plain are numbers, texts, None, arrays, lists, tuples, deques, sets, dictionaries, dataclasses, and the named tuples of
`fedsim.types`. Rows of equal kind become columns, so that ten thousand tasks in flight are a dozen arrays. Restoring
takes classes from a template, never from the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np

from fedsim.errors import RecordError
from fedsim.snapshot import Snapshot, array, integer
from fedsim.types import Event, EventKind, Task, TaskReport

_KIND = ":kind"
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "deque": deque, "set": set}
_SCALARS: dict[type, Any] = {int: np.int64, float: np.float64, bool: np.bool_}
_COLUMNS: dict[type, Any] = _SCALARS | {EventKind: np.int64}
_MOST_CHILDREN = 2**24

# The named tuples that a snapshot may hold, and how each is made of its columns' values.
_TUPLES: dict[str, tuple[type[Any], Callable[..., Any]]] = {
    "Task": (Task, Task),
    "TaskReport": (TaskReport, TaskReport),
    "Event": (Event, lambda time_s, kind, number: Event(time_s, EventKind(kind), number)),
}


_DTYPES = {
    name: {column: _COLUMNS[hint] for column, hint in get_type_hints(rows).items()}
    for name, (rows, _) in _TUPLES.items()
}


def of(value: Mapping[str, Any]) -> Snapshot:
    """The snapshot of plain values by name; arrays are copied. Raises TypeError for anything else, which is a bug.

    >>> of({"n": 2, "seen": [1, 2]})["seen/:ints"]
    array([1, 2])
    """
    made: Snapshot = {}
    for key, item in value.items():
        if not key or "/" in key or key.startswith((":", ".")):
            raise TypeError(f"{key!r} is no plain name")
        _put(made, key, item)
    return made


def of_object(state: Any) -> Snapshot:
    """The snapshot that an object makes of itself, or else that of its attributes, which have to be plain."""
    own = getattr(state, "snapshot", None)
    made: Snapshot = of(_attributes(state)) if own is None else own()
    return made


def restored(
    snapshot: Snapshot, template: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `of` was given, by name. `template` has a value of the same type for each name; `optional` has those for
    names whose value may be None.

    A value of another type, or an array of another shape or dtype than the template's, is a RecordError; a template
    of None takes anything, and empty collections take any content.
    """
    tree, likes = _Tree(snapshot), {**template, **(optional or {})}
    found = {name: tree.value(name, like) for name, like in likes.items()}
    for name, value in found.items():
        if value is not None or name not in (optional or {}):
            _like(name, value, likes[name])
    return found


def restore_object(state: Any, snapshot: Snapshot) -> None:
    """Gives an object the state of another of its class, of which `of_object` made the snapshot."""
    own = getattr(state, "restore", None)
    if own is not None:
        own(snapshot)
        return
    for name, value in restored(snapshot, _attributes(state)).items():
        setattr(state, name, value)


def _attributes(state: Any) -> dict[str, Any]:
    if is_dataclass(state):
        return {field.name: getattr(state, field.name) for field in fields(state)}
    return dict(vars(state))


def _put(made: Snapshot, name: str, value: Any) -> None:
    """Adds a value under a name."""
    if isinstance(value, np.ndarray):
        made[name] = value.copy()
    elif type(value) in _SCALARS:
        made[name] = np.array(value, _SCALARS[type(value)])
    elif isinstance(value, np.generic):
        made[name] = np.array(value)
    elif value is None:
        made[f"{name}/{_KIND}"] = np.array(b"none")
    elif isinstance(value, str):
        made[f"{name}/{_KIND}"] = np.array(b"str")
        made[f"{name}/:utf8"] = np.frombuffer(value.encode(), np.uint8).copy()
    else:
        _put_collection(made, name, value)


def _put_collection(made: Snapshot, name: str, value: Any) -> None:
    kind = type(value).__name__
    if isinstance(value, dict):
        _put(made, f"{name}/:keys", list(value))
        _put(made, f"{name}/:values", list(value.values()))
        kind = "dict"
    elif kind in _TUPLES:
        _put_items(made, name, [value])
        kind = "row"
    elif kind in _SEQUENCES:
        _put_items(made, name, sorted(value) if kind == "set" else list(value))
    elif is_dataclass(value):
        for key, item in _attributes(value).items():
            _put(made, f"{name}/{key}", item)
        kind = "object"
    else:
        raise TypeError(f"{name}: a {kind} cannot be kept in a snapshot")
    made[f"{name}/{_KIND}"] = np.array(kind.encode())


def _put_items(made: Snapshot, name: str, items: list[Any]) -> None:
    """A sequence: as one array, as columns, or item by item."""
    kinds = {type(item) for item in items}
    only = kinds.pop() if len(kinds) == 1 else None
    if only in _SCALARS:
        made[f"{name}/:{only.__name__}s"] = np.array(items, _SCALARS[only])
    elif only is not None and only.__name__ in _TUPLES:
        made[f"{name}/:rows"] = np.array(only.__name__.encode())
        for column, values in zip(only._fields, zip(*items, strict=True), strict=True):
            made[f"{name}/{column}"] = np.array(values, _DTYPES[only.__name__][column])
    elif only is np.ndarray and len({(item.shape, item.dtype) for item in items}) == 1:
        made[f"{name}/:stack"] = np.stack(items)
    else:
        made[f"{name}/:n"] = np.array(len(items))
        for index, item in enumerate(items):
            _put(made, f"{name}/{index}", item)


class _Tree:
    """A snapshot's values by name."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def value(self, name: str, like: Any) -> Any:
        """The value of that name; `like` gives the class of a dataclass."""
        leaf = self._snapshot.get(name)
        if leaf is not None:
            return leaf.copy() if leaf.ndim else leaf.item()
        kind = self._text(f"{name}/{_KIND}")
        if kind == "none":
            return None
        if kind == "str":
            return array(self._snapshot, f"{name}/:utf8", np.uint8, 1).tobytes().decode("utf-8", "replace")
        if kind == "dict":
            keys, values = self.value(f"{name}/:keys", None), self.value(f"{name}/:values", None)
            return dict(zip(keys, values, strict=True))
        if kind == "object":
            return self._object(name, like)
        items = self._items(name)
        if kind == "row":
            return items[0]
        if kind not in _SEQUENCES:
            raise RecordError(f"checkpoint: '{name}' is of unknown kind '{kind}'")
        return _SEQUENCES[kind](items)

    def _object(self, name: str, like: Any) -> Any:
        if not is_dataclass(like) or isinstance(like, type):
            raise RecordError(f"checkpoint: '{name}' is an object that this run does not have")
        places = {key: (f"{name}/{key}", item) for key, item in _attributes(like).items()}
        return type(like)(**{key: _like(at, self.value(at, item), item) for key, (at, item) in places.items()})

    def _items(self, name: str) -> list[Any]:
        for suffix in (":ints", ":floats", ":bools"):
            if f"{name}/{suffix}" in self._snapshot:
                return list(self._snapshot[f"{name}/{suffix}"].tolist())
        if f"{name}/:stack" in self._snapshot:
            return list(self._snapshot[f"{name}/:stack"])
        if f"{name}/:rows" in self._snapshot:
            return self._rows(name)
        n = integer(self._snapshot, f"{name}/:n")
        if not 0 <= n <= min(_MOST_CHILDREN, len(self._snapshot)):
            raise RecordError(f"checkpoint: '{name}' is said to have {n} items")
        return [self.value(f"{name}/{index}", None) for index in range(n)]

    def _rows(self, name: str) -> list[Any]:
        kind = self._text(f"{name}/:rows")
        if kind not in _TUPLES:
            raise RecordError(f"checkpoint: '{name}' has rows of unknown kind '{kind}'")
        cls, make = _TUPLES[kind]
        columns: Sequence[list[Any]] = [
            array(self._snapshot, f"{name}/{column}", _DTYPES[kind][column], 1).tolist() for column in cls._fields
        ]
        return [make(*values) for values in zip(*columns, strict=True)]

    def _text(self, name: str) -> str:
        return bytes(array(self._snapshot, name, "S")).decode("ascii", "replace")


def _like(name: str, value: Any, like: Any) -> Any:
    """The value, if it can stand where `like` does."""
    if like is None:
        return value
    if isinstance(like, np.ndarray):
        alike = isinstance(value, np.ndarray) and value.dtype == like.dtype and value.ndim == like.ndim
        same = alike and (not like.size or value.shape == like.shape)
    elif isinstance(like, bool | np.bool_):
        same = isinstance(value, bool)
    elif isinstance(like, int | np.integer):
        same = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(like, float | np.floating):
        same = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        same = type(value) is type(like)
    if not same:
        raise RecordError(f"checkpoint: '{name}' is not what this run has there")
    return value
