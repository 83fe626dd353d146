"""The generator of `fedsim.seeding.bits`, compiled: the same words, 3 ns each instead of 25, and 1 us a call.

Loading this takes half a second: workers, which load compiled code anyway, draw the orders of samples with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from fedsim.seeding import Purpose, stream_key
from fedsim.types import Int64

F = TypeVar("F", bound=Callable[..., Any])
UInt64 = NDArray[np.uint64]


def _compiled(function: F) -> F:
    """The function as machine code, kept on the disk between processes; types as those of the function."""
    return cast(F, numba.njit(cache=True)(function))


def bits(seed: int, purpose: Purpose, clients_G: Int64, tasks_G: Int64, n: int) -> UInt64:
    """What `fedsim.seeding.bits` gives for these keys: (G, n), uint64."""
    words_GN = np.empty((clients_G.size, n + n % 2), dtype=np.uint64)
    key = stream_key(seed, purpose)
    _fill(words_GN, clients_G.astype(np.uint64), tasks_G.astype(np.uint64), np.uint64(key))
    return words_GN[:, :n]


@_compiled
def _fill(words_GN: UInt64, clients_G: UInt64, tasks_G: UInt64, key: Any) -> None:
    """The words of each key, two a block of the generator."""
    for g in range(clients_G.size):
        _draw(words_GN[g], clients_G[g], tasks_G[g], 0, key)


@_compiled
def _draw(words_N: UInt64, client: Any, task: Any, first: int, key: Any) -> None:
    """Philox4x32-10 of counters (block, task, client, both their high bits) from block `first` on, two words each."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    high = ((client >> half) << np.uint64(16)) | (task >> half)
    for block in range(words_N.size // 2):
        c0, c1, c2, c3 = np.uint64(first + block), task & mask, client & mask, high
        k0, k1 = key & mask, key >> half
        for _ in range(10):
            p0, p1 = c0 * m0, c2 * m1
            c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
            k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
        words_N[2 * block] = c0 | (c1 << half)
        words_N[2 * block + 1] = c2 | (c3 << half)


@_compiled
def draw_orders(
    clients_G: Int64, tasks_G: Int64, sizes_G: Int64, first_G: Int64, n_G: Int64, is_one_stream: bool, key: Any
) -> tuple[Int64, Int64]:
    """Random orders of 0 to `sizes_G` - 1, of `n_G` passes of each key from pass `first_G` on: int64, all behind one
    another; and where those of each key begin. `key` is that of the stream.

    Each is the stable order of as many words: of the stream (client, task), which goes on from pass to pass, or else
    of a stream of each pass, (client, task + pass), from its start.
    """
    starts_G, n_rows, longest = np.empty(sizes_G.size, np.int64), 0, 0
    for g in range(sizes_G.size):
        starts_G[g] = n_rows
        n_rows += sizes_G[g] * n_G[g]
        longest = max(longest, sizes_G[g] * (n_G[g] if is_one_stream else 1))
    orders_R, words = np.empty(n_rows, np.int64), np.empty(longest + 2, np.uint64)
    for g in range(sizes_G.size):
        n, client, task = sizes_G[g], np.uint64(clients_G[g]), tasks_G[g]
        begin = n * first_G[g] if is_one_stream else 0
        if is_one_stream:
            _draw(words[: n * n_G[g] + 2], client, np.uint64(task), begin // 2, key)
        for i in range(n_G[g]):
            if not is_one_stream:
                _draw(words[: n + 1], client, np.uint64(task + first_G[g] + i), 0, key)
            at, first = begin % 2 + i * n if is_one_stream else 0, starts_G[g] + i * n
            orders_R[first : first + n] = np.argsort(words[at : at + n], kind="mergesort")  # which is stable
    return orders_R, starts_G
