"""NPZ files in MedMNIST's form: what is read, and what is refused."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import DirichletPartition, NpzData
from fedsim.errors import DataError
from fedsim.population.datasets.npz import npz_population
from fedsim.population.population import ArrayPopulation

RNG = np.random.default_rng(0)
GOOD: dict[str, Any] = {
    "train_images": RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8),
    "train_labels": (np.arange(40, dtype=np.uint8) % 4)[:, None],
    "val_images": np.zeros((2, 6, 6), np.uint8),
    "test_images": RNG.integers(0, 256, (10, 6, 6), dtype=np.uint8),
    "test_labels": (np.arange(10, dtype=np.uint8) % 4)[:, None],
}


def population(path: Path, **options: Any) -> ArrayPopulation:
    config = NpzData(dataset="npz", path=path.name, **options)
    return npz_population(config, DirichletPartition(kind="dirichlet", clients=3, alpha=10.0), 0, path.parent)


def saved(folder: Path, compressed: bool = False, **replaced: Any) -> Path:
    path = folder / "med.npz"
    arrays = {k: v for k, v in {**GOOD, **replaced}.items() if v is not None}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_the_images_reach_the_clients(tmp_path: Path, compressed: bool) -> None:
    people = population(saved(tmp_path, compressed))
    assert (people.n_clients, people.n_classes, people.sample_shape) == (3, 4, (1, 6, 6))
    shards = [people.shard(i) for i in range(3)]
    pixels = np.concatenate([np.rint(s.x * 255).astype(np.uint8).reshape(-1, 36) for s in shards])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, GOOD["train_images"].reshape(-1, 36)))
    test = people.central_test()
    assert test is not None and test.x.shape == (10, 1, 6, 6)
    np.testing.assert_array_equal(test.y, GOOD["test_labels"][:, 0])


def test_colours_go_to_the_front(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    people = population(saved(tmp_path, train_images=colour, test_images=colour[:10]))
    assert people.sample_shape == (3, 6, 6)
    test = people.central_test()
    assert test is not None and test.x.flags.c_contiguous
    np.testing.assert_array_equal(test.x, np.moveaxis(colour[:10], 3, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"test_labels": None}, "no array 'test_labels'; did you mean"),
        ({"train_labels": np.zeros((40, 14), np.uint8)}, r"train_labels: shape is \(40, 14\), allowed: one"),
        ({"train_labels": np.zeros((0, 1), np.uint8)}, "train_labels: no samples"),
        ({"train_labels": np.array(["a"] * 40)}, "train_labels: type is <U1, allowed: numbers"),
        ({"train_labels": np.array([{}] * 40, dtype=object)}, "train_labels"),
        ({"train_labels": np.full(40, 10**9)}, "label of sample 0 is 1000000000, allowed: whole numbers 0 to 99999"),
        ({"train_images": GOOD["train_images"][:39]}, "train_images has 39 samples, train_labels has 40"),
        ({"train_images": np.zeros(40, np.uint8)}, r"train_images: shape is \(40,\)"),
        ({"train_images": np.full((40, 6, 6), np.nan)}, r"train_images: value at \(0, 0, 0\) is nan"),
        ({"test_images": GOOD["test_images"][:, :5]}, r"a sample has shape \(1, 5, 6\), one of train_images"),
        ({"test_labels": GOOD["test_labels"] + 1}, "test_labels: label of sample 3 is 4"),
    ],
)
def test_what_is_refused(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        population(saved(tmp_path, **replaced))
    assert "\n" not in str(caught.value) and "med.npz" in str(caught.value)


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "med.npz"
    with pytest.raises(DataError, match=r"data\.path: file .* does not exist"):
        population(path)
    for content in (b"", b"not a zip", saved(tmp_path).read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable NPZ file"):
            population(path)


def test_a_header_beyond_the_archive_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 6, 6)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(1000))
    with pytest.raises(DataError, match=r"header declares .* bytes, shape .*; the archive holds"):
        population(path)


def test_a_directory_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, compressed=True)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the central directory's first entry; its uncompressed size is at 24
    struct.pack_into("<I", content, entry + 24, 2**31)
    path.write_bytes(content)
    with pytest.raises(DataError, match="states 2147483648 bytes, more than a file of"):
        population(path)


def test_other_compression_methods_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "med.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("train_images.npy", bytes(10**6))
    with pytest.raises(DataError, match="compression method 12"):
        population(path)
