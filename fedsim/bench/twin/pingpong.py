"""Messages between two ranks, timed: `mpirun -n 2 python -m fedsim.bench.twin.pingpong FILE` writes what they cost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

SIZES_BYTES = (8, 1024, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
_REPEATS = 40
_MOST_BYTES = 64 * 2**20  # for one size, so that large messages are not repeated as often


def measure(comm: MPI.Intracomm) -> list[tuple[int, float]]:
    """(bytes, seconds one way) for each size, the median of the round trips' halves; both ranks must call it."""
    found = []
    for size in SIZES_BYTES:
        buffer = np.zeros(size, np.uint8)
        trips = []
        for _ in range(max(5, min(_REPEATS, _MOST_BYTES // size))):
            comm.Barrier()
            start_s = time.perf_counter()
            if comm.rank == 0:
                comm.Send(buffer, dest=1)
                comm.Recv(buffer, source=1)
            else:
                comm.Recv(buffer, source=0)
                comm.Send(buffer, dest=0)
            trips.append((time.perf_counter() - start_s) / 2.0)
        found.append((size, float(np.median(trips))))
    return found


def latency_and_byte_s(found: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds a message and a byte: the line through the times that is least wrong relative to them.

    >>> latency, byte = latency_and_byte_s([(n, 2e-6 + n * 1e-10) for n in SIZES_BYTES])
    >>> round(latency * 1e6, 3), round(byte * 1e10, 3)
    (2.0, 1.0)
    """
    sizes, times = np.array(found, np.float64).T
    rows = np.stack([np.ones_like(sizes), sizes], axis=1) / times[:, None]
    latency_s, byte_s = np.linalg.lstsq(rows, np.ones_like(times), rcond=None)[0]
    return max(float(latency_s), 0.0), max(float(byte_s), 0.0)


def main() -> None:
    """Measures and, on rank zero, writes the list to the file named on the command line."""
    comm = MPI.COMM_WORLD
    found = measure(comm)
    if comm.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
