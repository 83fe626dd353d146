"""Any valid configuration survives being written out and read back; generated from the schema, so new keys join in."""

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedsim import config as schema
from fedsim import configfile, yamltree
from fedsim.config import RunConfig
from fedsim.errors import ConfigError

Mapping = dict[str, Any]


def _bounds(metadata: list[Any]) -> Mapping:
    """The limits that a field's metadata states."""
    found: Mapping = {}
    for one in metadata:
        for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern"):
            if getattr(one, name, None) is not None:
                found[name] = getattr(one, name)
        if isinstance(one, FieldInfo):
            found |= _bounds(one.metadata)
        if isinstance(one, annotated_types.GroupedMetadata):
            found |= _bounds(list(one))
    return found


def _integers(bounds: Mapping) -> st.SearchStrategy[int]:
    low = bounds["ge"] if "ge" in bounds else bounds.get("gt", -(2**60)) + 1
    high = bounds["le"] if "le" in bounds else bounds.get("lt", 2**60) - 1
    return st.integers(low, high)


def _floats(bounds: Mapping) -> st.SearchStrategy[float]:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    numbers = st.floats(
        low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False
    )
    return numbers


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Values that one field may hold, as YAML would give them."""
    origin, arguments, bounds = get_origin(annotation), get_args(annotation), _bounds(metadata)
    if origin is Annotated:
        return values(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, types.UnionType):
        return st.one_of([values(one, metadata) for one in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0], []), min_size=bounds["min_length"], max_size=min(bounds["max_length"], 4))
    if origin is dict:  # options of a function of the user's own
        plain = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
        return st.dictionaries(values(arguments[0], []), plain | st.text(max_size=20), max_size=3)
    if origin is tuple:
        return st.tuples(*[values(one, []) for one in arguments]).map(list)
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return _integers(bounds)
    if annotation is float:
        return _floats(bounds)
    if annotation is str:
        return st.from_regex(bounds["pattern"], fullmatch=True) if "pattern" in bounds else st.text(max_size=20)
    return sections(annotation)


def _valid(section: type[BaseModel], value: Mapping) -> bool:
    try:
        section.model_validate(value)
    except ValidationError:
        return False
    return True


def sections(section: type[BaseModel], without: tuple[str, ...] = ()) -> st.SearchStrategy[Mapping]:
    """Mappings that a section accepts, with and without its optional keys."""
    fields = {name: field for name, field in section.model_fields.items() if name not in without}
    strategies = {name: values(field.annotation, field.metadata) for name, field in fields.items()}
    required = {name: strategies[name] for name, field in fields.items() if field.is_required()}
    optional = {name: strategies[name] for name in fields if name not in required}
    mappings = st.fixed_dictionaries(required, optional=optional)
    return mappings if without else mappings.filter(lambda value: _valid(section, value))


_COMBINED = ("data", "partition", "devices", "clock", "schedule", "aggregation", "stop", "evaluation", "reduce")


@st.composite
def runs(draw: st.DrawFn) -> Mapping:
    """Mappings of whole runs; the keys that constrain each other are drawn together rather than until they fit."""
    run = draw(sections(RunConfig, without=_COMBINED))
    run["data"] = draw(values(schema.DataConfig, []))
    if run["data"]["dataset"] in ("digits", "idx", "npz"):
        kinds: Any = schema.IidPartition | schema.DirichletPartition | schema.ShardsPartition | schema.QuantityPartition
        run["partition"] = draw(values(kinds, []))
    run["devices"] = draw(sections(schema.DevicesConfig))
    run["schedule"] = draw(values(schema.ScheduleConfig, []))
    policy = run["schedule"]["policy"]
    if policy == "pisces" or "selection" in run["schedule"]:  # those that learn ask more of the rest
        run["schedule"]["selection"] = draw(st.sampled_from(["uniform", "size", "availability"]))
    every = (schema.FedAvgRule, schema.KAsyncRule, schema.FedBuffRule, schema.FedAsyncRule)
    rules = [rule for rule in every if not rule.policies or policy in rule.policies]
    run["aggregation"] = draw(st.one_of([sections(rule) for rule in rules]))
    run["stop"] = draw(sections(schema.StopConfig))
    run["evaluation"] = {**draw(sections(schema.EvaluationConfig)), "every_versions": draw(st.integers(1, 2**40))}
    if run["training"].get("path") == "none":  # without training nothing can be read, and nothing be attacked
        run["stop"].pop("target", None)
        run.pop("attack", None)
    _fit_personal(run)
    return run


def _fit_personal(run: Mapping) -> None:
    """Makes the rest what models of the clients' own and ASO-Fed's clients ask of it."""
    kind = (run.get("personalization") or {}).get("kind")
    if kind == "fedbn":
        run["model"].pop("buffers", None)
    if kind or run["model"].get("buffers") == "local":
        run["evaluation"]["clients"] = True
        run["training"].pop("path", None)
    if kind not in ("ditto", "fine-tune"):
        (run["stop"].get("target") or {}).pop("of", None)
    if run["training"].get("objective", {}).get("kind") == "aso-fed":
        run["training"] |= {"optimizer": {"kind": "sgd", "learning_rate": 0.5}, "clip_norm": None}


_SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


@_SETTINGS
@given(run=runs())
def test_resolved_text_reads_back_as_the_same_configuration(run: Mapping, tmp_path: Path) -> None:
    config = configfile.from_mapping(run)
    text = configfile.resolved_text(config)
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8"))
    again = configfile.load(path)
    assert again == config
    assert configfile.resolved_text(again) == text


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=st.dictionaries(st.text(max_size=10), _PLAIN, max_size=5))
def test_dump_and_parse_are_inverse_for_any_plain_values(value: Mapping) -> None:
    text = yamltree.dump(value)
    again = yamltree.parse(text.encode("utf-8"), "x").value
    assert again == value
    assert repr(again) == repr(value)  # also 1 and 1.0, 0.0 and -0.0, true and 1


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?,\n\t 01.e~=<", max_size=60).map(str.encode)
)
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes) -> None:
    try:
        document = yamltree.parse(data, "x.yaml")
    except ConfigError as error:
        assert str(error).startswith("x.yaml") and str(error).isprintable()
    else:
        assert set(document.places) >= {(), *[(key,) for key in document.value]}
        assert all(0 <= place.line <= len(data) + 1 for place in document.places.values())


@settings(max_examples=200, deadline=None)
@given(number=st.floats(allow_nan=False))
def test_floats_keep_their_bits(number: float) -> None:
    again = yamltree.parse(yamltree.dump({"x": number}).encode(), "x").value["x"]
    assert math.copysign(1, again) == math.copysign(1, number) and again == number


@_SETTINGS
@given(run=runs(), junk=_PLAIN, data=st.data())
def test_any_wrong_value_gets_one_line(run: Mapping, junk: Any, data: st.DataObject) -> None:
    section = run
    key = data.draw(st.sampled_from(sorted(section)))
    while isinstance(section[key], dict) and section[key] and data.draw(st.booleans()):
        section = section[key]
        key = data.draw(st.sampled_from(sorted(section)))
    section[key] = junk
    try:
        configfile.from_mapping(run)
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 600
