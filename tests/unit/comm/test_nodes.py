"""One copy of a version a node: slots that nobody reads while they are written, and nodes without room."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nodes, "FOLDER", str(tmp_path))
    return tmp_path


def shelf_at(path: str, n_slots: int, n_values: int) -> Shelf:
    return Shelf(nodes._mapped(path, os.stat(path).st_size), n_slots, n_values)


def test_what_one_process_shows_the_others_see(folder: Path) -> None:
    path, n_slots = nodes._made(3, 1000)
    one, other = (shelf_at(path, n_slots, 1000) for _ in range(2))
    os.unlink(path)
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


def test_takes_fewer_slots_where_there_is_less_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "free_room", lambda _: 2 * (4096 + 2 * 4096) + 100)
    assert nodes._made(8, 1024)[1] == 2
    monkeypatch.setattr(nodes, "free_room", lambda _: 9000)
    with pytest.raises(OSError, match=r"9,000 bytes are free, a version of 4,096 needs 16,384"):
        nodes._made(8, 1024)
    assert len(list(folder.iterdir())) == 1


def test_no_file_is_left_where_its_room_cannot_be_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        nodes._made(2, 1024)
    assert not list(folder.iterdir())


def test_the_room_is_really_taken(folder: Path) -> None:
    path, n_slots = nodes._made(2, 1024)
    status = os.stat(path)
    assert status.st_size == 4096 + n_slots * 4096 and status.st_blocks * 512 >= status.st_size
    assert status.st_mode & 0o077 == 0


def test_another_file_of_that_name_is_not_mapped(folder: Path) -> None:
    (folder / "x").write_bytes(b"0" * mmap.PAGESIZE)
    with pytest.raises(OSError, match="not the file that was made"):
        nodes._mapped(str(folder / "x"), 2 * mmap.PAGESIZE)
    (folder / "link").symlink_to(folder / "x")
    with pytest.raises(OSError):
        nodes._mapped(str(folder / "link"), mmap.PAGESIZE)
