"""Do all ranks see the same run: the same verdict on every rank, and the rank and host that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fedsim.engine.agreement import Statement, agree
from fedsim.errors import ConfigError, DataError, FedsimError, LaunchError, RecordError

SOUND = {"cpu_capability": "AVX512", "torch": "2.13.0", "threads": "1"}


def statements(n: int = 4) -> list[Statement]:
    return [
        Statement(rank, f"node{rank}", config_sha256="c" * 64, data_sha256="d" * 64, layout="l" * 64, environment=SOUND)
        for rank in range(n)
    ]


def verdicts(said: list[Statement], allow_mixed: bool = False) -> set[tuple[type[Exception] | None, str]]:
    """What each rank comes to, each from its own statement and what all said."""
    found: set[tuple[type[Exception] | None, str]] = set()
    for mine in said:
        gathered: Callable[[Statement], list[Statement]] = lambda statement: said  # noqa: E731
        try:
            agree(mine, gathered, allow_mixed)
            found.add((None, ""))
        except FedsimError as error:
            found.add((type(error), str(error)))
    return found


def only(said: list[Statement], allow_mixed: bool = False) -> tuple[Any, str]:
    """The one verdict that all ranks share."""
    found = verdicts(said, allow_mixed)
    assert len(found) == 1
    return found.pop()


def test_those_who_agree_get_all_statements() -> None:
    said = statements()
    assert agree(said[2], lambda mine: said, False) == said


def test_an_error_of_all_is_told_as_it_is() -> None:
    said = [replace(s, error="run.yaml: key 'x' is unknown", error_type=ConfigError) for s in statements()]
    assert only(said) == (ConfigError, "run.yaml: key 'x' is unknown")


@pytest.mark.parametrize("kind", [ConfigError, DataError, RecordError, LaunchError])
def test_an_error_of_one_is_told_with_its_host(kind: type[FedsimError]) -> None:
    said = statements()
    said[2] = replace(said[2], error="data/x.npz: no such file", error_type=kind)
    assert only(said) == (kind, "rank 2 on node2: data/x.npz: no such file")


def test_the_first_of_several_errors_is_told() -> None:
    said = statements()
    said[1] = replace(said[1], error="one", error_type=DataError)
    said[3] = replace(said[3], error="another", error_type=ConfigError)
    assert only(said) == (DataError, "rank 1 on node1: one")


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"config_sha256": "e" * 64}, LaunchError, "ranks see different configurations: rank 3 on node3 has eeee"),
        ({"layout": "e" * 64}, LaunchError, "ranks see different models: rank 3 on node3 has eeee"),
        ({"data_sha256": "e" * 64}, DataError, "ranks see different data: rank 3 on node3 has sha256 eeee"),
    ],
)
def test_who_differs_is_named(changes: dict[str, Any], kind: type[FedsimError], text: str) -> None:
    said = statements()
    said[3] = replace(said[3], **changes)
    found_kind, found = only(said)
    assert found_kind is kind and found.startswith(text) and "rank 0 on node0" in found
    assert only(said, allow_mixed=True) == (found_kind, found), "that is never allowed"


@pytest.mark.parametrize("key", sorted(SOUND))
def test_workers_on_different_machines(key: str) -> None:
    said = statements()
    said[3] = replace(said[3], environment=SOUND | {key: "other"})
    kind, found = only(said)
    assert kind is LaunchError
    expected = f"{key} is other at rank 3 on node3, {SOUND[key]} at rank 1 on node1"
    assert expected in found and "allow_mixed" in found
    assert only(said, allow_mixed=True) == (None, "")


def test_a_setting_that_only_one_has() -> None:
    said = statements()
    said[2] = replace(said[2], environment=SOUND | {"ATEN_CPU_CAPABILITY": "avx2"})
    assert "ATEN_CPU_CAPABILITY is avx2 at rank 2 on node2, None at rank 1 on node1" in only(said)[1]


def test_the_server_may_be_another_machine() -> None:
    # Rank zero trains nothing: its device is not one that updates come from.
    said = statements()
    said[0] = replace(said[0], environment=SOUND | {"cpu_capability": "AVX2"})
    assert only(said) == (None, "")


def test_alone() -> None:
    said = statements(1)
    assert agree(said[0], lambda mine: [mine], False) == said
