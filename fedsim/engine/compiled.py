"""What the fast lane does with its rows, compiled: the same operations in the same order as one after the other.

The numbers of `stages`, and that of a task that any worker takes, become part of the code that is kept on the disk:
whoever changes them has to touch this file, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.engine.stages import HERE, POSTED, READY, WAITING
from fedsim.schedule.compiled import machine_code
from fedsim.schedule.placement import ANY_WORKER
from fedsim.types import Float64, Int64


@machine_code
def merged(
    begun: Float64, staleness: Int64, weights: Float64, makes_version: NDArray[np.bool_]
) -> tuple[Float64, Float64]:
    """What went into each version that the updates (R,) make, and what into the next one so far.

    Rows (V, 4) of the number of updates, their weights, sum and maximum of their staleness, each as
    `fedsim.engine.making.Merged` adds it up; `begun` (4,) is what was there before.
    """
    one, rows, n = begun.copy(), np.empty((int(makes_version.sum()), 4)), 0
    for r in range(staleness.size):
        one[0] += 1.0
        one[1] += weights[r]
        one[2] += staleness[r]
        one[3] = max(one[3], staleness[r])
        if makes_version[r]:
            rows[n] = one
            one[:] = 0.0
            n += 1
    return rows, one


@machine_code
def put(
    index: Int64, reports: Any, updates: int, stride: int, hold: int, worker: int, arrived_s: float,
    number: Int64, stage: Any, own: Any, address: Int64, holds: Int64, places: Int64, workers: Int64, arrived: Float64,
) -> bool:  # fmt: skip
    """Whether these are the reports of the rows (G,) of `index`, which have come then, each with its update.

    Updates lie from address `updates` on, each `stride` bytes behind the one before.
    """
    if index.size != reports.size:
        return False
    for i in range(index.size):
        row = index[i]
        if reports[i].task != number[row]:
            return False
        own[row], stage[row] = reports[i], HERE
        address[row], holds[row], places[row] = updates + i * stride, hold, i
        workers[row], arrived[row] = worker, arrived_s
    return True


@machine_code
def let_go(holds: Int64, n_left: Int64) -> Int64:
    """Counts the rows (R,) down by what holds their updates; the numbers of what holds none any more."""
    empty, n = np.empty(holds.size, np.int64), 0
    for hold in holds:
        n_left[hold] -= 1
        if n_left[hold] == 0:
            empty[n] = hold
            n += 1
    return empty[:n]


@machine_code
def n_here(stage: Any, first: int, most: int) -> int:
    """How many of the next rows are here, up to the first that is not."""
    n = 0
    while n < most and stage[first + n] == HERE:
        n += 1
    return n


@machine_code
def made_ready(stage: Any, base: Int64, submitted_s: Float64, first: int, version: int, now_s: float) -> int:
    """Rows from `first` on whose base version is there now can be trained: how many."""
    n = 0
    for row in range(first, stage.size):
        if stage[row] == WAITING and base[row] <= version:
            stage[row], submitted_s[row] = READY, now_s
            n += 1
    return n


@machine_code
def dealt(n: int, n_workers: int, most: int) -> int:
    """The size of groups of equal size, at most `most`, in which `n` tasks are dealt to so many workers.

    >>> dealt(256, 2, 64), dealt(100, 2, 64), dealt(5, 2, 64), dealt(300, 2, 64)
    (64, 50, 3, 50)
    """
    n_groups = n_workers * -(-n // (n_workers * most))
    return -(-n // n_groups) if n else 0


@machine_code
def dealt_out(
    stage: Any, host: Int64, makes_version: NDArray[np.bool_], workers: Int64, first: int, n_ready: int, n_foreign: int,
    desks_W3: Int64, n_most: int, group_size: int, worker_rows: int, is_waiting: bool,
) -> tuple[Int64, Int64]:  # fmt: skip
    """The rows of all groups that workers get now, and of each group (G, 2) its worker and where its rows end.

    `desks_W3` are the living workers: the number, the groups, and the rows taken of the room for `worker_rows` of each.
    Nobody gets a second group before everybody has one. See `posted`, which says what a worker gets.
    """
    n_living = desks_W3.shape[0]
    rows, n_rows = np.empty(max(stage.size - first, 0), np.int64), 0
    groups, n_groups = np.empty((n_most * n_living, 2), np.int64), 0
    for level in range(n_most):
        for w in range(n_living):
            worker, n_own, n_taken = desks_W3[w]
            if n_rows == n_ready or n_own != level:
                continue
            n_alike = 0
            for other in range(n_living):
                n_alike += desks_W3[other, 1] == level
            found = posted(
                stage, host, makes_version, workers, first, n_foreign, worker, level, n_alike, n_living, n_most,
                group_size, worker_rows - n_taken, is_waiting,
            )  # fmt: skip
            if found.size == 0:
                continue
            rows[n_rows : n_rows + found.size] = found
            n_rows += found.size
            desks_W3[w, 1] += 1
            desks_W3[w, 2] += found.size
            groups[n_groups] = worker, n_rows
            n_groups += 1
    return rows[:n_rows], groups[:n_groups]


@machine_code
def posted(
    stage: Any, host: Int64, makes_version: NDArray[np.bool_], workers: Int64, first: int, n_foreign: int,
    worker: int, n_groups: int, n_alike: int, n_living: int, n_most: int, group_size: int, room: int,
    is_waiting: bool,
) -> Int64:  # fmt: skip
    """The rows of the group that a worker gets now, which are posted from then on; none if it is not time.

    It has `n_groups` of at most `n_most` groups, as have `n_alike` of the `n_living` workers, and room for so many
    tasks. `first` is the next row to be consumed, which may be here, as may those that follow; `n_foreign` tasks are
    at workers that are no rows.

    Where they are all that can be trained before the next version, tasks are dealt out in groups of one size, no
    more of them than it takes. Else a group waits until it is worth its fixed cost, or the server waits. Then the
    first idle worker gets what comes before anything that cannot start yet, or three eighths of a full group (a
    smaller one costs more than it saves), and the others the rest: in a simulation this was 5 to 15 % faster than
    equal shares, for large models and small ones.
    """
    while first < stage.size and stage[first] == HERE:
        first += 1
    n_unconsumed, n_own, n_shared = n_foreign, 0, 0
    for row in range(first, stage.size):
        if stage[row] != WAITING:
            n_unconsumed += 1
            if stage[row] == READY:
                n_own += host[row] == worker
                n_shared += host[row] == ANY_WORKER
    is_shared = n_own == 0
    queue = np.empty(n_shared if is_shared else n_own, np.int64)
    if queue.size == 0:
        return queue
    n, from_host = 0, ANY_WORKER if is_shared else worker
    for row in range(first, stage.size):
        if stage[row] == READY and host[row] == from_host:
            queue[n] = row
            n += 1
    n_sharing, making = n_alike if is_shared else 1, _first_of(makes_version, True, first)
    fill = min(group_size, max(1, n_unconsumed // (2 * n_most * n_living)))
    if n_groups == 0:
        size = dealt(queue.size, n_sharing, group_size)
        if is_waiting and is_shared and n_living > 1 and queue[0] == first:
            size = min(size, max(_n_before(queue, _first_of(stage, WAITING, first)), 3 * group_size // 8))
        elif not is_waiting and size < fill:
            size = 0
    elif queue[0] <= making:
        size = dealt(_n_before(queue, making + 1), n_sharing, group_size)
    else:
        size = fill if queue.size >= fill * (1 + (n_living if is_shared else 1)) else 0
    rows = queue[: max(0, min(size, room))]
    for row in rows:
        stage[row], workers[row] = POSTED, worker
    return rows


@machine_code
def _first_of(column: Any, value: Any, first: int) -> int:
    """The first row from `first` on that has a value; one past the last if none has it."""
    row = first
    while row < column.size and column[row] != value:
        row += 1
    return row


@machine_code
def _n_before(queue: Int64, row: int) -> int:
    """How many of the rows of a queue, ascending, come before a row."""
    n = 0
    while n < queue.size and queue[n] < row:
        n += 1
    return n
