"""IDX files: what is read, and what is refused."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import IdxData, IidPartition
from fedsim.errors import DataError
from fedsim.population.datasets.idx import idx_population, read_header, read_idx
from fedsim.population.population import ArrayPopulation

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 5, 4), dtype=np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 3
TEST_IMAGES, TEST_LABELS = IMAGES[:9] ^ 255, LABELS[:9]


def encoded(values: np.ndarray, dtype: str = "u1") -> bytes:
    header = bytes([0, 0, CODES[dtype], values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(dtype).tobytes()


def write(folder: Path, compressed: bool = False, **replaced: bytes) -> IdxData:
    content = {
        "images": encoded(IMAGES),
        "labels": encoded(LABELS),
        "test_images": encoded(TEST_IMAGES),
        "test_labels": encoded(TEST_LABELS),
        **replaced,
    }
    for key, value in content.items():
        (folder / key).write_bytes(gzip.compress(value) if compressed and key not in replaced else value)
    return IdxData(dataset="idx", **{key: key for key in ("images", "labels", "test_images", "test_labels")})


def population(folder: Path, config: IdxData, clients: int = 4) -> ArrayPopulation:
    return idx_population(config, IidPartition(kind="iid", clients=clients), 0, folder)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_images_reach_the_clients(tmp_path: Path, compressed: bool) -> None:
    people = population(tmp_path, write(tmp_path, compressed))
    assert (people.n_clients, people.n_classes, people.sample_shape) == (4, 3, (1, 5, 4))
    shards = [people.shard(i) for i in range(4)]
    assert sum(s.y.size for s in shards) == 30
    assert [s.y.size for s in shards] == people.n_samples(np.arange(4)).tolist()
    flat = {image.tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    for shard in shards:
        assert shard.x.dtype == np.float32 and shard.x.flags.c_contiguous and shard.x.flags.writeable
        assert shard.x.max() <= 1.0
        for x, y in zip(shard.x, shard.y, strict=True):
            assert flat[np.rint(x * 255).astype(np.uint8).tobytes()] == y
    test = people.central_test()
    assert test is not None
    np.testing.assert_array_equal(test.x, TEST_IMAGES[:, None].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(test.y, TEST_LABELS)
    assert tuple(people.test_clients()) == ()


def test_plain_and_compressed_files_give_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = population(tmp_path / "a", write(tmp_path / "a"))
    b = population(tmp_path / "b", write(tmp_path / "b", compressed=True))
    assert all(a.shard(i).x.tobytes() == b.shard(i).x.tobytes() for i in range(4))
    assert a.data_sha256() != b.data_sha256() and len(a.data_sha256()) == 64


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_is_read_back(tmp_path: Path, dtype: str, compressed: bool) -> None:
    values = np.array([[0, 1, 2], [3, 100, 127]], dtype=dtype)
    content = encoded(values, dtype)
    (tmp_path / "f").write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(tmp_path / "f")
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(dtype)


def test_float_images_are_not_scaled(tmp_path: Path) -> None:
    images = RNG.normal(size=(30, 6)).astype(np.float32)
    config = write(tmp_path, images=encoded(images, ">f4"), test_images=encoded(images[:9], ">f4"))
    people = population(tmp_path, config, clients=1)
    assert people.sample_shape == (6,)
    np.testing.assert_array_equal(people.shard(0).x, images)


HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"images": b""}, "images: not an IDX file: it begins with nothing"),
        ({"images": b"\x89PNG" + bytes(40)}, "images: not an IDX file: it begins with 89 50 4e 47"),
        ({"images": bytes([0, 0, 8, 9]) + bytes(40)}, "9 dimensions, allowed: 1 to 4"),
        ({"images": bytes([0, 0, 8, 3, 0, 0])}, "header ends after 6 bytes"),
        ({"images": encoded(IMAGES)[:-1]}, r"declares 616 bytes, shape \(30, 5, 4\); the file holds 615"),
        ({"images": encoded(IMAGES) + b"x"}, "the file holds 617"),
        ({"images": HUGE}, "header declares .* bytes"),
        ({"images": gzip.compress(HUGE)}, "more than .* bytes of gzip can hold"),
        ({"images": gzip.compress(encoded(IMAGES)[:-1])}, "declares 616 bytes.*the file holds 615"),
        ({"images": gzip.compress(encoded(IMAGES) + b"x")}, "the file holds more"),
        ({"images": gzip.compress(encoded(IMAGES))[:-9]}, "damaged gzip file"),
        ({"images": b"\x1f\x8b" + b"\xff" * 40}, "images: cannot be read"),
        ({"images": encoded(IMAGES[:29])}, "has 29 samples, .*labels has 30"),
        ({"images": encoded(LABELS)}, r"images: shape is \(30,\)"),
        ({"labels": encoded(LABELS[:0])}, "labels: no samples"),
        ({"labels": encoded(IMAGES)}, r"labels: shape is \(30, 5, 4\), allowed: one label a sample"),
        ({"labels": encoded(np.full(30, -1), "i1")}, "label of sample 0 is -1, allowed: whole numbers 0 to"),
        ({"labels": encoded(np.r_[np.zeros(29), 0.5], ">f4")}, "label of sample 29 is 0.5"),
        ({"labels": encoded(np.r_[np.zeros(29), np.nan], ">f8")}, "label of sample 29 is nan"),
        ({"test_labels": encoded(TEST_LABELS + 1)}, "test_labels: label of sample 2 is 3, .* 0 to 2"),
        ({"test_images": encoded(TEST_IMAGES[:, :3])}, r"test_images: a sample has shape \(1, 3, 4\)"),
    ],
)
def test_what_is_refused(tmp_path: Path, replaced: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        population(tmp_path, write(tmp_path, **replaced))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path, bad: float) -> None:
    images = np.zeros((30, 2, 3))
    images[7, 1, 2] = bad
    with pytest.raises(DataError, match=r"images: value at \(7, 1, 2\) is .*allowed: finite"):
        population(tmp_path, write(tmp_path, images=encoded(images, ">f8")))


def test_missing_files_are_named_with_their_key(tmp_path: Path) -> None:
    config = write(tmp_path)
    (tmp_path / "test_labels").unlink()
    with pytest.raises(DataError, match=r"data\.test_labels: file .*test_labels does not exist"):
        population(tmp_path, config)
    (tmp_path / "test_labels").mkdir()
    with pytest.raises(DataError, match=r"data\.test_labels: .* is not a file"):
        population(tmp_path, config)


def test_a_configured_number_of_classes_bounds_the_labels(tmp_path: Path) -> None:
    config = write(tmp_path)
    wider: dict[str, Any] = {**config.model_dump(), "classes": 10}
    assert population(tmp_path, IdxData(**wider)).n_classes == 10
    with pytest.raises(DataError, match="label of sample 2 is 2, allowed: whole numbers 0 to 1"):
        population(tmp_path, IdxData(**{**wider, "classes": 2}))


def test_byte_images_are_read_only_when_a_shard_is_cut(tmp_path: Path) -> None:
    """The server needs no pixel, so building a population must not read the images."""
    config = write(tmp_path, compressed=True)
    people = population(tmp_path, config)
    (tmp_path / "images").unlink()
    assert people.n_samples(np.arange(4)).sum() == 30
    with pytest.raises(DataError, match=r"images: cannot be read: .*No such file"):
        people.shard(0)


def test_a_gzip_of_several_parts_is_read(tmp_path: Path) -> None:
    content = encoded(IMAGES)
    config = write(tmp_path, images=gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert read_header(tmp_path / "images").shape == (30, 5, 4)
    assert population(tmp_path, config, clients=1).shard(0).x.shape == (30, 1, 5, 4)
