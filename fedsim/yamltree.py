"""YAML read as plain values, each with the line that it stands on, and nothing but the simple part of YAML.

Configurations come from strangers' papers and from generated sweeps, so a text that is ambiguous or that could grow is
refused: duplicate keys, anchors and aliases, tags, several documents, deep nesting, large files. Scalars follow YAML
1.2's core schema in decimal, so that `1e-3` is a number and `no`, `on` and `2024-01-01` are text; PyYAML by itself
reads YAML 1.1, where they are not.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedsim.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 50
SHOWN_CHARACTERS = 60

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_TAB = "cannot start any token"
_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": int,
    _TAG + "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    _TAG + "str": str,
}
# At most 40 digits: a longer run of digits is text, so that no number costs quadratic time to read.
_RESOLVERS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9](?:_?[0-9]){0,40})$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:[0-9]{1,40}\.[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?|[0-9]{1,40}[eE][-+]?[0-9]{1,4}|\.inf)$|^\.nan$",
        list("-+.0123456789"),
    ),
)


class Place(NamedTuple):
    """Where a value was written: a file and its line (from 1; 0 for none), or an option of the command line."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Document:
    """A text's mapping, and the place of every key and list entry by its path; the whole document's is `()`."""

    value: dict[str, Any]
    places: dict[KeyPath, Place]


def shown(value: Any) -> str:
    """A value as an error message quotes it: as YAML writes it, on one line, at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value = value[: SHOWN_CHARACTERS + 1]
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _place(source: str, line: int) -> Place:
    """The place of a line; an option of the command line is one line, whose number would say nothing."""
    return Place(source, 0 if source.startswith("--") else line)


class _Problem(Exception):
    """Something refused, at a mark of the text."""

    def __init__(self, mark: yaml.Mark, text: str) -> None:
        super().__init__(text)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, refusing what could grow or be read in two ways; values are made by `_plain`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)
    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Problem(event.start_mark, "anchors and aliases (& and *) are not allowed; write the value out")
        if event.tag is not None:
            raise _Problem(event.start_mark, f"the tag {shown(event.tag)} is not allowed; write the plain value")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Problem(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's emitter, quoting by the rules that `_Loader` reads by, with lists on one line."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


def _float_node(dumper: yaml.SafeDumper, value: float) -> ScalarNode:
    text = repr(value)
    return dumper.represent_scalar(_TAG + "float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text))


def _text_node(dumper: yaml.SafeDumper, value: str) -> ScalarNode:
    """Odd characters are escaped: left alone, PyYAML writes U+0085 as it is and reads it back as the end of a line."""
    return dumper.represent_scalar(_TAG + "str", value, style=None if value.isprintable() else '"')


def _list_node(dumper: yaml.SafeDumper, value: Iterable[Any]) -> SequenceNode:
    return dumper.represent_sequence(_TAG + "seq", value, flow_style=True)


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
_Dumper.add_representer(float, _float_node)
_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(list, _list_node)


def _plain(node: Node, path: KeyPath, source: str, places: dict[KeyPath, Place]) -> Any:
    """The plain value of a node; fills `places` below `path`."""
    if isinstance(node, ScalarNode):
        return _SCALARS[node.tag](node.value)
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            places[*path, index] = _place(source, item.start_mark.line + 1)
        return [_plain(item, (*path, index), source, places) for index, item in enumerate(node.value)]
    return _mapping(node, path, source, places)


def _mapping(node: Node, path: KeyPath, source: str, places: dict[KeyPath, Place]) -> dict[str, Any]:
    assert isinstance(node, MappingNode)
    result: dict[str, Any] = {}
    key_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode) or key_node.tag != _TAG + "str":
            got = key_node.value if isinstance(key_node, ScalarNode) else f"a {key_node.id}"
            raise _Problem(key_node.start_mark, f"a key must be text, got {got[:SHOWN_CHARACTERS] or 'nothing'}")
        key = key_node.value
        if key in result:
            first = key_lines[key]
            raise _Problem(key_node.start_mark, f"the key {shown(key)} is given twice; first on line {first}")
        key_lines[key] = line
        places[*path, key] = _place(source, line)
        result[key] = _plain(value_node, (*path, key), source, places)
    return result


def _decode(data: bytes, source: str) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than 1 MiB; a configuration is a few lines of YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{_place(source, line)}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def _compose(text: str, source: str) -> Node | None:
    """The root node of a text of at most one document; ConfigError for whatever PyYAML or `_Loader` refuses."""
    try:
        loader = _Loader(text)
        node: Node | None = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise ConfigError(f"{_place(source, line)}: the character {character} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, source)) from None
    except _Problem as problem:
        raise ConfigError(f"{_place(source, problem.line)}: {problem}") from None
    return node


def _syntax_message(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = _place(source, mark.line + 1 if mark else 0)
    problem = " ".join((error.problem or "").split())
    if isinstance(error, yaml.composer.ComposerError):
        return f"{place}: a second document starts here (---); a configuration is one document"
    if _TAB in problem and "\\t" in problem:
        return f"{place}: a tab character; YAML is indented by spaces"
    context = " ".join((error.context or "").split())
    return f"{place}: not valid YAML: {problem}" + (f" ({context})" if context else "")


def parse(data: bytes, source: str) -> Document:
    """The mapping that a YAML text holds, with the place of every key.

    Args:
        data: the text, UTF-8, at most 1 MiB.
        source: the file's name, for messages.

    Raises ConfigError, in one line with the line number, for whatever is not one plain mapping.
    """
    node = _compose(_decode(data, source), source)
    if node is None:
        raise ConfigError(f"{source}: empty; a configuration is a mapping of keys to values")
    if not isinstance(node, MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(f"{source}:{line}: expected a mapping of keys to values, got a {_kind(node)}")
    places: dict[KeyPath, Place] = {(): Place(source)}
    try:
        return Document(_mapping(node, (), source, places), places)
    except _Problem as problem:
        raise ConfigError(f"{_place(source, problem.line)}: {problem}") from None


def _kind(node: Node) -> str:
    return "list" if isinstance(node, SequenceNode) else "single value"


def parse_value(text: str, source: str) -> Any:
    """The value of a scalar, or of a list or mapping in brackets, as an option of the command line gives it.

    Raises ConfigError with `source` in front for anything else, such as `a: 1` without braces.
    """
    node = _compose(_decode(text.encode("utf-8", "surrogateescape"), source), source)
    if node is None:
        return None
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style:
        raise ConfigError(f"{source}: expected one value, or a list or mapping in brackets, got {shown(text)}")
    try:
        return _plain(node, (), source, {})
    except _Problem as problem:
        raise ConfigError(f"{source}: {problem}") from None


def read(path: Path) -> Document:
    """The document of a YAML file; raises ConfigError for a file that is missing, unreadable, or refused by `parse`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could keep us waiting for ever
            raise ConfigError(f"{path}: not a plain file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_neighbour(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    return parse(data, str(path))


def _neighbour(path: Path) -> str:
    """A hint at a YAML file of nearly that name in the same folder, or nothing."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""


def dump(value: dict[str, Any]) -> str:
    """The text of plain mappings, lists and scalars, keys in their order; `parse` reads the same values back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**9
    )
    return text
