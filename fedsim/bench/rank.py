"""One rank of a measured run: the command line as `python -m fedsim` has it, then a note of its peak memory."""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
from pathlib import Path

PEAKS = "FEDSIM_BENCH_PEAKS"
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def note_peak(folder: Path) -> None:
    """Writes this rank's number and the peak of its resident memory, in bytes, to a file of its own in the folder."""
    mpi = sys.modules.get("mpi4py.MPI")
    rank = 0 if mpi is None or mpi.Is_finalized() else mpi.COMM_WORLD.rank
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    (folder / f"{os.getpid()}.json").write_text(json.dumps({"rank": rank, "peak_bytes": peak_bytes}), encoding="utf-8")


def main() -> None:
    """Does what the command line says, then notes the peak."""
    try:
        runpy.run_module("fedsim", run_name="__main__", alter_sys=True)
    finally:
        note_peak(Path(os.environ[PEAKS]))


if __name__ == "__main__":
    main()
