"""The table of what rules need, against the program that prints it; what is measured is not compared."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from fedsim.config import AggregationConfig, UserRule

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "algorithms.md").read_text()


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """`launch/rule-costs` as a module."""
    loader = SourceFileLoader("rule_costs", str(ROOT / "launch" / "rule-costs"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_table_has_the_rows_that_the_program_prints(program: ModuleType) -> None:
    for name, config, plain in program.rows():
        assert program.known(name, program.made(plain, 400, 5), config) in TEXT


def test_every_rule_has_a_row(program: ModuleType) -> None:
    kinds = [rule for rule in get_args(get_args(AggregationConfig)[0]) if rule is not UserRule]
    found = {config.aggregation.rule for _, config, _ in program.rows()}
    assert {get_args(rule.model_fields["rule"].annotation)[0] for rule in kinds} == found
