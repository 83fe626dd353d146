"""docs/configuration.md against fedsim.config: every section, choice, key, range and default, and no other.

Each heading of the page that starts with a dotted key in backticks is followed by a table. For a section with
kinds the table's first column names the kind.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim import config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

# Heading -> the section, or the union of its kinds and the key that tells them apart.
SECTIONS: dict[str, tuple[Any, str | None]] = {
    "run": (config.RunConfig, None),
    "data": (config.DataConfig, "dataset"),
    "partition": (config.PartitionConfig, "kind"),
    "devices": (config.DevicesConfig, None),
    "devices.compute": (config.ComputeConfig, None),
    "devices.download": (config.LinkConfig, None),
    "devices.availability": (config.AvailabilityConfig, "kind"),
    "law": (config.LawConfig, "law"),
    "model": (config.ModelConfig, "kind"),
    "training": (config.TrainingConfig, None),
    "training.optimizer": (config.OptimizerConfig, "kind"),
    "training.objective": (config.ObjectiveConfig, "kind"),
    "training.decay": (config.DecayConfig, None),
    "schedule": (config.ScheduleConfig, "policy"),
    "schedule.selection": (config.SelectionConfig, "kind"),
    "aggregation": (config.AggregationConfig, "rule"),
    "staleness": (config.StalenessConfig, "kind"),
    "attack": (config.AttackConfig, "kind"),
    "personalization": (config.PersonalizationConfig, "kind"),
    "evaluation": (config.EvaluationConfig, None),
    "stop": (config.StopConfig, None),
    "stop.target": (config.TargetConfig, None),
    "reduce": (config.ReduceConfig, None),
    "compression": (config.CompressionConfig, None),
    "compression.updates": (config.UpdateCompression, "kind"),
    "memory": (config.MemoryConfig, None),
    "record": (config.RecordConfig, None),
    "retry": (config.RetryConfig, None),
    "checkpoint": (config.CheckpointConfig, None),
}


class Row(NamedTuple):
    """A key as the page should list it; `kind` is empty in sections without kinds, `key` in kinds without keys."""

    kind: str
    key: str
    allowed: str
    default: str


def members(union: Any) -> tuple[type[BaseModel], ...]:
    """The classes of a discriminated union."""
    return get_args(get_args(union)[0])


def expected(name: str) -> list[Row]:
    """The rows that the code has for a section."""
    what, tag = SECTIONS[name]
    if tag is None:
        return list(_rows("", what, ""))
    return [row for cls in members(what) for row in _rows(_kinds(cls, tag), cls, tag)]


def _kinds(cls: type[BaseModel], tag: str) -> str:
    return ", ".join(f"`{kind}`" for kind in get_args(cls.model_fields[tag].annotation))


def _rows(kind: str, cls: type[BaseModel], tag: str) -> Iterator[Row]:
    keys = {name: field for name, field in cls.model_fields.items() if name != tag}
    for name, field in keys.items():
        yield Row(kind, f"`{name}`", allowed(field.annotation, field.metadata), default(field))
    if not keys:
        yield Row(kind, "", "", "")


def default(field: FieldInfo) -> str:
    """A default as YAML; that of a section that has only defaults is left to its own table."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        if not any(inner.is_required() for inner in type(value).model_fields.values()):
            return "its defaults"
        value = value.model_dump()
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()
    return f"`{text.removesuffix('...').strip()}`"


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The values that a key may have, in words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        found = [item for extra in more for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return allowed(inner, found)
    if origin is Literal:
        return ", ".join(f"`{yaml_word(value)}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return _one_of(get_args(annotation))
    if origin is dict:
        return "mapping of names to numbers, texts, `true`, `false`"
    if origin is list:
        return f"list of {_length(metadata)}; each a {allowed(get_args(annotation)[0])}"
    if origin is tuple:
        return f"list of {len(get_args(annotation))}; each a {allowed(get_args(annotation)[0])}"
    return _plain(annotation, list(metadata))


def _one_of(choices: tuple[Any, ...]) -> str:
    real = tuple(choice for choice in choices if choice is not type(None))
    names = [allowed(choice) for choice in real if get_origin(choice) is Literal]
    if names and len(real) == 2:  # some names, or a section for what needs keys
        return f"{names[0]} or section: {section_of(members(real[1]))}"
    text = allowed(real[0]) if len(real) == 1 else f"section: {section_of(real)}"
    return text + (" or `null`" if len(real) < len(choices) else "")


def section_of(choices: tuple[Any, ...]) -> str:
    """The page's name of a union."""
    for name, (what, tag) in SECTIONS.items():
        if tag is not None and members(what) == choices:
            return f"[{name}](#{name.replace('.', '')})"
    raise AssertionError(f"no section for {choices}")


def _length(metadata: Iterable[Any]) -> str:
    bounds = {type(item).__name__: item for item in metadata}
    return f"{bounds['MinLen'].min_length} to {bounds['MaxLen'].max_length}"


def _plain(annotation: Any, metadata: list[Any]) -> str:
    if annotation is bool:
        return "`true`, `false`"
    if annotation is str:
        patterns = [item.pattern for item in metadata if getattr(item, "pattern", None)]
        return f"text: `{patterns[0]}`" if patterns else "text"
    if annotation in (int, float):
        return ("whole number" if annotation is int else "number") + _bounds(metadata)
    for name, (what, tag) in SECTIONS.items():
        if tag is None and what is annotation:
            return f"section: [{name}](#{name.replace('.', '')})"
    raise AssertionError(f"no words for {annotation}")


def _bounds(metadata: list[Any]) -> str:
    has = {side: getattr(item, side) for item in metadata for side in ("ge", "gt", "le", "lt") if hasattr(item, side)}
    if "ge" in has and "le" in has:
        return f", {_number(has['ge'])} to {_number(has['le'])}"
    low = f", {_number(has['ge'])} or more" if "ge" in has else f" above {_number(has['gt'])}" if "gt" in has else ""
    high = f", at most {_number(has['le'])}" if "le" in has else f", below {_number(has['lt'])}" if "lt" in has else ""
    return low + high


def _number(value: float) -> str:
    if value >= 2**20 and float(value).hex().startswith("0x1.0000"):
        return f"2^{int(value).bit_length() - 1}"
    return f"{value:,g}" if value < 1e5 else f"{value:,.0f}"


def yaml_word(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower()


# ------------------------------------------------------------------------------------------------ the page


def tables(text: str) -> dict[str, list[tuple[str, ...]]]:
    """The cells of the first table below each heading that starts with a key in backticks; a cell `"` repeats."""
    found: dict[str, list[tuple[str, ...]]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            match = re.match(r"#+ `([\w.]+)`", line)
            name = match[1] if match else ""
        elif line.startswith("|") and name:
            found.setdefault(name, []).append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return {name: rows[2:] for name, rows in found.items()}


def listed(name: str) -> tuple[list[Row], list[str]]:
    """A section's rows as the page has them, and what each says that the key means."""
    rows, meanings, kind = [], [], ""
    for cells in tables(PAGE.read_text(encoding="utf-8"))[name]:
        if SECTIONS[name][1] is not None:
            kind = cells[0] or kind
            cells = cells[1:]
        key, what, standard, meaning = cells
        rows.append(Row(kind, key, what, standard))
        meanings.append(meaning)
    return rows, meanings


def test_the_page_has_these_sections() -> None:
    assert list(tables(PAGE.read_text(encoding="utf-8"))) == list(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_lists_what_the_code_has(name: str) -> None:
    rows, meanings = listed(name)
    assert rows == expected(name)
    assert all(meanings), [row.key for row, meaning in zip(rows, meanings, strict=True) if not meaning]


def test_every_class_of_the_configuration_has_a_section() -> None:
    known = {cls for what, tag in SECTIONS.values() for cls in (members(what) if tag else (what,))}
    assert reachable(config.RunConfig) == known


def reachable(cls: type[BaseModel]) -> set[type[BaseModel]]:
    """The class and all sections below it."""
    found = {cls}
    for field in cls.model_fields.values():
        for inner in _classes(field.annotation):
            found |= reachable(inner)
    return found


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def test_bounds_are_put_into_words() -> None:
    fields = config.TrainingConfig.model_fields
    assert allowed(fields["epochs"].annotation, fields["epochs"].metadata) == "whole number, 1 to 2^24 or `null`"
    assert allowed(fields["clip_norm"].annotation, fields["clip_norm"].metadata) == "number above 0 or `null`"
    assert allowed(config.Fraction) == "number, 0 to 1" and allowed(config.OpenFraction) == "number above 0, below 1"
    momentum = config.SgdOptimizer.model_fields["momentum"]
    assert allowed(momentum.annotation, momentum.metadata) == "number, 0 or more, below 1"
