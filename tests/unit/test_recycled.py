"""Large arrays are handed out again when nobody holds them, and never while somebody does."""

from __future__ import annotations

import numpy as np

from fedsim.recycled import Recycled

LARGE = 2**18  # float32: a MiB


def test_what_nobody_holds_is_handed_out_again() -> None:
    recycled = Recycled()
    first = recycled.empty(LARGE)
    first.flags.writeable = False
    place = first.ctypes.data
    del first
    again = recycled.empty(LARGE)
    assert again.ctypes.data == place and again.flags.writeable


def test_what_somebody_holds_is_not() -> None:
    recycled = Recycled()
    kept = [recycled.empty(LARGE) for _ in range(70)]  # more than are looked through
    view = recycled.empty(LARGE)[10:20]
    places = {array.ctypes.data for array in kept}
    assert len(places) == 70
    for _ in range(3):
        other = recycled.empty(LARGE)
        assert other.ctypes.data not in places and not np.shares_memory(other, view)
        kept.append(other)
        places.add(other.ctypes.data)


def test_another_size_or_type_is_another_array() -> None:
    recycled = Recycled()
    first = recycled.empty(LARGE)
    first[:] = 7.0
    del first
    assert recycled.empty(LARGE + 1).size == LARGE + 1
    assert recycled.empty(4 * LARGE, np.uint8).dtype == np.uint8
    assert (recycled.empty(LARGE) == 7.0).all()


def test_small_ones_are_new() -> None:
    recycled = Recycled()
    assert recycled.empty(10).shape == (10,) and not recycled._kept
