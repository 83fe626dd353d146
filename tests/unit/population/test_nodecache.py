"""One copy of a large array a host: who makes it, who may, and what happens to a copy that is not whole."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import resource
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.population import nodecache
from fedsim.population.datasets import idx, npz

Cache = Path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A folder for copies, and a bound that small arrays reach."""
    monkeypatch.setenv(nodecache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(nodecache, "LEAST_BYTES", 1000)
    return tmp_path / "cache"


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (500, 9, 7), np.uint8)


def archive(folder: Path, images: NDArray[Any]) -> Path:
    path = folder / "data.npz"
    np.savez_compressed(path, train_images=images)
    return path


def compressed(folder: Path, images: NDArray[np.uint8]) -> Path:
    path = folder / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()))
    return path


def copies(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.suffix)


def test_compressed_files_are_mapped_with_the_values_that_they_hold(
    cache: Cache, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    for values in (
        npz._read_images(archive(tmp_path, images), "train_images"),
        idx._read_arranged(compressed(tmp_path, images)),
    ):
        assert np.array_equal(values[:, 0], images)
        assert not values.flags.writeable and isinstance(values, np.memmap)
    assert len(copies(cache)) == 2  # one a source
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("dtype", [">f4", "<f8", "i2"])
def test_types_and_orders_stay(cache: Cache, images: NDArray[np.uint8], tmp_path: Path, dtype: str) -> None:
    for values in (images.astype(dtype), np.asfortranarray(images.astype(dtype))):
        path = archive(tmp_path, values)
        found = nodecache.shared(path, "train_images", values.nbytes, lambda v=values: v)  # type: ignore[misc]
        assert found.dtype == values.dtype and np.array_equal(found, values)


def test_the_second_process_reads_nothing(cache: Cache, images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = archive(tmp_path, images)
    first = nodecache.shared(path, "train_images", images.nbytes, lambda: images)

    def never() -> NDArray[np.generic]:
        raise AssertionError("read again")

    assert np.array_equal(nodecache.shared(path, "train_images", images.nbytes, never), first)


def test_another_source_is_another_copy(cache: Cache, images: NDArray[np.uint8], tmp_path: Path) -> None:
    npz._read_images(archive(tmp_path, images), "train_images")
    changed = images.copy()
    changed[0, 0, 0] ^= 1
    assert np.array_equal(npz._read_images(archive(tmp_path, changed), "train_images")[:, 0], changed)
    assert len(copies(cache)) == 2


@pytest.mark.parametrize("harm", ["truncated", "altered", "emptied", "without sum"])
def test_a_copy_that_is_not_whole_is_made_anew(
    cache: Cache, images: NDArray[np.uint8], tmp_path: Path, harm: str
) -> None:
    path = archive(tmp_path, images)
    npz._read_images(path, "train_images")
    (copy,) = copies(cache)
    whole = copy.read_bytes()
    if harm == "without sum":
        copy.with_suffix(".sha256").unlink()
    else:
        harmed = {"truncated": whole[:-9], "altered": whole[:-1] + bytes([whole[-1] ^ 1]), "emptied": b""}[harm]
        copy.write_bytes(harmed)
    assert np.array_equal(npz._read_images(path, "train_images")[:, 0], images)
    assert copy.read_bytes() == whole


def test_small_arrays_and_off_make_no_copy(
    cache: Cache, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, images)
    assert nodecache.shared(path, "train_images", 999, lambda: images) is images
    monkeypatch.setenv(nodecache.VARIABLE, "off")
    assert nodecache.shared(path, "train_images", 10**9, lambda: images) is images
    assert not cache.exists()


def test_a_folder_that_others_can_write_to_is_not_trusted(
    cache: Cache, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.warns(UserWarning, match=r"every rank keeps a copy of its own \(others can write there: "):
        values = npz._read_images(archive(tmp_path, images), "train_images")
    assert np.array_equal(values[:, 0], images) and list(cache.iterdir()) == []


def test_a_link_in_place_of_the_folder_is_not_followed(cache: Cache, images: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="others can write there"):
        npz._read_images(archive(tmp_path, images), "train_images")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def _read_with_little_room(path: Path, n_bytes: int, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        values = npz._read_images(path, "train_images")
    queue.put((int(values.sum(dtype=np.int64)), [str(one.message) for one in said]))


def test_a_full_disk_costs_the_copy_and_nothing_else(cache: Cache, images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = archive(tmp_path, images)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_with_little_room, args=(path, 5000, queue))
    child.start()
    total, said = queue.get(timeout=30)
    child.join(30)
    assert total == int(images.sum(dtype=np.int64))
    assert len(said) == 1 and "File too large" in said[0]
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []  # no part of a file is left


def _read_at_once(path: Path, gate: Any, queue: Any) -> None:
    gate.wait(30)
    calls = []

    def read() -> NDArray[np.generic]:
        calls.append(1)
        return npz.read_array(path, "train_images")

    values = nodecache.shared(path, "train_images", 10**6, read)
    queue.put((len(calls), int(values.sum(dtype=np.int64))))


def test_of_many_processes_at_once_one_makes_the_copy(cache: Cache, images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = archive(tmp_path, images)
    context = multiprocessing.get_context("fork")
    gate, queue = context.Barrier(6), context.Queue()
    children = [context.Process(target=_read_at_once, args=(path, gate, queue)) for _ in range(6)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert sum(n for n, _ in found) == 1
    assert {total for _, total in found} == {int(images.sum(dtype=np.int64))}
    assert len(copies(cache)) == 1 and os.listdir(cache) != []
