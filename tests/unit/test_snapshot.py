"""The plain arrays that a checkpoint holds."""

from __future__ import annotations

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
