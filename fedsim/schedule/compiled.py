"""The schedule's inner loop, compiled by numba: selection, arrivals, rounds and buffers of millions of tasks.

It makes the same decisions as `Schedule` with its policies, to the last bit (`tests/property/test_schedule_alone.py`),
for populations that are always there and policies that hold no timers but a round's deadline. State lives in arrays,
so that a call can stop anywhere: for more draws, for room to write, or at the end. Nothing here draws a random number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from fedsim.types import Float64, Int64

F = TypeVar("F", bound=Callable[..., Any])


def machine_code(function: F) -> F:
    """The function as machine code, kept on the disk between processes; types as those of the function."""
    return cast(F, numba.njit(cache=True)(function))


def inlined(function: F) -> F:
    """`machine_code` that becomes part of its callers: arrays that are handed on are not counted there."""
    return cast(F, numba.njit(cache=True, forceinline=True)(function))


# Why `advance` returned.
FINISHED, NEED_DRAWS, NEED_ROOM, STALLED, FRUITLESS = range(5)

# Policies.
BUFFERED, K_ASYNC, SYNC = range(3)

# Outcomes, as in `fedsim.types.Outcome`.
_APPLIED, _LOST, _ABORTED = 0, 1, 2

# Whole numbers of the state, by their place in `Flight.n`.
(
    N_FLIGHT,
    N_HELD,  # buffered, or waiting for the version, or arrived in the round
    VERSION,
    NEXT_TASK,
    N_CONSUMED,
    N_FRUITLESS,
    N_FREE,
    IS_DISPATCH_DUE,
    IS_OVER,
    N_MERGED,
    STALENESS_SUM,
    STALENESS_MAX,
    N_IDLE,
) = range(13)
N_NUMBERS = 13

# Times of the state, by their place in `Flight.t`: now, and when the open round must end.
NOW_S, DEADLINE_S = range(2)


class Rules(NamedTuple):
    """What does not change: policy, its sizes, when to stop. Counts below 0 and infinite times are no limits."""

    policy: int
    n_slots: int  # tasks in flight at most; those of a round
    n_merge: int  # arrivals that make a version
    deadline_s: float
    stop_versions: int
    stop_updates: int
    stop_s: float
    fruitless_limit: int


class People(NamedTuple):
    """What is known of each member by its position; an array of one value holds for all."""

    client: Int64  # empty: clients are positions
    n_samples: Int64
    n_steps: Int64
    units: Float64  # of work in a task
    slowness: Float64
    download_s: Float64
    upload_s: Float64


class Idle(NamedTuple):
    """Which positions are idle: a bit each, and how many are in each 4,096 and each 262,144 of them."""

    words: NDArray[np.uint64]
    blocks: Int64
    regions: Int64


class Draws(NamedTuple):
    """What is drawn by task number, from `first` on."""

    first: int
    choice: Float64
    unit_s: Float64
    lost: NDArray[np.bool_]


class Flight(NamedTuple):
    """The tasks in flight by slot, the queue of slots by event, the free slots, numbers and times."""

    task: Int64
    position: Int64
    base_version: Int64
    dispatch_s: Float64
    compute_s: Float64
    arrival_s: Float64
    lost: NDArray[np.bool_]
    heap: Int64
    free: Int64
    n: Int64
    t: Float64


class Rows(NamedTuple):
    """Room for rows of ended tasks, in event order, and of versions; `n` counts both."""

    task: Int64
    position: Int64
    outcome: Int64
    base_version: Int64
    applied_version: Int64
    dispatch_s: Float64
    compute_s: Float64
    arrival_s: Float64
    version_s: Float64
    version_updates: Int64
    version_staleness_sum: Int64
    version_staleness_max: Int64
    n: Int64


# ------------------------------------------------------------------------------------------- idle positions


@inlined
def _n_bits(x: Any) -> int:
    """Bits set in a 64-bit word."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@inlined
def kth_idle(idle: Any, k: int) -> int:
    """The position of the k-th idle one, counted from 0."""
    region = 0
    while k >= idle.regions[region]:
        k -= idle.regions[region]
        region += 1
    block = region * 64
    while k >= idle.blocks[block]:
        k -= idle.blocks[block]
        block += 1
    at = block * 64
    n = _n_bits(idle.words[at])
    while k >= n:
        k -= n
        at += 1
        n = _n_bits(idle.words[at])
    word = idle.words[at]
    for _ in range(k):
        word &= word - np.uint64(1)
    lowest = word & (~word + np.uint64(1))
    return int(at * 64 + _n_bits(lowest - np.uint64(1)))


@inlined
def set_idle(idle: Any, position: int, change: int) -> None:
    """Marks a position idle (`change` 1) or busy (-1)."""
    idle.words[position >> 6] ^= np.uint64(1) << np.uint64(position & 63)
    idle.blocks[position >> 12] += change
    idle.regions[position >> 18] += change


