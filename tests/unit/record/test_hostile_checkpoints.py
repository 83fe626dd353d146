"""Checkpoints from strangers, with a right checksum: nothing but what is in the file, and no more than that."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedsim.errors import RecordError
from fedsim.record.checkpoint import Checkpoint, Vectors, write

Harm = Callable[[h5py.File], None]
MAGIC = b"\nfedsim checkpoint sha256 "


def linked(link: Any) -> Harm:
    def harm(file: h5py.File) -> None:
        del file["server/counts"]
        file["server/counts"] = link

    return harm


def replaced(**options: Any) -> Harm:
    def harm(file: h5py.File) -> None:
        del file["server/counts"]
        file.create_dataset("server/counts", **options)

    return harm


def virtual(file: h5py.File) -> None:
    del file["server/counts"]
    layout = h5py.VirtualLayout(shape=(3,), dtype="<i8")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(3,))
    file.create_virtual_dataset("server/counts", layout)


def nested(file: h5py.File) -> None:
    file.create_group("/".join(["a"] * 40)).create_dataset("b", data=1)


def one_of_many_names(file: h5py.File) -> None:
    file["server/large"] = np.zeros(2**17)
    for index in range(64):
        file[f"server/{index}"] = file["server/large"]


def chain(file: h5py.File) -> None:
    """Thirty groups, each of which the one before has two links to: 2^30 paths."""
    place = file
    for _ in range(30):
        place.create_group("a")
        place["b"] = place["a"]
        place = place["a"]


def round_about(file: h5py.File) -> None:
    file["server/above"] = file["/"]


HARMS: dict[str, Harm] = {
    "external link": linked(h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link": linked(h5py.SoftLink("/versions/numbers")),
    "a link to itself": linked(h5py.SoftLink("/server/counts")),
    "external storage": replaced(shape=(8,), dtype="u1", external=[("/etc/passwd", 0, 8)]),
    "virtual storage": virtual,
    "values that are not stored": replaced(shape=(2**40,), dtype="<i8", chunks=(1024,)),
    "compressed": replaced(data=np.zeros(100_000), compression="gzip"),
    "of any length": replaced(data="text", dtype=h5py.string_dtype()),
    "references": replaced(shape=(2,), dtype=h5py.ref_dtype),
    "nested deeply": nested,
    "one array of many names": one_of_many_names,
    "two links to each of a chain of groups": chain,
    "a group below itself": round_about,
    "of another format": lambda file: file.attrs.__setitem__("checkpoint_format", 99),
}


def written(folder: Path, harm: Harm) -> Path:
    """A checkpoint that somebody changed, and signed again."""
    row = np.ones(5, np.float32)
    path = write(folder, 1, {"server/counts": np.arange(3)}, Vectors(2, 5, lambda index: row))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(MAGIC)])
    with h5py.File(path, "r+") as file:
        harm(file)
    return signed(path)


def signed(path: Path) -> Path:
    body = path.read_bytes()
    path.write_bytes(body + MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n")
    return path


def test_a_changed_one_that_is_signed_again_is_read(tmp_path: Path) -> None:
    found = Checkpoint(written(tmp_path, lambda file: None))
    assert found.snapshot["server/counts"].tolist() == [0, 1, 2] and len(list(found.versions(5))) == 2


@pytest.mark.parametrize("name", HARMS)
def test_what_no_checkpoint_has_is_one_line(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, HARMS[name])
    tracemalloc.start()
    try:
        with pytest.raises(RecordError) as caught:
            list(Checkpoint(path).versions(5))
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)


def test_arrays_that_share_their_bytes_take_no_more_memory_than_the_file_has(tmp_path: Path) -> None:
    """Headers of their own, so that no object has two names, but all with the place of one array's values."""
    path, n_values = tmp_path / "checkpoint-000001.h5", 2**17
    with h5py.File(path, "w", libver="earliest") as file:  # whose headers have no checksums
        file.attrs["checkpoint_format"] = 1
        file["large"] = np.zeros(n_values)
        place = file["large"].id.get_offset()
        for index in range(64):
            file.create_dataset(f"x{index}", shape=(n_values,), dtype="<f8")
    data = path.read_bytes()
    nowhere, there = (
        b"\x03\x01" + at + struct.pack("<Q", 8 * n_values) for at in (b"\xff" * 8, struct.pack("<Q", place))
    )
    assert data.count(nowhere) == 64
    path.write_bytes(data.replace(nowhere, there))
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="more values than the file has bytes"):
            Checkpoint(signed(path))
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()
