"""A run's folder: made once. One in which the run got no further than its configuration is begun again."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from fedsim import configfile
from fedsim.config import RunConfig
from fedsim.errors import RecordError

CONFIG_NAME = "config.yaml"
_LEFT_OVER = re.compile(r"(checkpoint-|record).*\.part")


def make(folder: Path, config: RunConfig) -> None:
    """Makes the folder of a run, with its configuration in it, or takes one in which this run never had a record.

    Raises:
        RecordError: it is there already, or cannot be made.
    """
    try:
        if is_unbegun(folder, config):
            clear(folder)
        else:
            folder.mkdir(parents=True)
        _write(folder, configfile.resolved_text(config))
    except FileExistsError:
        raise RecordError(
            f"{folder}: exists already; give --out another folder, or another name with --set name=..., or go on with "
            "what is there: fedsim resume"
        ) from None
    except OSError as error:
        raise RecordError(f"{folder}: cannot be made: {error.strerror}") from None


def is_unbegun(folder: Path, config: RunConfig) -> bool:
    """Whether a run of this configuration has left its `config.yaml` there and no record: who is killed before that,
    or finds no room for it, has nothing to go on with. A file that was cut short counts, another one does not.
    """
    try:
        if any(folder.glob("record*.h5")):
            return False
        written = (folder / CONFIG_NAME).read_bytes()
    except OSError:
        return False
    return configfile.resolved_text(config).encode().startswith(written)


def clear(folder: Path) -> None:
    """Removes files that were being written when the run was killed."""
    for entry in folder.iterdir():
        if _LEFT_OVER.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                entry.unlink()


def _write(folder: Path, text: str) -> None:
    try:
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):  # an empty folder would be taken for somebody else's
            folder.rmdir()
        raise
