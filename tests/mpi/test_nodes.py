"""Large versions reach a node once: fewer bytes, the same bits, also where the worker that receives them dies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ran = Callable[..., dict[str, Any]]
SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")
N_PARAMETERS = 512 * 520 + 520 + 520 * 10 + 10  # more than travel in a piece
N_VERSIONS = 6
CONFIG = f"""
name: nodes
data: {{dataset: synthetic-images, clients: 24, samples: 8, test_samples: 20, shape: [512], classes: 10}}
model: {{kind: mlp, hidden: [520]}}
devices: {{compute: {{time: {{law: exponential, mean: 1.0}}}}}}
training: {{optimizer: {{kind: sgd, learning_rate: 0.05}}, batch_size: 4, epochs: 1, group_size: 2}}
schedule: {{policy: sync, cohort: 12}}
aggregation: {{rule: fedavg}}
evaluation: {{every_versions: 2}}
record: {{flush_s: 0.05}}
memory: {{piece_bytes: 1048576}}
stop: {{versions: {N_VERSIONS}}}
"""
BUFFERED = (
    "schedule={policy: buffered, concurrency: 9, buffer: 3}",
    "aggregation={rule: fedbuff, server_learning_rate: 1.0}",
    "stop.versions=12",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("nodes") / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def same(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in SAME}


def received(folder: Path) -> dict[int, float]:
    """Bytes of versions that each worker was sent."""
    from fedsim.record.reader import open_run

    columns = open_run(folder).columns("workers", ["worker", "received_bytes"])
    ranks, n_bytes = columns["worker"].tolist(), columns["received_bytes"].tolist()
    return {rank: max(n for r, n in zip(ranks, n_bytes, strict=True) if r == rank) for rank in set(ranks) if rank > 0}


def test_a_node_is_sent_each_version_once(ran: Ran, start_mpich: Any, config: str, tmp_path: Path) -> None:
    alone = same(ran(1, tmp_path / "alone", config))
    assert same(ran(3, tmp_path / "shared", config)) == alone
    assert same(ran(3, tmp_path / "mpich", config, how=start_mpich)) == alone
    n_bytes = 4 * N_PARAMETERS
    for name in ("shared", "mpich"):
        assert sum(received(tmp_path / name).values()) == pytest.approx((N_VERSIONS + 1) * n_bytes, abs=n_bytes)
    env = {"FEDSIM_NODE_CACHE": "off"}
    assert same(ran(3, tmp_path / "private", config, env=env)) == alone
    assert sum(received(tmp_path / "private").values()) >= 2 * N_VERSIONS * n_bytes


PROGRAM = """
import os, signal, sys, time
import numpy as np
from mpi4py import MPI
from fedsim.comm.channels import Channels
from fedsim.comm.commons import Sizes
from fedsim.comm.mpi import MpiTransport
from fedsim.comm.nodes import open_nodes
from fedsim.comm.transport import Command, Counters, Lengths, Lost, Trained
from fedsim.comm.working import WorkerChannel
from fedsim.types import Task, TaskReport

N, comm = 2**18, MPI.COMM_WORLD

class Core:
    counters = Counters()
    def __init__(self): self.known = {}
    def learn(self, version, vector_P): self.known[version] = vector_P
    def before_versions(self):
        if comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
    def __getattr__(self, name): return lambda *a, **k: None  # forget, drop and the like: nothing to do here
    def train(self, tasks, send, progress):
        rows = np.stack([self.known[t.base_version] + np.float32(t.client) for t in tasks])
        return Trained(comm.rank - 1, [TaskReport(t.task, 1, 1, 1, 0.0, 0.0, 0.0, 0.0) for t in tasks], send, rows)

class Nobody:
    def __getattr__(self, name): return lambda *a: False  # no watchdog here

nodes = open_nodes(comm, N, 8, Sizes.fitting(4, N, 4, N, N - 1))  # in pieces: not from rank zero's own memory
channels = Channels.open(comm)
if comm.rank:
    assert nodes.shelf is not None
    WorkerChannel(channels, Core(), Lengths(N, N), time.monotonic, Nobody(), nodes.shelf).serve()
else:
    transport = MpiTransport(channels, Lengths(N, N), (), nodes.ledger)
    base = np.random.default_rng(0).standard_normal(N, dtype=np.float32)
    nan = float("nan")
    def task(i): return Task(i, i, 7, 1, 1, 0, 0.1, *(nan,) * 6, False, True)
    for worker in range(3):  # the first is to receive it for all, and dies of it
        transport.send(worker, Command([task(worker)], [True], [7]), [base])
    got, orphans, deadline = {}, None, time.monotonic() + 60
    while len(got) < 2:
        assert time.monotonic() < deadline, (got.keys(), orphans)
        for message in transport.poll():
            if isinstance(message, Lost):
                orphans = list(transport.orphans(message.worker))
                assert not got, "nobody else had it"
                for worker, version in orphans:
                    transport.send(worker, Command(coming=[version]), [base])
            else:
                got[message.worker] = message.rows[0]
        time.sleep(1e-4)
    assert orphans == [(1, 7), (2, 7)], orphans
    for worker, row_P in got.items():
        assert np.array_equal(row_P, base + np.float32(worker))
    transport.close(30.0)
    print("handed on to", sorted(got), flush=True)
os._exit(0)  # one is dead: MPI is not finalised
"""


def test_others_do_not_wait_for_what_a_dead_worker_was_to_receive(start_program: Any) -> None:
    done = start_program(4, sys.executable, "-c", PROGRAM, tolerant=True)
    assert "handed on to [1, 2]" in done.stdout, done.stderr


def test_the_bits_do_not_depend_on_who_dies(ran: Ran, start_tolerant: Any, config: str, tmp_path: Path) -> None:
    sets, env = (*BUFFERED, "fault_tolerant=true"), {"FEDSIM_INJECT": "kill-receiving:4@1;segv:3@2"}
    there = ran(4, tmp_path / "run", config, *sets, env=env, how=start_tolerant)
    assert same(there) == same(ran(1, tmp_path / "alone", config, *BUFFERED))


def test_versions_and_updates_in_memory_that_rank_zero_has_in_common(
    ran: Ran, start_mpich: Any, start_tolerant: Any, config: str, tmp_path: Path
) -> None:
    """The same bits as by messages, through both MPIs, from few rows and slots, and where workers die."""
    sets = (*BUFFERED, "memory.piece_bytes=4194304")
    alone = same(ran(1, tmp_path / "alone", config, *sets))
    few = ("memory.server_updates_bytes=3000000", "memory.server_versions_bytes=3000000")
    assert same(ran(3, tmp_path / "common", config, *sets)) == alone
    assert same(ran(4, tmp_path / "mpich", config, *sets, how=start_mpich)) == alone
    assert same(ran(3, tmp_path / "few", config, *sets, *few)) == alone
    assert same(ran(3, tmp_path / "apart", config, *sets, env={"FEDSIM_NODE_CACHE": "off"})) == alone
    sizes = {name: sum(received(tmp_path / name).values()) for name in ("common", "apart")}
    # a version is counted for each worker that is given it, either way; who needs which depends on who is idle
    assert sizes["common"] == pytest.approx(sizes["apart"], rel=0.3) and sizes["apart"] > 10 * 4 * N_PARAMETERS
    env = {"FEDSIM_INJECT": "kill-receiving:4@1;segv:3@2"}
    died = ran(4, tmp_path / "died", config, *sets, "fault_tolerant=true", env=env, how=start_tolerant)
    assert same(died) == alone
