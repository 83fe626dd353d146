"""Trainers alone: what the ranks of a job reach when nobody but they themselves tell them what to train.

Started by `fedsim bench engine` as `mpirun -n W python -m fedsim.bench.alone CONFIG SECONDS OUT`. Each rank trains
groups of the configured size from the initial model, all clients in turn as any worker of the job may, and writes how
many updates a second it did.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from fedsim import configfile, training
from fedsim.engine.plan import Plan, plan
from fedsim.seeding import Purpose, generator
from fedsim.tables import TaskTable
from fedsim.types import Float32, Task

_LEAST_GROUPS = 8


def updates_per_s(made: Plan, rank: int, seconds: float) -> float:
    """Updates a second of one trainer on this machine, once all its clients' data is warm."""
    import torch

    torch.set_num_threads(made.config.threads)
    trainer = training.build(
        made.config,
        made.population,
        made.module,
        payload=made.rule.payload,
        device=torch.device("cpu"),
        worker=rank,
        clock=time.monotonic,
    )
    groups = _groups(made, rank)
    out_GP: Float32 = np.empty((made.group_size, made.layout.n_parameters), np.float32)

    def train(group: TaskTable) -> None:
        trainer.train(group, lambda version: made.initial_P, out_GP[: len(group)], lambda: None)

    for group in groups:
        train(group)
    n_done, start_s = 0, time.monotonic()
    while (now_s := time.monotonic()) < start_s + seconds or n_done == 0:
        train(groups[n_done % len(groups)])
        n_done += 1
    return n_done * made.group_size / (max(now_s, time.monotonic()) - start_s)


def _groups(made: Plan, rank: int) -> list[TaskTable]:
    """Groups of the configured size of all clients, in an order of this rank's own, as a worker gets them."""
    clients = generator(made.config.seed, Purpose.SELECTION, client=rank).permutation(made.population.n_clients)
    clients = np.resize(clients, max(_LEAST_GROUPS, -(-clients.size // made.group_size)) * made.group_size)
    work, sizes = made.work(), made.population.n_samples(clients).tolist()
    nan = float("nan")
    tasks = [
        Task(i, client, 0, size, work.n_steps(size), 0, work.learning_rate(0), *(nan,) * 6, False, True)
        for i, (client, size) in enumerate(zip(clients.tolist(), sizes, strict=True))
    ]
    return [TaskTable.of(tasks[i : i + made.group_size]) for i in range(0, len(tasks), made.group_size)]


def main() -> None:
    """Trains between two barriers, and leaves the result in a file of this rank's own."""
    from mpi4py import MPI

    config, seconds, out, *overrides = sys.argv[1:]
    comm = MPI.COMM_WORLD
    made = plan(configfile.load(Path(config), overrides), Path(config).parent)
    comm.Barrier()
    rate = updates_per_s(made, comm.rank, float(seconds))
    Path(f"{out}-{comm.rank}.json").write_text(json.dumps(rate), encoding="utf-8")
    comm.Barrier()


if __name__ == "__main__":
    main()
