"""HDF5 with a group a client: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedsim.config import Hdf5Data
from fedsim.errors import DataError
from fedsim.population.datasets.hdf5 import Hdf5Population

RNG = np.random.default_rng(0)
SIZES = {"f_01": 3, "f_02": 5, "f_03": 1}


def write(path: Path, sizes: dict[str, int] = SIZES, change: Callable[[Any], None] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for name, n in sizes.items():
            group = file.create_group(f"examples/{name}")
            group["pixels"] = RNG.random((n, 4, 4), dtype=np.float32)
            group["label"] = np.arange(n, dtype=np.int32)
        if change is not None:
            change(file)
    return path


def population(path: Path, **options: Any) -> Hdf5Population:
    return Hdf5Population(Hdf5Data(dataset="hdf5", path=path.name, **options), path.parent)


def test_each_group_is_a_client(tmp_path: Path) -> None:
    people = population(write(tmp_path / "train.h5"))
    assert (people.n_clients, people.n_classes, people.sample_shape) == (3, 5, (1, 4, 4))
    assert [people.client_name(i) for i in range(3)] == ["f_01", "f_02", "f_03"]
    assert people.client_named("f_03") == 2
    assert people.n_samples(np.array([2, 0, 1])).tolist() == [1, 3, 5]
    with h5py.File(tmp_path / "train.h5") as file:
        for i, name in enumerate(SIZES):
            shard = people.shard(i)
            np.testing.assert_array_equal(shard.x[:, 0], file[f"examples/{name}/pixels"][()])
            np.testing.assert_array_equal(shard.y, file[f"examples/{name}/label"][()])
            assert shard.x.dtype == np.float32 and shard.y.dtype == np.int64
    assert tuple(people.test_clients()) == () and people.central_test() is None
    with pytest.raises(IndexError):
        people.test_shard(0)


def test_clients_of_both_files_have_a_test_set(tmp_path: Path) -> None:
    write(tmp_path / "test.h5", {"f_02": 2, "f_03": 4, "stranger": 1})
    people = population(write(tmp_path / "train.h5"), test_path="test.h5")
    assert tuple(people.test_clients()) == (1, 2) and people.n_clients == 3
    assert people.test_shard(1).y.tolist() == [0, 1] and people.test_shard(2).y.size == 4
    with pytest.raises(IndexError, match="client 0 has no test set"):
        people.test_shard(0)
    assert people.data_sha256() != population(tmp_path / "train.h5").data_sha256()


def test_byte_images_with_colours(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)

    def add(file: Any) -> None:
        file["examples/a/image"], file["examples/a/fine"] = image, np.array([[7], [9]])

    people = population(write(tmp_path / "c.h5", {}, add), x="image", y="fine", classes=20)
    assert people.sample_shape == (3, 8, 8) and people.n_classes == 20
    np.testing.assert_array_equal(people.shard(0).x, np.moveaxis(image, 3, 1).astype(np.float32) / np.float32(255))
    assert people.shard(0).y.tolist() == [7, 9]


def replace(key: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("examples", None, "no group 'examples'"),
        ("examples/f_02/pixels", None, "examples/f_02: no dataset 'pixels'"),
        ("examples/f_02", np.zeros(3), "examples/f_02: not a group"),
        ("examples/f_02/label", np.arange(4), r"pixels has 5 samples, label has 4"),
        ("examples/f_02/label", np.array([0, 1, 2, 3, -1]), "f_02/label: label of sample 4 is -1"),
        ("examples/f_02/label", np.array([0, 1, 2, 3, 0.5]), "label of sample 4 is 0.5"),
        ("examples/f_02/label", np.array([b"a"] * 5), "f_02/label: type is"),
        ("examples/f_02/label", 3, "f_02/label: a single value"),
        ("examples/f_02/pixels", np.zeros((5, 3, 4)), r"f_02/pixels: a sample has shape \(3, 4\)"),
        ("examples/f_01/pixels", np.zeros((0, 4, 4)), "pixels has 0 samples"),
    ],
)
def test_what_is_refused_at_the_start(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        population(write(tmp_path / "train.h5", change=replace(key, value)))
    assert "\n" not in str(caught.value) and "train.h5" in str(caught.value)


def test_values_are_checked_when_they_are_read(tmp_path: Path) -> None:
    pixels = np.zeros((5, 4, 4), np.float32)
    pixels[2, 1, 0] = np.inf
    people = population(write(tmp_path / "train.h5", change=replace("examples/f_02/pixels", pixels)))
    assert people.shard(0).y.size == 3
    with pytest.raises(DataError, match=r"f_02/pixels: value at \(2, 1, 0\) is inf"):
        people.shard(1)
    with pytest.raises(DataError, match="f_01/label: label of sample 2 is 2, allowed: whole numbers 0 to 1"):
        population(tmp_path / "train.h5", classes=2).shard(0)


def test_declared_but_absent_data_is_refused(tmp_path: Path) -> None:
    def declare(file: Any) -> None:
        group = file.create_group("examples/a")
        group.create_dataset("pixels", shape=(2**40, 4, 4), chunks=(64, 4, 4), dtype="f4")
        group.create_dataset("label", shape=(2**40,), chunks=(64,), dtype="i4")

    with pytest.raises(DataError, match=r"declares .* bytes, more than the file can hold"):
        population(write(tmp_path / "bomb.h5", {}, declare))


def test_files_without_clients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clients under 'examples'"):
        population(write(tmp_path / "a.h5", {}, lambda file: file.create_group("examples")))
    (tmp_path / "b.h5").write_bytes(b"no such thing")
    with pytest.raises(DataError, match="not a readable HDF5 file") as caught:
        population(tmp_path / "b.h5")
    assert "\n" not in str(caught.value)
    write(tmp_path / "test.h5", {"stranger": 1})
    with pytest.raises(DataError, match=r"data\.test_path: .* has no client that"):
        population(write(tmp_path / "train.h5"), test_path="test.h5")


PIXELS = "examples/f_02/pixels"


def external_link(file: Any) -> None:
    del file["examples/f_02"]
    file["examples/f_02"] = h5py.ExternalLink("/etc/hostname", "/x")


def soft_link(file: Any) -> None:
    del file[PIXELS]
    file[PIXELS] = h5py.SoftLink("/examples/f_01/pixels")


def external_storage(file: Any) -> None:
    del file[PIXELS]
    options: dict[str, Any] = {"shape": (5, 4, 4), "dtype": "u1", "external": [("/etc/passwd", 0, 80)]}
    file.create_dataset(PIXELS, **options)


def virtual_storage(file: Any) -> None:
    del file[PIXELS]
    layout = h5py.VirtualLayout(shape=(5, 4, 4), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(5, 4, 4))
    file.create_virtual_dataset(PIXELS, layout)


def huge_chunks(file: Any) -> None:
    del file[PIXELS]
    file.create_dataset(PIXELS, shape=(5, 4, 4), maxshape=(None, 4, 4), chunks=(2**25, 4, 4), dtype="u1")


def foreign_filter(file: Any) -> None:
    del file[PIXELS]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((5, 4, 4))
    plist.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, (1,))  # bitshuffle, of a plug-in
    space = h5py.h5s.create_simple((5, 4, 4))
    h5py.h5d.create(file["examples/f_02"].id, b"pixels", h5py.h5t.NATIVE_FLOAT, space, plist)


def never_stored(file: Any) -> None:
    del file[PIXELS]
    file.create_dataset(PIXELS, shape=(5, 4, 4), dtype="f4", chunks=(5, 4, 4))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (external_link, "f_02 is a link to elsewhere"),
        (soft_link, "pixels is a link to elsewhere"),
        (external_storage, "f_02/pixels: stored in another file"),
        (virtual_storage, "f_02/pixels: stored in another file"),
        (huge_chunks, "f_02/pixels: chunks of 536870912 bytes, allowed: 268435456"),
        (foreign_filter, "f_02/pixels: filter 32008, allowed: those of HDF5 itself"),
        (never_stored, "f_02/pixels: declares 320 bytes, more than the file can hold"),
    ],
)
def test_nothing_is_read_that_is_not_in_the_file(tmp_path: Path, harm: Callable[[Any], None], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        population(write(tmp_path / "train.h5", change=harm))
    assert "\n" not in str(caught.value)
