"""What rank zero and the workers of its host have in common (`fedsim.comm.commons`): how much of it a run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.comm.commons import Sizes

if TYPE_CHECKING:
    from fedsim.engine.plan import Plan

_WAITING = 8  # times as many small rows, since those of a group go together: with half of them a fifth found no room
_MOST_WAITING = 4  # times the updates in flight, where there are few workers
_SPANS = 8  # times as long as a task takes on average: until then nearly all are through
_EVALUATED = 32  # versions that evaluations may keep


def sizes_in_common(made: Plan, n_workers: int) -> Sizes:
    """As much as is useful, of what travels as it is computed, within rank zero's bounds and the workers'.

    Rows for the updates in flight, of which nearly all may be here long before they are due, and for the groups under
    way; small ones wait for each other (`Bounds.buffer_rows`). Slots for the versions that are alive where tasks take
    exponential times: each is until its last task is consumed.
    """
    bounds, memory, in_flight = made.bounds, made.config.memory, made.concurrency
    n_alive = min(in_flight, _SPANS * -(-in_flight // made.n_merge)) + _EVALUATED
    n_slots = min(n_alive, max(1, memory.server_versions_bytes // made.version_bytes), bounds.worker_versions)
    n_due = -(-in_flight // n_workers)
    if bounds.buffer_rows > 1:
        n_due = min(_WAITING * n_due, _MOST_WAITING * in_flight)
    n_most = min(bounds.worker_rows, bounds.server_rows * bounds.buffer_rows // n_workers)
    n_rows = min(n_due + bounds.n_groups * bounds.group_size, n_most)
    has_rows = made.codec is None and not bounds.sums
    return Sizes.fitting(
        n_rows if has_rows else 0,
        made.layout.n_parameters,
        n_slots if made.config.compression.versions == "float32" else 0,
        made.n_version_values,
        memory.piece_bytes // 4,
        bounds.group_size,
    )


def text(made: Plan) -> str:
    """What `fedsim check` says of it."""
    sizes = sizes_in_common(made, 1)
    if sizes.are_none:
        return "nothing: updates and versions travel by messages"
    return (
        f"besides, on rank zero's host: at most {sizes.n_rows:,} updates a worker, fewer where there are several, and "
        f"{sizes.n_slots:,} versions: {sizes.n_bytes(1):,} bytes with one worker"
    )
