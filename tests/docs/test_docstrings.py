"""The examples in docstrings: each gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fedsim

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(fedsim.__path__, "fedsim.") if "__main__" not in found.name
)


def examples(name: str) -> list[doctest.DocTest]:
    """The examples of a module."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [test for test in found if test.examples]


def test_there_are_examples() -> None:
    assert sum(len(examples(name)) for name in MODULES) >= 20


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    n_failed = sum(runner.run(test, out=told.append).failed for test in examples(name))
    assert n_failed == 0, "".join(told)
