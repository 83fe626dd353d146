"""A run's configuration from a YAML file and from `--set` options, and back to text with every default written out.

Whatever is wrong becomes a `ConfigError` of one line: file, line, key, what was got, what is allowed or the
nearest name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim import configerrors, yamltree
from fedsim.config import RunConfig
from fedsim.errors import ConfigError
from fedsim.yamltree import Document, KeyPath, Place, shown

# The keys that say of which kind a section is: a section of another kind shares no keys with the base's.
_KINDS = ("dataset", "kind", "law", "policy", "rule")
_OVERRIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)=(.*)", re.DOTALL)


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, with the overrides put in.

    A key `base: other.yaml` names a file, relative to this one, whose keys hold where this one is silent, section by
    section; a section whose kind differs (`dataset`, `kind`, `law`, `policy` or `rule`) replaces the base's whole. A
    base has no base.

    Args:
        path: the file.
        overrides: `key.of.the.value=value` each, the value written as in YAML; replaces what was there.

    Raises ConfigError.
    """
    document = _with_base(yamltree.read(path), path)
    value = document.value
    places = dict(document.places)
    for override in overrides:
        value = _override(value, places, override)
    return _validated(value, places)


def from_mapping(mapping: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """The configuration that plain Python values describe; `where` stands for the file's name in a ConfigError."""
    return _validated(dict(mapping), {(): Place(where)})


def resolved_text(config: RunConfig) -> str:
    """YAML with every default written out, keys in the schema's order; `load` of it gives an equal configuration."""
    return yamltree.dump(_plain(config.model_dump()))


def sha256(config: RunConfig) -> str:
    """The SHA-256 of `resolved_text` in UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(resolved_text(config).encode("utf-8")).hexdigest()


def _plain(value: Any) -> Any:
    """The same value with tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _validated(value: dict[str, Any], places: Mapping[KeyPath, Place]) -> RunConfig:
    try:
        return RunConfig.model_validate(value)
    except ValidationError as error:
        message = configerrors.one_line(RunConfig, error, places)
    raise ConfigError(message)


# ------------------------------------------------------------------------------------------------- base


def _with_base(document: Document, path: Path) -> Document:
    if "base" not in document.value:
        return document
    place, name = document.places["base",], document.value["base"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}: base: expected the name of a YAML file, got {shown(name)}")
    base_path = path.parent / name
    try:
        base = yamltree.read(base_path)
    except ConfigError as error:
        raise ConfigError(f"{place}: base: {error}") from None
    if "base" in base.value:
        raise ConfigError(f"{base.places['base',]}: base: '{base_path}' is itself a base, so it cannot have one")
    own = {key: value for key, value in document.value.items() if key != "base"}
    places = {**base.places, **document.places}
    return Document(_merged(base.value, own), places)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base's keys with this mapping's own put over them, section by section."""
    result = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _differ(old, value):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and key in old and old[key] != new[key] for key in _KINDS)


# --------------------------------------------------------------------------------------------- overrides


def _override(value: dict[str, Any], places: dict[KeyPath, Place], text: str) -> dict[str, Any]:
    """The mapping with one override put in; `places` is changed to say so."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--set {shown(text)}: expected key=value, such as seed=42 or schedule.concurrency=8")
    key, written = match.groups()
    path = tuple(key.split("."))
    source = f"--set {key}"
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    for length in range(1, len(path)):
        places.setdefault(path[:length], Place(source))
    places[path] = Place(source)
    return _put(value, path, yamltree.parse_value(written, source), source)


def _put(value: Mapping[str, Any], path: tuple[str, ...], new: Any, source: str, done: str = "") -> dict[str, Any]:
    """The mapping with `new` at `path`; sections on the way that are missing or null are made."""
    if len(path) == 1:
        return {**value, path[0]: new}
    here = f"{done}.{path[0]}" if done else path[0]
    section = value.get(path[0])
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{source}: {here} is {shown(section)}, which has no keys")
    return {**value, path[0]: _put(section or {}, path[1:], new, source, here)}
