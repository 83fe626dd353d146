"""Random streams keyed by (seed, purpose, client, task): the same value wherever and whenever it is asked for.

`bits` and `uniforms` are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
over arrays of keys: one call serves a whole group, and gives what one call a key would give. The generator's 64-bit
key is a mix of seed and purpose; its 128-bit counter holds client, task and the index inside the stream. `generator` is
numpy's own generator for a key, for long streams such as a client's data: 15 us to build, then fast.

Nothing here has a state. Adding a purpose never moves another purpose's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64 = NDArray[np.uint64]
# Draws of a client's tasks, as `uniforms` makes them: seed, purpose, client, tasks (T,), draws a task.
Uniforms = Callable[[int, "Purpose", int, NDArray[np.int64], int], NDArray[np.float64]]

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_U32 = np.uint64(32)
_NP_MASK32 = np.uint64(_MASK32)


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of every published result: never reuse or change one."""

    SELECTION = 1
    COMPUTE_TIME = 2
    LOSS = 3
    SLOWNESS = 4
    DOWNLOAD_LATENCY = 5
    UPLOAD_LATENCY = 6
    DOWNLOAD_RATE = 7
    UPLOAD_RATE = 8
    AVAILABILITY_PHASE = 9
    BATCH_ORDER = 10
    PARTITION = 11
    DATA_CLASSES = 12
    DATA_SAMPLES = 13
    DATA_TEST = 14
    TEST_SPLIT = 15
    DROPOUT = 16
    INJECTION = 17
    GUIDED_SELECTION = 18  # explore or exploit, and a round's tier
    COMPRESSION = 19  # values rounded at random on their way up
    TRIAL = 20  # operands on which a kernel is tried
    ATTACKERS = 40
    ATTACK_NOISE = 41
    CANDIDATES = 42  # who is looked at by power-of-choice


def _mix64(z: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): spreads seed and purpose over the 64 key bits."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def stream_key(seed: int, purpose: Purpose, part: int = 0) -> int:
    """The 64-bit Philox key of all streams of one purpose, or of a part of it, such as a layer of a model."""
    key = _mix64(_mix64(seed) ^ int(purpose))
    return _mix64(key ^ _mix64(part)) if part else key


def philox(key: int, c0: UInt64, c1: UInt64, c2: UInt64, c3: UInt64) -> tuple[UInt64, UInt64, UInt64, UInt64]:
    """Philox4x32-10 of counters (c0..c3), each uint64 holding 32 bits, any common shape; four outputs likewise."""
    k0, k1 = key & _MASK32, (key >> 32) & _MASK32
    m0, m1 = np.uint64(_M0), np.uint64(_M1)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (
            (p1 >> _U32) ^ c1 ^ np.uint64(k0),
            p1 & _NP_MASK32,
            (p0 >> _U32) ^ c3 ^ np.uint64(k1),
            p0 & _NP_MASK32,
        )
        k0, k1 = (k0 + _W0) & _MASK32, (k1 + _W1) & _MASK32
    return c0, c1, c2, c3


