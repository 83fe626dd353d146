"""`fedsim.seeding.uniforms` compiled, for the schedule alone: the same bits in an eighth of the time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedsim.schedule.compiled import machine_code
from fedsim.seeding import Purpose, stream_key
from fedsim.types import Float64


def uniforms(seed: int, purpose: Purpose, client: ArrayLike, task: ArrayLike, n: int) -> Float64:
    """Uniform draws in [0, 1) of one client's tasks: (T, n), float64, for tasks (T,) and `n` of 1 or 2."""
    assert n in (1, 2)
    tasks = np.ascontiguousarray(task, np.uint64)
    out = np.empty((tasks.size, n))
    key = stream_key(seed, purpose)
    _fill(np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32), np.uint64(np.asarray(client)), tasks, out)
    return out


@machine_code
def _fill(low_key: Any, high_key: Any, client: Any, tasks: Any, out: Any) -> None:
    """Philox4x32-10 of the counters (0, task, client, high words of both), as in `fedsim.seeding.bits`."""
    mask, u32 = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1, w0, w1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    for i in range(tasks.size):
        task = tasks[i]
        c0, c1, c2 = np.uint64(0), task & mask, client & mask
        c3 = ((client >> u32) << np.uint64(16)) | (task >> u32)
        k0, k1 = low_key, high_key
        for _ in range(10):
            p0, p1 = c0 * m0, c2 * m1
            c0, c2 = (p1 >> u32) ^ c1 ^ k0, (p0 >> u32) ^ c3 ^ k1
            c1, c3 = p1 & mask, p0 & mask
            k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
        out[i, 0] = np.float64((c0 | (c1 << u32)) >> np.uint64(11)) * 2.0**-53
        if out.shape[1] > 1:
            out[i, 1] = np.float64((c2 | (c3 << u32)) >> np.uint64(11)) * 2.0**-53
