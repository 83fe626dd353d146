"""What rank zero takes at most, beside Python and its libraries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.engine.plan import Plan

_OTHER_BYTES = 2**25  # code that is loaded for large models, MPI's own, and what the allocator keeps: 16 MiB were seen


@dataclass(frozen=True)
class ServerMemory:
    """Bytes at rank zero: the model as built and as a vector; what the rule keeps; updates; versions, with the one that
    is being made; and a version for each worker that one is on its way to."""

    model: int
    rule: int
    updates: int
    versions: int
    a_version: int

    def total(self, n_workers: int) -> int:
        """All of it; while a checkpoint is written, what the rule keeps is there twice."""
        return self.model + self.rule + self.updates + self.versions + n_workers * self.a_version + _OTHER_BYTES

    def text(self) -> str:
        return (
            f"at most {self.total(0):,} bytes beside Python: {self.model:,} for the model, {self.rule:,} for the rule "
            f"(twice that while a checkpoint is written), {self.updates:,} for updates, {self.versions:,} for "
            f"versions, {_OTHER_BYTES:,} for what is small; and {self.a_version:,} for each worker that a version is "
            "on its way to"
        )


def server_memory(made: Plan, n_updates_a_version: int) -> ServerMemory:
    """What a run's plan allows."""
    n, rows = made.layout.n_parameters, made.bounds
    in_memory = max(1, made.config.memory.server_versions_bytes // made.version_bytes)
    decoded = 0 if made.codec is None else 4 * n
    return ServerMemory(
        model=8 * n,
        rule=made.rule.keeps.n_bytes(n, made.n_eligible, n_updates_a_version),
        updates=rows.server_rows * rows.buffer_rows * made.update_bytes + decoded,
        versions=(in_memory + 1) * made.version_bytes,
        a_version=made.version_bytes,
    )
