"""One rank of a measured run: the command line as `python -m fedsim` has it, then a note of its peak memory."""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEAKS = "FEDSIM_BENCH_PEAKS"
SPLIT = "FEDSIM_BENCH_SPLIT"  # set: rank zero's note says what it spent on aggregation and on the record
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
# All by which the engine applies updates: one by one, the last of a version, many together, and as workers' sum.
_APPLYING = ("accumulate", "complete", "consume", "count", "put_sum", "commit", "publish")


@dataclass
class Stopwatch:
    """Seconds spent inside functions, by what they are for; a watched function inside another counts for the outer."""

    spent_s: dict[str, float] = field(default_factory=dict)
    is_running: bool = False

    def watch(self, owner: Any, names: Sequence[str], purpose: str) -> None:
        """From now on the functions `names` of a class, or the methods of one object, count for `purpose`."""
        for name in names:
            setattr(owner, name, self._watched(getattr(owner, name), purpose))

    def _watched(self, function: Callable[..., Any], purpose: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.is_running:
                return function(*args, **kwargs)
            self.is_running, start_s = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.is_running = False
                self.spent_s[purpose] = self.spent_s.get(purpose, 0.0) + time.perf_counter() - start_s

        return timed


def watch_server(watch: Stopwatch) -> None:
    """Lets a stopwatch run while rank zero aggregates and while it writes its record."""
    from fedsim import aggregation
    from fedsim.record.writer import RecordWriter

    watch.watch(RecordWriter, ("append", "extend_columns", "tick", "flush"), "record")
    build = aggregation.build

    def built(*args: Any, **kwargs: Any) -> Any:
        rule = build(*args, **kwargs)
        watch.watch(rule, _APPLYING, "aggregate")  # not its class: rules ask of it which methods are their own
        return rule

    aggregation.build = built


def note_peak(folder: Path, spent_s: Mapping[str, float]) -> None:
    """Writes this rank's number, the peak of its resident memory in bytes, and what a stopwatch says, to a file."""
    mpi = sys.modules.get("mpi4py.MPI")
    rank = 0 if mpi is None or mpi.Is_finalized() else mpi.COMM_WORLD.rank
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    note = {"rank": rank, "peak_bytes": peak_bytes, **{f"{name}_s": seconds for name, seconds in spent_s.items()}}
    (folder / f"{platform.node()}-{os.getpid()}.json").write_text(json.dumps(note), encoding="utf-8")


def main() -> None:
    """Does what the command line says, then notes the peak."""
    watch = Stopwatch()
    if os.environ.get(SPLIT):
        watch_server(watch)
    try:
        runpy.run_module("fedsim", run_name="__main__", alter_sys=True)
    finally:
        note_peak(Path(os.environ[PEAKS]), watch.spent_s)


if __name__ == "__main__":
    main()