def bits(seed: int, purpose: Purpose, client: ArrayLike, task: ArrayLike, n: int, first: int = 0) -> UInt64:
    """64-bit words `first` .. `first + n` of the streams (client, task): shape (*keys, n), uint64.

    `client` and `task` broadcast against each other; both below 2**48.
    """
    clients, tasks = np.broadcast_arrays(np.asarray(client, np.uint64), np.asarray(task, np.uint64))
    blocks = np.arange(first // 2, (first + n + 1) // 2, dtype=np.uint64)
    shape = (*clients.shape, blocks.size)
    high = ((clients >> _U32) << np.uint64(16)) | (tasks >> _U32)
    words = philox(
        stream_key(seed, purpose),
        np.broadcast_to(blocks, shape),
        np.broadcast_to((tasks & _NP_MASK32)[..., None], shape),
        np.broadcast_to((clients & _NP_MASK32)[..., None], shape),
        np.broadcast_to(high[..., None], shape),
    )
    pairs = np.stack([words[0] | (words[1] << _U32), words[2] | (words[3] << _U32)], axis=-1)
    return pairs.reshape(*clients.shape, -1)[..., first % 2 : first % 2 + n]


def uniforms(
    seed: int, purpose: Purpose, client: ArrayLike, task: ArrayLike, n: int, first: int = 0
) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) with 53 bits: shape (*keys, n), float64. See `bits`."""
    return (bits(seed, purpose, client, task, n, first) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=64)
def _round_keys(seed: int, purpose: Purpose) -> tuple[tuple[int, int], ...]:
    """The ten rounds' pairs of key words, as Python integers."""
    key = stream_key(seed, purpose)
    return tuple(((key + r * _W0) & _MASK32, ((key >> 32) + r * _W1) & _MASK32) for r in range(_ROUNDS))


def uniform_pair(seed: int, purpose: Purpose, client: int, task: int) -> tuple[float, float]:
    """What `uniforms(seed, purpose, client, task, 2)` gives, from Python's own integers: 2 us a key instead of 66."""
    c0, c1, c2, c3 = 0, task & _MASK32, client & _MASK32, ((client >> 32) << 16) | (task >> 32)
    for k0, k1 in _round_keys(seed, purpose):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
    return ((c0 | c1 << 32) >> 11) * 2.0**-53, ((c2 | c3 << 32) >> 11) * 2.0**-53


def permutations(seed: int, purpose: Purpose, client: ArrayLike, task: ArrayLike, n: int) -> NDArray[np.int64]:
    """A random order of 0..n-1 for each key: shape (*keys, n), int64; ties (never seen) keep their order."""
    return np.argsort(bits(seed, purpose, client, task, n), axis=-1, kind="stable")


def generator(seed: int, purpose: Purpose, client: int = 0, task: int = 0) -> np.random.Generator:
    """numpy's Philox generator for one key, for long streams: the same key gives the same stream."""
    key = np.array([stream_key(seed, purpose), client], dtype=np.uint64)
    counter = np.array([0, 0, 0, task], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def long_bits(
    seed: int, purpose: Purpose, clients_G: NDArray[np.int64], tasks_G: NDArray[np.int64], n: int, first: int, part: int
) -> UInt64:
    """64-bit words `first` .. `first + n` of long streams (client, task): (G, n), uint64; `first` is a multiple of 4.

    They are what `generator`'s bit generator gives for each key, and for each `part` of the purpose other ones. One
    generator serves all keys: setting its state takes 1 us and a word 4 ns, where `bits` takes 50 ns a word.
    """
    assert first % 4 == 0
    words_GN = np.empty((clients_G.size, n), dtype=np.uint64)
    philox4x64 = np.random.Philox(key=0)
    state: Any = philox4x64.state
    key = stream_key(seed, purpose, part)
    for words_N, client, task in zip(words_GN, clients_G.tolist(), tasks_G.tolist(), strict=True):
        state["state"]["key"] = np.array([key, client], dtype=np.uint64)
        state["state"]["counter"] = np.array([first // 4, 0, 0, task], dtype=np.uint64)
        philox4x64.state = state
        words_N[:] = philox4x64.random_raw(n)
    return words_GN


def cycle_orders(seed: int, n: int) -> Iterator[NDArray[np.int64]]:
    """An order of 0..n-1 a cycle, without end: those that numpy's `default_rng(seed).permutation(n)` gives in turn.

    No keyed stream, because published code draws the turns of clients so (FLamby's cyclic strategy).
    """
    rng = np.random.default_rng(seed)
    while True:
        yield rng.permutation(n)


def normals(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal draws from two arrays of uniforms (Box and Muller 1958, the cosine half)."""
    result: NDArray[Any] = np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)
    return result
