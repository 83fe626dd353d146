"""What a configuration takes from files of its user's own; `fedsim.userfiles` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedsim.config.base import Section
from fedsim.config.staleness import RuleSection

_OPTION = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,59}$")]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,200}\.py:[A-Za-z_][A-Za-z0-9_]{0,99}$")]


class UserSection(Section):
    """A function of a file beside the configuration or below, and what it is given by name."""

    function: UserName
    options: dict[_OPTION, Any] = Field(default={})

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"{name} is {value!r:.60}; allowed: numbers, texts, true and false")
        return options


class UserRule(UserSection, RuleSection):
    """A rule from a file of your own; written rule: ./FILE.py:FUNCTION for short."""

    rule: Literal["user"]


class UserObjective(UserSection):
    """An objective from a file of your own; written kind: ./FILE.py:FUNCTION for short."""

    kind: Literal["user"]


class UserSelection(UserSection):
    """A selection from a file of your own; written selection: ./FILE.py:FUNCTION for short."""

    kind: Literal["user"]


class UserData(UserSection):
    """A data set from a file of your own, with clients; written dataset: ./FILE.py:FUNCTION for short."""

    dataset: Literal["user"]


_PLACES = (
    ("data", (), "dataset"),
    ("aggregation", (), "rule"),
    ("training", ("objective",), "kind"),
    ("schedule", ("selection",), "kind"),
)


def spelt_out(value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a run, with what names a file of the user's own for short written in full."""
    result = dict(value)
    for section, inner, tag in _PLACES:
        if section in result:
            result[section] = _at(result[section], inner, tag)
    return result


def _at(value: Any, inner: tuple[str, ...], tag: str) -> Any:
    if inner:
        if not isinstance(value, Mapping) or inner[0] not in value:
            return value
        own = value[inner[0]]
        own = {tag: own} if _is_file(own) else own
        return {**value, inner[0]: _at(own, inner[1:], tag)}
    if isinstance(value, Mapping) and _is_file(value.get(tag)):
        return {tag: "user", "function": value[tag], **{key: item for key, item in value.items() if key != tag}}
    return value


def _is_file(value: Any) -> bool:
    """Whether a text stands for a file of the user's own; what is wrong with one is told by the schema."""
    return isinstance(value, str) and (".py:" in value or value.endswith(".py"))
