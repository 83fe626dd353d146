"""Going on with a run that was stopped or killed: what it was, whether this is still the same run on the same kind of
machine, and the checkpoint from which it goes on.

Rank zero reads the run's folder and tells the others; everything is looked at before the new attempt's record is begun.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import configfile, snapshot, yamltree
from fedsim.config import RunConfig
from fedsim.engine import checkpoints
from fedsim.engine import folder as run_folder
from fedsim.engine.agreement import Statement
from fedsim.engine.plan import Plan, plan
from fedsim.engine.tail import Recorded, recorded_past
from fedsim.errors import DataError, LaunchError, RecordError
from fedsim.record import checkpoint, guard
from fedsim.record.checkpoint import Checkpoint
from fedsim.record.pieces import attempt_name, attempt_numbers
from fedsim.record.provenance import Attribute, text_sha256
from fedsim.record.reader import Run
from fedsim.record.schema import TABLES
from fedsim.record.settled import opened
from fedsim.types import Float32

_QUIET_S = 30.0  # a live run writes every few seconds; asked where the file system has no locks
_UNREADABLE = (KeyError, ValueError, TypeError, IndexError, OverflowError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Found:
    """A run as its last attempt left it; `attempt` is the number that the next one gets."""

    folder: Path
    status: str
    config: RunConfig
    config_text: str
    attributes: Mapping[str, Attribute]
    attempt: int

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.status == "done"

    @property
    def parent(self) -> str:
        """The file of the attempt before."""
        return attempt_name(self.attempt - 1)


@dataclass(frozen=True)
class Resumption:
    """Where the new attempt begins: the joined tables' rows, and the checkpoint; None: at the beginning.

    `notes` are lines about checkpoints that could not be used; `recorded` is what comes first on the wall clock.
    """

    found: Found
    start_rows: Mapping[str, int]
    checkpoint: Checkpoint | None
    notes: Sequence[str]
    recorded: Recorded | None = None

    @property
    def tail_rows(self) -> Mapping[str, int]:
        """The rows up to which it makes again what was recorded; none on the virtual clock."""
        if self.recorded is None:
            return {}
        history = self.recorded.history
        return {"tasks": history.task.size, "versions": history.version.size}


def find(folder: Path) -> Found:
    """The run in a folder.

    Raises:
        RecordError: there is none that can be read, it is still alive, or its configuration was changed.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: not the folder of a run")
    numbers = attempt_numbers(folder)
    if not numbers:
        raise RecordError(
            f"{folder}: no record to go on from: the run ended before it was begun; run it again, into this folder"
        )
    _check_dead(folder / attempt_name(numbers[-1]))
    run = Run(folder, joined=False)
    where = f"{folder}: configuration in the record"
    config = configfile.from_mapping(yamltree.parse(run.config_text.encode(), where).value, where)
    _check_unchanged(folder / run_folder.CONFIG_NAME, config)
    return Found(folder, run.status, config, run.config_text, run.attributes, numbers[-1] + 1)


def plan_again(found: Found, allow_code: bool = False) -> Plan:
    """The plan of a run that is found, with the training path and group size that it had."""
    made = plan(found.config, Path(str(found.attributes.get("config_folder", "."))), allow_code)
    check_code(found.folder, found.attributes, made.own.sha256)
    path, size = found.attributes.get("training_path"), found.attributes.get("group_size")
    if (made.training_path, made.group_size) == (path, size):
        return made
    training = {**found.config.training.model_dump(), "path": path, "group_size": size}
    fixed = configfile.from_mapping({**found.config.model_dump(), "training": training}, f"{found.folder}: as recorded")
    return plan(fixed, made.base_dir, allow_code)


def check_code(folder: Path, attributes: Mapping[str, Attribute], code: str) -> None:
    """Refuses files of the user's own that are not what they were when the run began. Raises RecordError."""
    recorded = str(attributes.get("code_sha256", ""))
    if recorded == code:
        return
    was: dict[str, Any] = guard.parsed(recorded or "{}", "code_sha256", dict)
    now: dict[str, Any] = guard.parsed(code or "{}", "code_sha256", dict)
    file = next((file for file in sorted({*was, *now}) if was.get(file) != now.get(file)), "")
    raise RecordError(
        f"{folder}: {file} has changed since the run began: sha256 {now.get(file)!s:.16}, recorded "
        f"{was.get(file)!s:.16}; a run goes on, and is replayed, with its own code only"
    )


def check_same(found: Found, made: Plan, statements: Sequence[Statement], allow_mixed: bool) -> None:
    """Refuses to go on with other data, and on ranks that would compute other bits.

    Raises:
        DataError, LaunchError: the same on every rank.
    """
    data = found.attributes.get("data_sha256", "")
    if data != statements[0].data_sha256:
        raise DataError(
            f"{found.folder}: the data have changed: sha256 {statements[0].data_sha256[:16]}, recorded {str(data)[:16]}"
        )
    if allow_mixed or made.config.allow_mixed:
        return
    recorded: dict[str, Any] = guard.parsed(str(found.attributes.get("environment", "{}")), "environment", dict)
    worker = statements[1:] or statements
    here = environment_of(worker[0].environment or {})
    for name in sorted({*recorded, *here} if recorded else ()):
        if recorded.get(name) != here.get(name):
            raise LaunchError(
                f"{found.folder}: would go on with other bits: {name} is {here.get(name)} here, "
                f"{recorded.get(name)!s:.80} in the record (--allow-mixed goes on all the same)"
            )


