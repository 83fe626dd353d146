"""What the documentation's tests read: the Markdown files, their code blocks, and folders in which examples can run."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


class Block(NamedTuple):
    """A fenced code block: the file's name, the line of its fence, its language and its text."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    language, start, lines = None, 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"```(\w*)", line)
        if fence and language is None:
            language, start, lines = fence[1], number, []
        elif fence and language is not None:
            found.append(Block(page.relative_to(ROOT).as_posix(), start, language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    assert language is None, f"{page}: the block of line {start} is not closed"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`page` is each Markdown file; `yaml_block` and `sh_block` each block of that language."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
    for language in ("yaml", "sh"):
        if f"{language}_block" in metafunc.fixturenames:
            chosen = [block for page in PAGES for block in blocks_of(page) if block.language == language]
            assert chosen
            metafunc.parametrize(f"{language}_block", chosen, ids=[f"{b.page}:{b.line}" for b in chosen])


@pytest.fixture
def blocks() -> Callable[[Path], list[Block]]:
    """`blocks(page)`: its fenced code blocks."""
    return blocks_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that has the project's configurations and nothing else."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def example_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small file for every file name that the documentation's configurations mention."""
    path = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    sites = "".join(f"{site},{40 + i},{i % 3},{i % 2}\n" for site in ("north", "south", "west") for i in range(12))
    (path / "patients.csv").write_text("hospital,age,stage,outcome\n" + sites, encoding="utf-8")
    (path / "uplinks.csv").write_text("value\n125000\n500000\n", encoding="utf-8")
    windows = "".join(f"{client},{1000.0 * client},{40000.0 + client}\n" for client in range(4))
    (path / "windows.csv").write_text("client,start_s,end_s\n" + windows, encoding="utf-8")
    for part, n in (("train", 40), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 8, 8), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        (path / f"{part}-images-idx3-ubyte.gz").write_bytes(_idx(images))
        (path / f"{part}-labels-idx1-ubyte.gz").write_bytes(_idx(labels))
    _medmnist(path / "pathmnist.npz", rng)
    _federated(path / "fed_emnist_train.h5", rng)
    _federated(path / "fed_emnist_test.h5", rng)
    return path


def _idx(values: NDArray[np.uint8]) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(head + values.tobytes())


def _medmnist(path: Path, rng: np.random.Generator) -> None:
    arrays: dict[str, NDArray[np.uint8]] = {}
    for part, n in (("train", 30), ("val", 5), ("test", 10)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28, 3), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 9).astype(np.uint8)[:, None]
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stubs take the names for `allow_pickle`


def _federated(path: Path, rng: np.random.Generator) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name in ("f0000_14", "f0001_41"):
            group = file.create_group(f"examples/{name}")
            group["pixels"] = rng.random((6, 28, 28), np.float32)
            group["label"] = np.arange(6) % 10