# ---------------------------------------------------------------------------------------------- the queue


@inlined
def _is_before(flight: Any, a: int, b: int) -> bool:
    """Whether the event of slot `a` comes before that of `b`: by time, arrivals before losses, by number."""
    if flight.arrival_s[a] != flight.arrival_s[b]:
        return bool(flight.arrival_s[a] < flight.arrival_s[b])
    if flight.lost[a] != flight.lost[b]:
        return bool(flight.lost[b])
    return bool(flight.task[a] < flight.task[b])


@inlined
def _push(flight: Any, slot: int, at: int) -> None:
    """Puts a slot into the heap of `at` slots."""
    heap = flight.heap
    while at > 0:
        parent = (at - 1) >> 1
        if not _is_before(flight, slot, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = slot


@inlined
def _pop(flight: Any, n: int) -> int:
    """Takes the first slot out of the heap of `n` slots."""
    heap = flight.heap
    first, last = heap[0], heap[n - 1]
    n -= 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and _is_before(flight, heap[child + 1], heap[child]):
            child += 1
        if not _is_before(flight, heap[child], last):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return int(first)


# --------------------------------------------------------------------------------------------- the events


@inlined
def _of(values: Any, position: int) -> Any:
    return values[0] if values.size == 1 else values[position]


@inlined
def _openings(rules: Any, flight: Any) -> int:
    """How many tasks may start."""
    n = flight.n
    if rules.policy == SYNC:
        return 0 if n[N_FLIGHT] > 0 else int(rules.n_slots)
    waiting = n[N_HELD] if rules.policy == K_ASYNC else 0
    return int(rules.n_slots - n[N_FLIGHT] - waiting)


@inlined
def _dispatch(rules: Any, people: Any, idle: Any, draws: Any, flight: Any, n_open: int) -> None:
    """Starts tasks now, from the current version, and opens a round where there are rounds."""
    n, now_s = flight.n, flight.t[NOW_S]
    for _ in range(n_open):
        number = n[NEXT_TASK]
        at = number - draws.first
        position = kth_idle(idle, int(draws.choice[at] * n[N_IDLE]))
        set_idle(idle, position, -1)
        n[N_IDLE] -= 1
        n[NEXT_TASK] += 1
        n[N_FREE] -= 1
        slot = flight.free[n[N_FREE]]
        compute_s = draws.unit_s[at] * _of(people.slowness, position) * _of(people.units, position)
        flight.task[slot] = number
        flight.position[slot] = position
        flight.base_version[slot] = n[VERSION]
        flight.dispatch_s[slot] = now_s
        flight.compute_s[slot] = compute_s
        flight.arrival_s[slot] = now_s + _of(people.download_s, position) + compute_s + _of(people.upload_s, position)
        flight.lost[slot] = draws.lost[at]
        _push(flight, slot, n[N_FLIGHT])
        n[N_FLIGHT] += 1
    if rules.policy == SYNC and n_open > 0:
        flight.t[DEADLINE_S] = now_s + rules.deadline_s


@inlined
def _end(idle: Any, flight: Any, rows: Any, slot: int, outcome: int, arrival_s: float) -> None:
    """Writes the row of a task that is out of the queue, and frees its slot and client."""
    n, at = flight.n, rows.n[0]
    rows.task[at] = flight.task[slot]
    rows.position[at] = flight.position[slot]
    rows.outcome[at] = outcome
    rows.base_version[at] = flight.base_version[slot]
    rows.applied_version[at] = n[VERSION] + 1 if outcome == _APPLIED else -1
    rows.dispatch_s[at] = flight.dispatch_s[slot]
    rows.compute_s[at] = flight.compute_s[slot]
    rows.arrival_s[at] = arrival_s
    rows.n[0] += 1
    set_idle(idle, flight.position[slot], 1)
    n[N_IDLE] += 1
    flight.free[n[N_FREE]] = slot
    n[N_FREE] += 1


@inlined
def _abort_round(idle: Any, flight: Any, rows: Any) -> int:
    """Ends what is still out, in the order of dispatch; returns how many tasks that were."""
    n = flight.n
    n_out = n[N_FLIGHT]
    late = flight.heap[:n_out]
    for slot in late[np.argsort(flight.task[late])]:
        _end(idle, flight, rows, slot, _ABORTED, flight.arrival_s[slot])
    n[N_FLIGHT] = 0
    return int(n_out)


@inlined
def _merge(rules: Any, flight: Any, rows: Any) -> None:
    """Makes a version of what was consumed since the last one."""
    n, at = flight.n, rows.n[1]
    n[VERSION] += 1
    rows.version_s[at] = flight.t[NOW_S]
    rows.version_updates[at] = n[N_MERGED]
    rows.version_staleness_sum[at] = n[STALENESS_SUM]
    rows.version_staleness_max[at] = n[STALENESS_MAX]
    rows.n[1] += 1
    n[N_MERGED] = n[STALENESS_SUM] = n[STALENESS_MAX] = 0
    if 0 <= rules.stop_versions <= n[VERSION]:
        n[IS_OVER] = 1


@inlined
def _consume(idle: Any, flight: Any, rows: Any, slot: int) -> None:
    n = flight.n
    staleness = n[VERSION] - flight.base_version[slot]
    _end(idle, flight, rows, slot, _APPLIED, flight.arrival_s[slot])
    n[N_CONSUMED] += 1
    n[N_MERGED] += 1
    n[STALENESS_SUM] += staleness
    n[STALENESS_MAX] = max(n[STALENESS_MAX], staleness)
    n[N_HELD] += 1


@inlined
def _close_round(idle: Any, flight: Any, rows: Any) -> bool:
    """Aborts the late ones; whether anything arrived, which makes a version."""
    n = flight.n
    arrived = n[N_HELD] > 0
    n[N_HELD] = 0
    n[N_FRUITLESS] += _abort_round(idle, flight, rows)
    flight.t[DEADLINE_S] = math.inf
    return bool(arrived)


@inlined
def _take_event(rules: Any, idle: Any, flight: Any, rows: Any) -> None:
    """Handles the next event: an arrival, a loss, or the end of the open round."""
    n = flight.n
    slot = flight.heap[0] if n[N_FLIGHT] > 0 else -1
    merge, consumed = False, False
    if slot < 0 or flight.t[DEADLINE_S] < flight.arrival_s[slot]:
        flight.t[NOW_S] = flight.t[DEADLINE_S]
        merge = _close_round(idle, flight, rows)
    else:
        flight.t[NOW_S] = flight.arrival_s[slot]
        _pop(flight, n[N_FLIGHT])
        n[N_FLIGHT] -= 1
        consumed = not flight.lost[slot]
        if consumed:
            _consume(idle, flight, rows, slot)
        else:
            _end(idle, flight, rows, slot, _LOST, flight.arrival_s[slot])
            n[N_FRUITLESS] += 1
        if rules.policy == SYNC:
            if n[N_FLIGHT] == 0 or (consumed and n[N_HELD] == rules.n_merge):
                merge = _close_round(idle, flight, rows)
        elif n[N_HELD] == rules.n_merge:
            merge = True
            n[N_HELD] = 0
    if consumed:
        n[N_FRUITLESS] = 0
    if merge:
        _merge(rules, flight, rows)
    if 0 <= rules.stop_updates <= n[N_CONSUMED]:
        n[IS_OVER] = 1


@inlined
def _next_s(flight: Any) -> float:
    """When the next event is due: infinite if there is none."""
    first_s = flight.arrival_s[flight.heap[0]] if flight.n[N_FLIGHT] > 0 else math.inf
    return float(min(first_s, flight.t[DEADLINE_S]))


@machine_code
def advance(rules: Any, people: Any, idle: Any, draws: Any, flight: Any, rows: Any) -> int:
    """Goes on until something is needed or the end is reached; returns which (`FINISHED`, ...)."""
    n = flight.n
    while n[IS_OVER] == 0:
        if n[IS_DISPATCH_DUE] == 1:
            n_open = _openings(rules, flight)
            if n[NEXT_TASK] + n_open > draws.first + draws.choice.size:
                return NEED_DRAWS
            _dispatch(rules, people, idle, draws, flight, n_open)
            n[IS_DISPATCH_DUE] = 0
        if rows.n[0] + rules.n_slots > rows.task.size or rows.n[1] == rows.version_s.size:
            return NEED_ROOM
        next_s = _next_s(flight)
        if next_s == math.inf:
            return STALLED
        if next_s > rules.stop_s:
            flight.t[NOW_S] = rules.stop_s
            n[IS_OVER] = 1
            break
        _take_event(rules, idle, flight, rows)
        if n[N_FRUITLESS] > rules.fruitless_limit:
            return FRUITLESS
        if _next_s(flight) > flight.t[NOW_S]:
            n[IS_DISPATCH_DUE] = 1
    return FINISHED


@machine_code
def weight_sums(weights: Float64, applied_version: Int64, first_version: int, sums: Float64) -> None:
    """Adds each weight to the sum of its version, in the order of rows: `sums[i]` is that of `first_version` + i.

    Rows whose applied version is -1 are passed over.
    """
    for row in range(weights.size):
        if applied_version[row] >= 0:
            sums[applied_version[row] - first_version] += weights[row]
