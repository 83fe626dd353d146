"""Files in memory that ranks of a host map: their room is taken, their names go, and nobody else's are mapped."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from fedsim.comm import sharedfile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sharedfile, "FOLDER", str(tmp_path))
    return tmp_path


def test_what_one_process_writes_the_others_see(folder: Path) -> None:
    path = sharedfile.made(8192)
    one, other = (sharedfile.mapped(path, 8192) for _ in range(2))
    os.unlink(path)
    one[5000:5003] = b"abc"
    assert other[5000:5003] == b"abc"


def test_no_file_is_left_where_its_room_cannot_be_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        sharedfile.made(8192)
    assert not list(folder.iterdir())


def test_the_room_is_really_taken(folder: Path) -> None:
    status = os.stat(sharedfile.made(12288))
    assert status.st_size == 12288 and status.st_blocks * 512 >= status.st_size
    assert status.st_mode & 0o077 == 0


def test_another_file_of_that_name_is_not_mapped(folder: Path) -> None:
    (folder / "x").write_bytes(b"0" * mmap.PAGESIZE)
    with pytest.raises(OSError, match="not the file that was made"):
        sharedfile.mapped(str(folder / "x"), 2 * mmap.PAGESIZE)
    (folder / "link").symlink_to(folder / "x")
    with pytest.raises(OSError):
        sharedfile.mapped(str(folder / "link"), mmap.PAGESIZE)
