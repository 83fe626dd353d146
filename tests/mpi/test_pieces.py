"""A small vector really travels in many pieces, there and back: the whole transport with a tiny piece size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import sys, time
import numpy as np
from mpi4py import MPI
from fedsim.comm.channels import Channels
from fedsim.comm.mpi import MpiTransport
from fedsim.comm.working import WorkerChannel
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


STREAMED = """
import json, os, sys
from pathlib import Path
import fedsim, fedsim.engine.server as server
from fedsim.engine.launching import find_world

counts = [0, 0]
class Counted(server.Streaming):
    def __init__(self, supply, begun):
        super().__init__(supply, begun)
        counts[0] += 1
        counts[1] += begun.incoming.n_here() < begun.incoming.row_P.size
server.Streaming = Counted
CONFIG = {
    "name": "pieces", "seed": 2, "record": {"flush_s": 100.0},
    "data": {"dataset": "synthetic-images", "clients": 9, "shape": [90], "samples": 10, "test_samples": 20},
    "model": {"kind": "mlp", "hidden": [90]},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 10, "epochs": 1, "group_size": 2},
    "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}},
    "evaluation": {"every_versions": None}, "stop": {"updates": 24},
}
RULES = {
    "fedbuff": {"schedule": {"policy": "buffered", "concurrency": 4, "buffer": 3}, "aggregation": {"rule": "fedbuff"}},
    "fedasync": {"schedule": {"policy": "async", "concurrency": 4}, "aggregation": {"rule": "fedasync"}},
}
SMALL = {f"{where}_{what}_bytes": 0 for where in ("server", "worker") for what in ("updates", "versions")}
for name, sections in RULES.items():
    memory = {**(SMALL if name == "fedbuff" else {}), "piece_bytes": 400}
    out = Path(sys.argv[1]) / name
    run = fedsim.run({**CONFIG, **sections, "memory": memory}, out, world=find_world(os.environ))
    if run is not None:
        summary = run.summary()
        print(json.dumps([name, summary["status"], summary["model_sha256"], summary["history_sha256"]]))
print("streamed", *counts)
"""


def test_large_updates_are_applied_while_they_come_in_to_the_same_bits(start_program: Any, tmp_path: Path) -> None:
    lines = {}
    for n in (1, 3):
        words = (sys.executable, "-c", STREAMED, str(tmp_path / str(n)))
        done = start_program(n, *words) if n > 1 else subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines[n] = done.stdout.splitlines()
    runs = {n: sorted(line for line in found if line.startswith("[")) for n, found in lines.items()}
    assert len(runs[1]) == 2 and runs[3] == runs[1] and all('"done"' in line for line in runs[1])
    assert "streamed 0 0" in lines[1], "without MPI nothing travels"
    n_streamed, n_unfinished = max(
        tuple(map(int, line.split()[1:])) for line in lines[3] if line.startswith("streamed")
    )
    assert n_streamed >= n_unfinished > 4, "of 48 updates, each in more than 100 pieces"
