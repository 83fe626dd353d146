"""Before the first task: do all ranks see the same run, and would they compute the same bits?

Each rank says what it made of the configuration, or why it failed; all compare what all said, so all come to the same
verdict.
This is the one place where objects are pickled: once, at the start, between ranks of one job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.errors import DataError, FedsimError, LaunchError


@dataclass(frozen=True)
class Statement:
    """What a rank says of itself: where it is, and either what went wrong or what it found."""

    rank: int
    host: str
    error: str = ""
    error_type: type[FedsimError] = LaunchError
    config_sha256: str = ""
    data_sha256: str = ""
    layout: str = ""
    code: str = ""
    device: str = ""
    environment: Mapping[str, str] | None = None
    cores: str = ""
    memory_nodes: str = ""


def agree(mine: Statement, gather: Callable[[Statement], list[Statement]], allow_mixed: bool) -> list[Statement]:
    """The statements of all ranks, by rank, if they agree.

    Raises:
        FedsimError: the same on every rank: the error that all of them met, or the rank and host that differ.
    """
    all_said = gather(mine)
    _raise_errors(all_said)
    first = all_said[0]
    for other in all_said[1:]:
        for what, attribute in (("configurations", "config_sha256"), ("models", "layout")):
            if getattr(other, attribute) != getattr(first, attribute):
                raise LaunchError(
                    f"ranks see different {what}: rank {other.rank} on {other.host} has "
                    f"{getattr(other, attribute)[:16]}, rank 0 on {first.host} {getattr(first, attribute)[:16]}"
                )
        if other.code != first.code:
            raise LaunchError(
                f"ranks see different code of yours: rank {other.rank} on {other.host} has {other.code}, "
                f"rank 0 on {first.host} {first.code}"
            )
        if other.data_sha256 != first.data_sha256:
            raise DataError(
                f"ranks see different data: rank {other.rank} on {other.host} has sha256 {other.data_sha256[:16]}, "
                f"rank 0 on {first.host} {first.data_sha256[:16]}"
            )
    if not allow_mixed:
        _compare_environments(all_said)
    return all_said


def _raise_errors(all_said: list[Statement]) -> None:
    failed = [said for said in all_said if said.error]
    if not failed:
        return
    first = failed[0]
    if len({said.error for said in failed}) == 1 and len(failed) == len(all_said):
        raise first.error_type(first.error)
    raise first.error_type(f"rank {first.rank} on {first.host}: {first.error}")


def _compare_environments(all_said: list[Statement]) -> None:
    """Workers have to be alike: of one CPU capability, one kind of device, one set of libraries and threads."""
    workers = all_said[1:] or all_said
    first: Any = workers[0].environment or {}
    for other in workers[1:]:
        theirs: Any = other.environment or {}
        for key in sorted({*first, *theirs}):
            if first.get(key) != theirs.get(key):
                raise LaunchError(
                    f"ranks would not compute the same bits: {key} is {theirs.get(key)} at rank {other.rank} on "
                    f"{other.host}, {first.get(key)} at rank {workers[0].rank} on {workers[0].host} "
                    "(allow_mixed: true runs all the same)"
                )
