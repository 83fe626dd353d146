"""The search for cycles leaves alone what lasts as long as a run, and is afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from fedsim.engine.heap import settled_heap


def test_what_was_there_is_not_searched_inside() -> None:
    threshold, n_frozen = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError), settled_heap():
        assert gc.get_freeze_count() > n_frozen + 1000 and gc.get_threshold()[0] > threshold[0]
        with settled_heap():
            pass
        assert gc.get_freeze_count() > n_frozen + 1000, "the outer one's"
        raise ZeroDivisionError
    assert gc.get_threshold() == threshold and gc.get_freeze_count() == n_frozen


def test_a_search_that_somebody_turned_off_stays_off() -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with settled_heap():
            assert gc.get_threshold()[0] == 0 and gc.get_freeze_count() == 0
    finally:
        gc.set_threshold(*threshold)
