"""Checkpoints of a run while it goes on: when one is due, and the thread that writes it beside the run.

Between two events rank zero copies what will change, which takes as long as a version or two take to be merged; the
versions, which never change, are only kept alive until they are written. One checkpoint is written at a time. What a
kill loses is at most what was done since the last whole one was begun: `checkpoint.every_s`, and twice the time that
writing takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim import snapshot, states
from fedsim.affinity import allowed, keep_to
from fedsim.config import CheckpointConfig
from fedsim.engine.versions import VersionStore
from fedsim.errors import RecordError
from fedsim.record import checkpoint
from fedsim.snapshot import Snapshot

if TYPE_CHECKING:
    from fedsim.engine.roles import Pulse
    from fedsim.record.writer import RecordWriter

ABOUT = "about"
ROWS = "rows"


class Checkpoints:
    """Writes checkpoints into a run's folder. `about` says whose they are, `start_rows` where the attempt begins."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        about: Mapping[str, str],
        recorder: RecordWriter,
        start_rows: Mapping[str, int],
        versions: VersionStore,
        release: Callable[[int], None],
    ) -> None:
        self._folder = folder
        self._config = config
        self._about = dict(about)
        self._recorder = recorder
        self._start_rows = start_rows
        self._versions = versions
        self._release = release
        self._number = max(checkpoint.numbers(folder), default=0)
        self._last_s = 0.0
        self._last_version = 0
        self._writing: threading.Thread | None = None
        self._pinned: Sequence[int] = ()
        self._error: BaseException | None = None
        self._cores = allowed()  # rank zero may be taken to one of them: see `fedsim.comm.cores`
        self.n_written = 0
        self.paused_s = 0.0

    def begin_at(self, version: int) -> None:
        """The attempt goes on from this version: the next checkpoint is counted from here."""
        self._last_version = version

    def is_due(self, pulse: Pulse) -> bool:
        """Whether the state is to be kept now. Raises RecordError if the last checkpoint could not be written."""
        if self._writing is not None:
            if self._writing.is_alive():
                return False
            self.finish()
        every_s, every_versions = self._config.every_s, self._config.every_versions
        if every_s is not None and pulse.wall_s - self._last_s >= every_s:
            is_due = True
        else:
            is_due = every_versions is not None and pulse.version - self._last_version >= every_versions
        if is_due:
            self._last_s, self._last_version = pulse.wall_s, pulse.version
        return is_due

    def keep(self, saved: Snapshot, versions: Sequence[int]) -> None:
        """Begins to write a checkpoint of this state; the record's buffers must be on their way to the disk."""
        self.finish()
        self._number += 1
        for version in versions:
            self._versions.retain(version)
        self._pinned = versions
        whole = saved | snapshot.joined({ABOUT: states.of(self._about), ROWS: states.of(self._rows())})
        whole["versions/numbers"] = np.array(versions, np.int64)
        self._writing = threading.Thread(target=self._write, args=(self._number, whole), name="checkpoint", daemon=True)
        self._writing.start()

    def finish(self) -> None:
        """Returns when nothing is being written. Raises RecordError if the last checkpoint could not be."""
        if self._writing is None:
            return
        self._writing.join()
        self._writing = None
        for version in self._pinned:
            self._release(version)
        self._pinned = ()
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.n_written += 1

    def _rows(self) -> dict[str, int]:
        """Rows of the joined tables at this moment: those before the attempt, and its own."""
        return {table: self._start_rows.get(table, 0) + n for table, n in self._recorder.rows().items()}

    def _write(self, number: int, saved: Snapshot) -> None:
        """In the thread: first what the checkpoint speaks of, then the checkpoint."""
        keep_to(self._cores)
        vectors = checkpoint.Vectors(
            len(self._pinned), self._versions.n_parameters, lambda index: self._versions.get(self._pinned[index])
        )
        try:
            self._recorder.sync()
            checkpoint.write(self._folder, number, saved, vectors)
        except BaseException as error:  # told by `finish`, in the run's own thread
            self._error = error


def rows_of(saved: Snapshot) -> dict[str, int]:
    """The joined tables' rows at a checkpoint. Raises RecordError if it does not say."""
    part = snapshot.part(saved, ROWS)
    counts = {table: snapshot.integer(part, table) for table in part}
    if any(n < 0 for n in counts.values()):
        raise RecordError("checkpoint: a table of fewer than no rows")
    return counts


def about(saved: Snapshot) -> dict[str, str]:
    """Whose checkpoint it is."""
    part = snapshot.part(saved, ABOUT)
    names = {name.split("/")[0] for name in part}
    return {name: str(text) for name, text in states.restored(part, dict.fromkeys(names, "")).items()}
