"""Where: the worker that hosts a client.

`home` deals clients to workers by their number; `balanced` deals them by descending size to the worker with the least
so far; `dynamic` hosts nobody: any worker may take any task. None of them changes a result.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fedsim.types import Int64

ANY_WORKER = -1

PlacementKind = Literal["home", "balanced", "dynamic"]


def placement(kind: PlacementKind, n_workers: int, sizes: Int64 | None) -> Callable[[int], int]:
    """A function from client to the index of its worker, 0..n_workers-1, or `ANY_WORKER`.

    `sizes` (samples a client, int64) is needed by `balanced` only.
    """
    if kind == "home":
        return lambda client: client % n_workers
    if kind == "dynamic":
        return lambda client: ANY_WORKER
    assert sizes is not None, "balanced placement needs the sizes"
    hosts = balanced_hosts(sizes, n_workers)
    return lambda client: int(hosts[client])


def balanced_hosts(sizes: Int64, n_workers: int) -> Int64:
    """The worker of each client, int64 (C,): largest client first, each to the least loaded worker (Graham's LPT)."""
    hosts = np.empty(sizes.size, dtype=np.int64)
    loads = [(0, worker) for worker in range(n_workers)]
    for client in np.argsort(-sizes, kind="stable").tolist():
        load, worker = loads[0]
        hosts[client] = worker
        heapq.heapreplace(loads, (load + int(sizes[client]), worker))
    return hosts


def among(living: Sequence[int], n_workers: int, host_of: Callable[[int], int]) -> Callable[[int], int]:
    """The same function where some of the workers died: their clients are dealt to the `living` by their number."""
    alive = set(living)

    def host(client: int) -> int:
        worker = host_of(client)
        if worker == ANY_WORKER or worker in alive:
            return worker
        return living[client // n_workers % len(living)]

    return host
