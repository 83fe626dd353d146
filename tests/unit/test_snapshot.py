"""The plain arrays that a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fedsim import snapshot
from fedsim.errors import RecordError


def test_parts_come_back_under_their_names() -> None:
    rule, schedule = {"n": np.array(3), "w": np.arange(2.0)}, {"n": np.array(4)}
    whole = snapshot.joined({"rule": rule, "rules": {}, "schedule": schedule})
    assert sorted(whole) == ["rule/n", "rule/w", "schedule/n"]
    assert snapshot.part(whole, "schedule") == schedule
    assert sorted(snapshot.part(whole, "rule")) == ["n", "w"]
    assert snapshot.part(whole, "rules") == {}


def test_numbers_are_read_as_what_they_are() -> None:
    state = {"n": np.array(3, np.int32), "x": np.array(0.5, np.float32), "v": np.zeros(2)}
    assert snapshot.integer(state, "n") == 3
    assert snapshot.real(state, "x") == 0.5
    assert snapshot.array(state, "v", np.float64, 1).dtype == np.float64


@pytest.mark.parametrize("name", ["missing", "x", "v"])
def test_what_is_not_a_whole_number_is_refused(name: str) -> None:
    with pytest.raises(RecordError, match=f"'{name}'"):
        snapshot.integer({"x": np.array(0.5), "v": np.arange(2)}, name)


@dataclass
class _State:
    weights: Any
    n: int = 0
    share: float = 0.0
    rows: dict[int, Any] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    direction: Any = None


def test_a_dataclass_comes_back_as_it_was() -> None:
    rows = {7: np.arange(3, dtype=np.float32), 2: np.ones(3, np.float32)}
    state = _State(np.array([1.0, 2.0]), 4, 0.1, rows, {9: 3, 1: 8}, np.zeros(2))
    taken = snapshot.of(state)
    state.weights[0], rows[7][0] = -1.0, -1.0
    back = _State(np.zeros(2))
    snapshot.put(back, taken)
    assert (
        back.weights.tolist() == [1.0, 2.0] and (back.n, back.share) == (4, 0.1) and back.direction.tolist() == [0, 0]
    )
    assert list(back.rows) == [7, 2] and back.rows[7].tolist() == [0.0, 1.0, 2.0] and back.rows[7].dtype == np.float32
    assert back.steps == {9: 3, 1: 8} and type(back.n) is int


def test_nothing_in_a_dataclass_stays_nothing() -> None:
    back = _State(np.zeros(2), 5, rows={1: np.ones(2)}, direction=np.ones(2))
    snapshot.put(back, snapshot.of(_State(np.ones(2))))
    assert back.rows == {} and back.direction is None and back.n == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weights": np.zeros(3)}, "'weights' has shape"),
        ({"weights": np.zeros(2, np.int64)}, "'weights' is int64"),
        ({"rows/keys": np.array([1, 1])}, "'rows' has 2 keys"),
        ({"rows/keys": np.array([1])}, "'rows' has 1 keys"),
    ],
)
def test_what_does_not_fit_a_dataclass_is_refused(changes: dict[str, Any], problem: str) -> None:
    taken = snapshot.of(_State(np.zeros(2), rows={1: np.zeros(2), 3: np.zeros(2)}))
    with pytest.raises(RecordError, match=problem):
        snapshot.put(_State(np.zeros(2)), taken | changes)
