"""The store of versions: counted users, a bound in memory, and the scratch file beyond it, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.engine.versions import VersionStore
from fedsim.types import Float32

N = 37


def vector(version: int) -> Float32:
    """Any bits at all: NaN payloads, infinities, denormals, both zeros."""
    words = np.random.default_rng(version).integers(0, 2**32, N, dtype=np.uint32)
    words[:5] = [0x7FC01234, 0xFF800000, 0x00000001, 0x80000000, 0x7F812345]
    return words.view(np.float32)


def size_of(store: VersionStore) -> int:
    assert store._file is not None
    return os.fstat(store._file).st_size


def test_users_are_counted(tmp_path: Path) -> None:
    store = VersionStore(N, 10**6, tmp_path)
    store.add(0, vector(0))
    store.retain(0)
    assert not store.release(0) and len(store) == 1
    assert store.release(0) and len(store) == 0
    with pytest.raises(KeyError):
        store.release(0)


def test_spilled_and_back_bit_for_bit(tmp_path: Path) -> None:
    store = VersionStore(N, 2 * 4 * N + 3, tmp_path)  # room for two
    for version in range(6):
        store.add(version, vector(version))
    assert store.n_spilled == 4 and len(store) == 6
    for version in range(6):
        back = store.get(version)
        assert back.tobytes() == vector(version).tobytes() and back.dtype == np.float32 and back.shape == (N,)
    spilled = store.get(0)
    with pytest.raises(ValueError, match="read-only"):
        spilled[0] = 1.0
    store.close()


def test_slots_are_used_again(tmp_path: Path) -> None:
    store = VersionStore(N, 0, tmp_path)  # at least one stays in memory
    for version in range(200):
        store.add(version, vector(version))
        if version >= 3:
            assert store.release(version - 3)
        assert store.n_spilled <= 3
    assert size_of(store) <= 4 * 4 * N
    assert [store.get(v).tobytes() for v in (197, 198, 199)] == [vector(v).tobytes() for v in (197, 198, 199)]
    store.close()


def test_the_file_leaves_no_name_behind(tmp_path: Path) -> None:
    store = VersionStore(N, 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
    for version in range(3):
        store.add(version, vector(version))
    assert store.n_spilled == 2 and list(tmp_path.iterdir()) == []
    store.close()
    store.close()


def test_what_is_added_is_not_copied(tmp_path: Path) -> None:
    store, given_P = VersionStore(N, 10**6, tmp_path), vector(0)
    store.add(0, given_P)
    assert store.get(0) is given_P and store.n_spilled == 0


OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "retain", "release"]), st.integers(0, 30)), max_size=80)


@given(OPERATIONS, st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_it_is_a_dictionary_with_counts(operations: list[tuple[str, int]], n_in_memory: int) -> None:
    store, users, added = VersionStore(N, n_in_memory * 4 * N), dict[int, int](), 0
    for what, which in operations:
        if what == "add":
            store.add(added, vector(added))
            users[added], added = 1, added + 1
        elif users:
            version = sorted(users)[which % len(users)]
            users[version] += 1 if what == "retain" else -1
            if what == "retain":
                store.retain(version)
            else:
                assert store.release(version) == (users[version] == 0)
            users = {v: n for v, n in users.items() if n}
        assert len(store) == len(users) and len(users) - store.n_spilled <= max(1, n_in_memory)
        assert all(store.get(v).tobytes() == vector(v).tobytes() for v in users)
    store.close()
