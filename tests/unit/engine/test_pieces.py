"""How vectors are cut: the arithmetic beyond what MPI's counts hold, without taking the memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsim.comm.pieces import PIECE, spans

COUNT = 2**31  # MPI's counts are below it


@given(n=st.integers(0, 2**40), n_pieces=st.integers(1, 50))
def test_pieces_follow_each_other_and_cover_the_vector(n: int, n_pieces: int) -> None:
    found = list(spans(n, max(1, -(-n // n_pieces))))
    assert [stop for _, stop in found[:-1]] == [start for start, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, n) if n else found == []
    assert len(found) <= n_pieces and all(start < stop for start, stop in found)


def test_vectors_past_the_largest_count_travel_in_messages_below_it() -> None:
    for n in (COUNT - 1, COUNT, COUNT + 1, 3 * COUNT + 5, 10**11):
        found = list(spans(n))
        assert found[0][0] == 0 and found[-1][1] == n and len(found) == -(-n // PIECE)
        assert all(0 < 4 * (stop - start) < COUNT for start, stop in found), "even counted in bytes"
