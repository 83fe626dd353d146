"""A small vector really travels in many pieces, there and back: the whole transport with a tiny piece size."""

from __future__ import annotations

import sys
from typing import Any

import pytest

PROGRAM = """
import sys, time
import numpy as np
from mpi4py import MPI
from fedsim.comm.mpi import Channels, MpiTransport, WorkerChannel
from fedsim.comm.transport import Command, Counters, Lengths, Trained
from fedsim.types import Task, TaskReport

N, PIECE = 1000, int(sys.argv[1])
sent = [0]
class Counted:
    def __init__(self, comm): self._comm = comm
    def __getattr__(self, name): return getattr(self._comm, name)
    def Isend(self, data, dest): sent[0] += 1; return self._comm.Isend(data, dest=dest)

class Core:
    counters = Counters()
    def __init__(self): self.known = {}
    def learn(self, version, vector_P): self.known[version] = vector_P
    def __getattr__(self, name): return lambda *a, **k: None  # forget, drop and the like: nothing to do here
    def train(self, tasks, send, progress):
        rows = np.stack([self.known[t.base_version] * np.float32(t.client + 1) for t in tasks])
        return Trained(0, [TaskReport(t.task, 1, 1, 1, 0.0, 0.0, 0.0, 0.0) for t in tasks], send, rows)

class Nobody:
    def __getattr__(self, name): return lambda *a: False  # no watchdog here

channels = Channels.open(MPI.COMM_WORLD, PIECE)
channels = channels._replace(versions=Counted(channels.versions), rows=Counted(channels.rows))
if MPI.COMM_WORLD.rank:
    WorkerChannel(channels, Core(), Lengths(N, N), time.monotonic, Nobody()).serve()
else:
    transport = MpiTransport(channels, Lengths(N, N), ())
    nan = float("nan")
    tasks = [Task(i, i, 7, 1, 1, 0, 0.1, *(nan,) * 6, False, True) for i in range(3)]
    base = np.random.default_rng(0).standard_normal(N, dtype=np.float32)
    transport.send(0, Command(tasks, [True] * 3, [7]), [base])
    messages = []
    while not messages:
        messages = list(transport.poll())
        time.sleep(1e-4)
    for i, row_P in enumerate(messages[0].rows):
        assert np.array_equal(row_P, base * np.float32(i + 1))
    transport.close()
print("rank", MPI.COMM_WORLD.rank, "sent", sent[0])
"""


@pytest.mark.parametrize(("piece", "n_versions", "n_rows"), [(7, 143, 429), (1000, 1, 3), (2**28, 1, 1)])
def test_vectors_travel_in_pieces(start_program: Any, piece: int, n_versions: int, n_rows: int) -> None:
    done = start_program(2, sys.executable, "-c", PROGRAM, str(piece))
    assert done.returncode == 0, done.stderr
    assert f"rank 0 sent {n_versions}" in done.stdout and f"rank 1 sent {n_rows}" in done.stdout