def environment_of(signature: Mapping[str, str]) -> dict[str, str]:
    """What decides a run's bits, besides configuration and data: the workers' signature, and fedsim itself."""
    import fedsim

    return {**signature, "fedsim": fedsim.__version__}


def take_up(found: Found, made: Plan) -> Resumption:
    """Where a run goes on; clears away what the attempts before left unfinished.

    Raises:
        RecordError: somebody else goes on with it since it was found, which is minutes ago where a plan is large.
    """
    folder = found.folder
    _check_ours(found)
    run_folder.clear(folder)
    run = Run(folder, joined=False)
    there = {table.name: run.n_rows(table.name) for table in TABLES if table.superseded}
    configs = {configfile.sha256(found.config), text_sha256(found.config_text)}  # keys may be newer than the record
    fewest = {table.name: 0 if table.optional else -1 for table in TABLES}  # where a checkpoint does not name it

    def accept(candidate: Checkpoint) -> bool:
        rows = checkpoints.rows_of(candidate.snapshot)
        own = checkpoints.about(candidate.snapshot).get("config_sha256") in configs
        return own and all(rows.get(table, fewest[table]) in range(n + 1) for table, n in there.items())

    newest, notes = checkpoint.newest(folder, accept)
    _check_ours(found)  # checkpoints were read meanwhile
    _set_aside(folder, newest)
    rows = dict.fromkeys(there, 0) if newest is None else checkpoints.rows_of(newest.snapshot)
    recorded = None
    if found.config.clock == "wall":
        recorded = recorded_past(run, rows["tasks"], rows["versions"])
    return Resumption(found, {table: rows[table] for table in there if table in rows}, newest, notes, recorded)


def versions_of(kept: Checkpoint, n_parameters: int) -> Iterator[tuple[int, Float32]]:
    """The versions of a checkpoint by their number."""
    numbers = snapshot.array(kept.snapshot, "versions/numbers", "i8", 1).tolist()
    return zip(numbers, kept.versions(n_parameters), strict=True)


@contextlib.contextmanager
def understood(kept: Checkpoint) -> Iterator[None]:
    """Turns what goes wrong with a checkpoint's content, which anybody can have written, into one line."""
    try:
        yield
    except RecordError as error:
        raise RecordError(f"{kept.path}: {error}") from error
    except _UNREADABLE as error:
        raise RecordError(f"{kept.path}: no checkpoint of this run: {type(error).__name__} {error!s:.100}") from error


# ------------------------------------------------------------------------------------------------- the folder


def signs_of_life(record: Path) -> str:
    """Why the writer of a record may still be alive; empty once it is seen to be dead, and its lock with it.

    Raises:
        RecordError: the record cannot be opened.
    """
    import fcntl

    descriptor = _lockable(record)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return f"{record.parent}: the run is still going on: its record is being written"
        silent_s = time.time() - os.fstat(descriptor).st_mtime
        if silent_s < _QUIET_S and Run(record).status == "running":
            return (
                f"{record.parent}: the run may still be going on: its record was written {silent_s:.0f} s ago, and "
                f"this file system has no locks; try again in {_QUIET_S:.0f} s"
            )
    finally:
        os.close(descriptor)
    return ""


def _lockable(record: Path) -> int:
    """A descriptor to ask for a record's lock with: NFS gives an exclusive one only to who may write (EBADF else)."""
    with contextlib.suppress(OSError):
        return opened(record, os.O_RDWR)
    try:
        return opened(record)
    except OSError as error:
        raise RecordError(f"{record}: {error.strerror or error}") from error


def _check_dead(record: Path) -> None:
    """Refuses a run whose record is still being written: its writer holds a lock on it."""
    reason = signs_of_life(record)
    if reason:
        raise RecordError(reason)


def _check_ours(found: Found) -> None:
    """Refuses a run in whose folder somebody is at work since it was found, before anything is removed there."""
    if max(attempt_numbers(found.folder), default=-1) != found.attempt - 1:
        raise RecordError(f"{found.folder}: another attempt was begun meanwhile: somebody else goes on with this run")
    _check_dead(found.folder / found.parent)


def _check_unchanged(path: Path, recorded: RunConfig) -> None:
    """Refuses a configuration file in the folder that says something else than the record."""
    if not path.exists():
        return
    now = configfile.load(path)
    if now == recorded:
        return
    name, here, there = next(_differences(now.model_dump(), recorded.model_dump(), ""))
    raise RecordError(
        f"{path}: changed since the run began: {name} is {yamltree.shown(here)}, in the record "
        f"{yamltree.shown(there)}; a run goes on with its own configuration only"
    )


def _differences(one: Any, other: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name, one, other


def _set_aside(folder: Path, newest: Checkpoint | None) -> None:
    """Renames the checkpoints that are newer than the one that is used, so that none is taken for whole later."""
    for number in checkpoint.numbers(folder):
        path = folder / checkpoint.name_of(number)
        if newest is None or path.name > newest.path.name:
            with contextlib.suppress(OSError):
                path.rename(path.with_name(path.name + ".unusable"))


def environment_text(statements: Sequence[Statement]) -> str:
    """What the record says of the workers' environment."""
    workers = statements[1:] or statements
    return json.dumps(environment_of(workers[0].environment or {}), sort_keys=True)
