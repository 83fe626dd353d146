"""Memory that rank zero has in common with workers: nothing is written where somebody may still read."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.comm.commons import PRIVATE, CommonShelf, Rows, Sizes, Versions, _fitted, _rows_at
from fedsim.comm.pieces import ALONE_BYTES

SMALL, LARGE = Sizes(7, 5, 3, 10), Sizes(7, ALONE_BYTES // 4, 3, 10)


def memory_of(sizes: Sizes, n_workers: int = 1) -> tuple[mmap.mmap, mmap.mmap]:
    """As two ranks map it."""
    n_bytes, n_halvings = _fitted(sizes, n_workers, 2**40)
    assert n_halvings == 0
    with tempfile.TemporaryFile() as file:
        file.truncate(n_bytes)
        return mmap.mmap(file.fileno(), n_bytes), mmap.mmap(file.fileno(), n_bytes)


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@given(steps=st.lists(st.tuples(st.sampled_from("tttlf"), st.integers(1, 4)), max_size=40))
def test_a_row_is_written_again_only_once_rank_zero_has_let_go_of_it(sizes: Sizes, steps: list[Any]) -> None:
    ours, theirs = memory_of(sizes)
    worker, server = Rows(theirs, 0, sizes), Rows(ours, 0, sizes)
    held: list[tuple[Any, float]] = []
    for number, (what, n) in enumerate(steps, 1):
        if what == "t":
            taken = worker.take(n)
            if taken is None:
                assert held, "rows that nobody holds are free"
                continue
            numbers, rows = taken
            assert len(set(numbers)) == len(rows) == n
            for row in rows:
                row[:] = number
            if n == 4:  # a training that failed
                worker.give_back(numbers)
            else:
                held += [(row, number) for row in server.received(numbers)]
        elif what == "l":
            del held[:n]
        else:
            held = [(row[1:], value) for row, value in held]  # a view holds its row, too
        assert all((row == value).all() for row, value in held)
    held.clear()
    taken = worker.take(sizes.n_rows)
    assert taken is not None and len(taken[0]) == sizes.n_rows, "all have come back"


@given(steps=st.lists(st.tuples(st.sampled_from("mmpppfld"), st.integers(0, 5), st.integers(0, 1)), max_size=60))
def test_a_slot_is_written_again_only_once_nobody_may_read_it(steps: list[tuple[str, int, int]]) -> None:
    sizes, n_workers = Sizes(0, 5, 3, 10), 2
    ours, theirs = memory_of(sizes, n_workers)
    versions = Versions(ours, _rows_at(sizes, n_workers), sizes)
    shelves = [CommonShelf(theirs, sizes, worker, n_workers) for worker in range(n_workers)]
    here: dict[int, Any] = {}  # what rank zero keeps
    known: list[dict[int, Any]] = [{}, {}]
    for what, version, worker in steps:
        if what == "m" and version not in here and not any(version in mine for mine in known):
            here[version] = versions.empty(10)
            here[version][:] = version
        elif what == "p" and version in here and version not in known[worker]:
            place = versions.place(worker, version, here[version])
            known[worker][version] = here[version].copy() if place == PRIVATE else shelves[worker].read(place)
        elif what == "f":
            versions.forget(worker, [version])
            known[worker].pop(version, None)
        elif what == "l":
            here.pop(version, None)
        elif what == "d" and version == 0:
            versions.lose(worker)
            known[worker] = {}
        for version, vector in [*here.items(), *known[0].items(), *known[1].items()]:
            assert (vector == version).all()
        vector = None
    here.clear()
    for worker in range(n_workers):
        versions.lose(worker)
    known = [{}, {}]
    assert sorted(versions._free) == [0, 1, 2]


def test_what_was_made_elsewhere_is_copied_into_a_slot_once() -> None:
    sizes = Sizes(0, 5, 2, 10)
    ours, theirs = memory_of(sizes)
    versions, shelf = Versions(ours, 0, sizes), CommonShelf(theirs, sizes, 0, 1)
    elsewhere = np.arange(10, dtype=np.float32)
    place = versions.place(0, 4, elsewhere)
    assert place == versions.place(1, 4, elsewhere) != PRIVATE
    assert np.array_equal(shelf.read(place), elsewhere) and len(versions._free) == 1
    made = versions.empty(10)
    assert versions.place(0, 5, made) != PRIVATE and versions.place(0, 6, elsewhere) == PRIVATE
    assert versions.empty(11).size == 11, "not a version"
    versions.lose(0)
    assert versions._free == [], "another worker knows one, rank zero holds the other"


def test_what_travels_in_pieces_is_not_shared() -> None:
    assert Sizes.fitting(4, 100, 5, 200, 150) == Sizes(4, 100, 0, 200)
    assert Sizes.fitting(4, 100, 5, 100, 99) == Sizes(0, 100, 0, 100)
    assert Sizes.fitting(4, 100, 5, 100, 150, 5) == Sizes(0, 100, 5, 100, 5), "not even a group's"
    many = Sizes.fitting(10**6, 2**18, 10**6, 2**18, 2**20)
    assert many.n_bytes(1) <= 2**29 + 2**20, "a quarter of a gigabyte each"


def test_takes_less_where_there_is_less_room() -> None:
    sizes = Sizes(8, 1024, 6, 1024)
    whole = 2 * (4096 + 8 * 4096) + 6 * 4096
    assert sizes.n_bytes(2) == whole and _fitted(sizes, 2, 2 * whole) == (whole, 0)
    assert _fitted(sizes, 2, 2 * whole - 1) == (2 * (4096 + 4 * 4096) + 3 * 4096, 1)
    assert sizes.halved(3) == Sizes(1, 1024, 0, 1024) and _fitted(sizes, 2, 2 * 4 * 4096)[1] == 3
    with pytest.raises(OSError, match=r"20,000 bytes are free, 196,608 are needed"):
        _fitted(sizes, 2, 20_000)
