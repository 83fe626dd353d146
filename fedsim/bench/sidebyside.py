"""Contenders in turn, in one process or in several at once, for as long as it takes to see how fast they are."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import torch

from fedsim.affinity import allowed, keep_to
from fedsim.bench.workload import MODELS, Path, PlainLoop, clients_of, config_of, module_of
from fedsim.errors import LaunchError

PRODUCT_SIZE = 1024
LEAST_S = 0.1  # of each contender in each round
START_S = 300.0  # that the slowest process may take to get ready
PLAIN = "PyTorch"

Round = dict[str, float]
Train = Callable[[Sequence[int]], None]


class Contest(NamedTuple):
    """What is compared: the plain loop, if wanted, and paths with their group sizes (None: the rule's), by name."""

    model: str
    variant: str
    has_plain: bool
    paths: Mapping[str, tuple[str, int | None]]
    repeat: int


def product_rate() -> float:
    """Floating-point operations a second of a float32 product of two square matrices, on one thread."""
    a = torch.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    start_s = time.perf_counter()
    for _ in range(3):
        a.mm(a)
    return 3 * 2 * PRODUCT_SIZE**3 / (time.perf_counter() - start_s)


def rounds(
    contest: Contest,
    meet: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Round], dict[str, int]]:
    """Updates a second of each contender in each round, with the product rate, and the paths' group sizes.

    `meet` is called before each measurement: processes side by side wait for each other there. `clock` measures
    updates a second: wall time, or the process's own, which others at work on the machine disturb less.
    """
    torch.set_num_threads(1)
    module, clients = module_of(contest.model), clients_of(contest.model)
    contenders: dict[str, Train] = {}
    if contest.has_plain:
        contenders[PLAIN] = PlainLoop(module, clients, contest.variant).train
    sizes = {}
    for name, (path, group_size) in contest.paths.items():
        own = Path(config_of(contest.model, contest.variant, path, group_size), clients, module)
        contenders[name], sizes[name] = own.train, own.group_size
    for train in contenders.values():
        train(range(clients.n_clients))  # warms everything up
    found = []
    for _ in range(contest.repeat):
        meet()
        results = {"product": product_rate()}
        for name, train in contenders.items():
            meet()
            results[name] = _updates_per_s(train, clients.n_clients, clock)
        found.append(results)
    return found, sizes


def _updates_per_s(train: Train, n_clients: int, clock: Callable[[], float]) -> float:
    n, start_s = 0, clock()
    while True:
        train(range(n_clients))
        n += n_clients
        taken_s = clock() - start_s
        if taken_s >= LEAST_S:
            return n / taken_s


def side_by_side(contest: Contest, n_processes: int) -> tuple[list[Round], dict[str, int]]:
    """What `rounds` gives, summed over processes that measure the same thing at the same time, without messages.

    Raises:
        LaunchError: a process ended before it had anything to say.
    """
    assert contest.model in MODELS
    if n_processes == 1:
        return rounds(contest)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n_processes)
    processes, ends = [], []
    for rank in range(n_processes):
        end, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(contest, barrier, theirs, rank), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(end)
    try:
        found = [end.recv() for end in ends]
    except EOFError as error:
        raise LaunchError("bench: a process of the trainers side by side ended early; see what it wrote") from error
    finally:
        for process in processes:
            process.join(START_S)
    return summed([rounds_ for rounds_, _ in found]), found[0][1]


def _run(contest: Contest, barrier: Barrier, result: Connection, rank: int) -> None:
    """A process's part; each has a core of its own where there are enough."""
    cores = sorted(allowed())
    if len(cores) > rank:
        keep_to(frozenset([cores[rank]]))
    try:
        result.send(rounds(contest, lambda: barrier.wait(START_S)))
    except BaseException:
        barrier.abort()
        raise


def summed(by_process: Sequence[Sequence[Round]]) -> list[Round]:
    """What the processes reached together, round by round."""
    return [
        {name: sum(found[name] for found in together) for name in together[0]}
        for together in zip(*by_process, strict=True)
    ]
