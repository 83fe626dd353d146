"""One copy of a version a node: slots that nobody reads while they are written, and nodes without room."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.comm import nodes
from fedsim.comm.nodes import PRIVATE, Ledger, Shelf, Shown

NODES = [(1, 3), (1, 3), (1, 3), None, (5, 2), (5, 2)]
STEPS = st.lists(st.tuples(st.integers(0, len(NODES) - 1), st.integers(0, 6), st.sampled_from("pppfd")), max_size=80)


@given(STEPS)
def test_no_slot_is_given_away_while_somebody_knows_what_lies_in_it(steps: list[tuple[int, int, str]]) -> None:
    ledger, dead = Ledger(NODES), set[int]()
    known: dict[int, dict[int, int]] = {worker: {} for worker in range(len(NODES))}  # versions by slot, or PRIVATE
    receiver: dict[tuple[int, int], int] = {}
    closed: set[tuple[int, int]] = set()  # slots that someone who may not be dead may still write to
    for worker, version, what in steps:
        node = NODES[worker]
        if worker in dead:
            continue
        if what == "f":
            ledger.forget(worker, [version])
            known[worker].pop(version, None)
        elif what == "d":
            dead.add(worker)
            orphans = ledger.lose(worker)
            gone, known[worker] = known[worker], {}
            wanted = set()
            for number, slot in gone.items():
                if node is not None and slot != PRIVATE and receiver[node[0], slot] == worker:
                    closed.add((node[0], slot))
                    wanted |= {(o, number) for o in known if NODES[o] == node and known[o].get(number) == slot}
            assert set(orphans) == wanted
            for other, number in orphans:
                known[other][number] = PRIVATE  # as if sent again alone
        elif version not in known[worker]:
            place = ledger.place(worker, version)
            assert (place == PRIVATE) or node is not None
            if place == PRIVATE:
                known[worker][version] = PRIVATE
                continue
            assert node is not None
            slot, is_mine = divmod(place, 2)
            mates = [known[other] for other in known if NODES[other] == node and other != worker]
            if is_mine:
                assert 0 <= slot < node[1] and (node[0], slot) not in closed
                assert all(slot not in shelf.values() for shelf in [*mates, known[worker]])
                receiver[node[0], slot] = worker
            else:
                assert any(shelf.get(version) == slot for shelf in mates) or receiver[node[0], slot] == worker
            known[worker][version] = slot


def test_without_nodes_everything_comes_to_each_worker_alone() -> None:
    ledger = Ledger([None, None])
    assert not ledger.shares(0) and ledger.place(1, 4) == PRIVATE
    ledger.forget(1, [4])
    assert ledger.lose(1) == []


def test_what_one_worker_shows_the_others_see() -> None:
    n_bytes, n_slots = nodes._size(3, 1000, 2**30)
    memory = mmap.mmap(-1, n_bytes)
    one, other = (Shelf(memory, n_slots, 1000) for _ in range(2))
    assert n_slots == 3
    for version, slot in ((0, 2), (7, 0)):
        assert not Shown(other, slot, version).Test()
        one.row(slot)[:] = version + 0.5
        assert not other.shows(slot, version)
        one.show(slot, version)
        assert other.shows(slot, version) and not other.shows(slot, version + 1)
        assert (other.read(slot) == version + 0.5).all() and other.read(slot).ctypes.data % 64 == 0
    one.row(2)
    assert not other.shows(2, 0), "it is being written again"
    assert other.shows(0, 7)


def test_takes_fewer_slots_where_there_is_less_room() -> None:
    assert nodes._size(8, 1024, 2 * (4096 + 2 * 4096) + 100) == (3 * 4096, 2)
    with pytest.raises(OSError, match=r"9,000 bytes are free, a version of 4,096 needs 16,384"):
        nodes._size(8, 1024, 9000)
