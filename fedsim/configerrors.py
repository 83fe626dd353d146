"""What pydantic says of a configuration, as one plain line: place, key, what was got and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedsim.errors import nearest
from fedsim.yamltree import KeyPath, Place, shown


class Finding(NamedTuple):
    """One thing that is wrong: the key's path, a sentence, pydantic's kind of error, and where it was written."""

    path: KeyPath
    sentence: str
    kind: str
    place: Place

    @property
    def rank(self) -> tuple[bool, int, int]:
        """The order in which findings are worth telling: by line; a missing key last, as it is often a misspelt one."""
        return (self.kind == "missing", 1 if self.place.line else 0, self.place.line)


class Node(NamedTuple):
    """A place in the schema: the key's path without union tags, and what the schema says there."""

    path: KeyPath
    annotation: Any


def dotted(path: KeyPath) -> str:
    """A path as people write it: `model.hidden[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + _one_line(part)
    return text


def _one_line(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else shown(key)


# ------------------------------------------------------------------------------------ walking the schema


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation with Annotated and None taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not type(None):
        yield annotation


def _sections(annotation: Any) -> list[type[BaseModel]]:
    return [member for member in _members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def _tags(section: type[BaseModel]) -> set[str]:
    """What a section's Literal fields may hold; among them the tag by which a union tells it from others."""
    fields = [field.annotation for field in section.model_fields.values() if field.is_required()]
    return {str(value) for annotation in fields if get_origin(annotation) is Literal for value in get_args(annotation)}


def _step(node: Node, part: str | int) -> Node:
    """The node that one element of pydantic's location leads to; a union's tag narrows the node and adds no key."""
    sections = _sections(node.annotation)
    if len(sections) > 1:
        return Node(node.path, next((section for section in sections if part in _tags(section)), None))
    field: FieldInfo | None = sections[0].model_fields.get(str(part)) if sections else None
    return Node((*node.path, part), field.annotation if field else None)


def _walk(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[Node, Node]:
    """The node of a location, and its parent."""
    parent = node = Node((), root)
    for part in location:
        parent, node = node, _step(node, part)
    return parent, node


# ----------------------------------------------------------------------------------------------- sentences


def _unit(context: Mapping[str, Any]) -> str:
    return "entry" if context.get("min_length", context.get("max_length")) == 1 else "entries"


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "finite_number": "a finite number",
}
_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda ctx: f"must be above {_number(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"must be at least {_number(ctx['ge'])}",
    "less_than": lambda ctx: f"must be below {_number(ctx['lt'])}",
    "less_than_equal": lambda ctx: f"must be at most {_number(ctx['le'])}",
    "too_short": lambda ctx: f"must have at least {ctx['min_length']} {_unit(ctx)}",
    "too_long": lambda ctx: f"must have at most {ctx['max_length']} {_unit(ctx)}",
    "string_pattern_mismatch": lambda ctx: f"must match {ctx['pattern']}",
}


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _expected(text: str) -> list[str]:
    """The names in pydantic's list of them: "'virtual' or 'wall'"."""
    return re.findall(r"'([^']*)'", text)


def _choice(got: Any, allowed: list[str]) -> str:
    hint = nearest(got[:60], allowed) if isinstance(got, str) else "allowed: " + ", ".join(allowed)
    return f"unknown value {shown(got)}; {hint}"


def _sentence(error: ErrorDetails, parent: Node, node: Node) -> str:
    kind, got, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        sections = _sections(parent.annotation)
        allowed = sections[0].model_fields if sections else {}
        return "unknown key; " + nearest(str(node.path[-1])[:60], allowed)
    if kind == "missing":
        return "missing; it must be given"
    if kind == "literal_error":
        return _choice(got, _expected(context["expected"]))
    if kind == "value_error":
        return str(context["error"])
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, got {shown(got)}"
    if kind in _BOUNDS:
        length = f"{context.get('actual_length')}" if kind in ("too_short", "too_long") else shown(got)
        return f"{_BOUNDS[kind](context)}, got {length}"
    message = error["msg"]
    return f"{message[:1].lower()}{message[1:]}, got {shown(got)}"


def _finding(root: type[BaseModel], error: ErrorDetails, places: Mapping[KeyPath, Place]) -> Finding:
    parent, node = _walk(root, error["loc"])
    path, kind, context = node.path, error["type"], error.get("ctx", {})
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, context["discriminator"].strip("'"))
    if kind == "union_tag_invalid":
        sentence = _choice(error["input"][path[-1]], _expected(context["expected_tags"]))
    elif kind == "union_tag_not_found":
        path, kind, sentence = _no_tag(node, str(path[-1]), error["input"])
    else:
        sentence = _sentence(error, parent, node)
    return Finding(path, sentence, kind, _place(path, sentence, kind, places))


def _no_tag(node: Node, discriminator: str, got: Any) -> tuple[KeyPath, str, str]:
    """Path, kind and sentence for a section that does not say which kind it is, or says so by a misspelt key."""
    fields = {name for section in _sections(node.annotation) for name in section.model_fields}
    strange = [key for key in got if key not in fields] if isinstance(got, Mapping) else []
    close = difflib.get_close_matches(discriminator, [str(key)[:60] for key in strange], n=1)
    if close:
        return (*node.path, close[0]), "extra_forbidden", f"unknown key; did you mean '{discriminator}'?"
    allowed = ", ".join(_all_tags(node, discriminator))
    return (*node.path, discriminator), "missing", f"missing; allowed: {allowed}"


def _all_tags(node: Node, discriminator: str) -> list[str]:
    literals = [section.model_fields[discriminator].annotation for section in _sections(node.annotation)]
    return [str(tag) for literal in literals for tag in get_args(literal)]


def _place(path: KeyPath, sentence: str, kind: str, places: Mapping[KeyPath, Place]) -> Place:
    """Where a path was written: the key itself, or the nearest section around it that was.

    A rule about several keys is broken at none of them: its sentence starts with the one to look at.
    """
    if kind == "value_error":
        subject: KeyPath = (*path, *re.split(r"[\s,:]", sentence, maxsplit=1)[0].split("."))
        while len(subject) > len(path):
            if subject in places:
                return places[subject]
            subject = subject[:-1]
    while path and path not in places:
        path = path[:-1]
    return places[path]


def _explained(missing: Finding, findings: list[Finding]) -> bool:
    """Whether a missing key is only another finding's misspelt one."""
    name = str(missing.path[-1])
    return any(
        other.kind == "extra_forbidden"
        and other.path[:-1] == missing.path[:-1]
        and other.sentence.endswith(f"did you mean '{name}'?")
        for other in findings
    )


def _line(finding: Finding) -> str:
    key, place = dotted(finding.path), str(finding.place)
    parts = [place] if not key or place == f"--set {key}" else [place, key]
    return ": ".join([*parts, " ".join(finding.sentence.split())])


def one_line(root: type[BaseModel], error: ValidationError, places: Mapping[KeyPath, Place]) -> str:
    """The most useful of a validation's errors in one line, and how many more there are.

    Args:
        root: the model that was validated, to tell keys from union tags and to know the allowed names.
        places: where each key was written; `()`, the whole text's, must be there.
    """
    findings = [_finding(root, detail, places) for detail in error.errors(include_url=False)]
    findings = [one for one in findings if one.kind != "missing" or not _explained(one, findings)]
    findings.sort(key=lambda one: one.rank)
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return _line(findings[0]) + more
