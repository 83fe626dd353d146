"""The first promise: a virtual-time run has the same bits on any number of ranks, wherever clients are hosted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ran = Callable[..., dict[str, Any]]

CONFIGS = ("heart-async", "digits-buffered", "images-sync")
SMALLEST = tuple(
    f"memory.{name}=0"
    for name in ("server_updates_bytes", "server_versions_bytes", "worker_updates_bytes", "worker_versions_bytes")
)
SAME = ("model_sha256", "history_sha256", "metrics", "versions", "updates", "virtual_s", "status")


def _same(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in SAME}


@pytest.fixture(scope="module")
def inline(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The summary of a configuration's run without MPI, made once."""
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = ran(1, tmp_path_factory.mktemp("inline") / name, f"configs/{name}.yaml")
        return known[name]

    return get


@pytest.mark.parametrize("placement", ["home", "dynamic"])
@pytest.mark.parametrize("n", [2, 3, 5, 9])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_number_of_ranks(
    name: str, n: int, placement: str, ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    there = ran(n, tmp_path / "run", f"configs/{name}.yaml", f"placement={placement}")
    assert there["ranks"] == n
    assert there["status"] == "done"
    assert _same(there) == _same(inline(name))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("group_size", [1, 4])
def test_the_smallest_memory_bounds(
    name: str, group_size: int, ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    sets = (*SMALLEST, f"training.group_size={group_size}", "placement=balanced")
    assert _same(ran(3, tmp_path / "run", f"configs/{name}.yaml", *sets)) == _same(inline(name))


def test_the_smallest_memory_bounds_without_mpi(
    ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    there = ran(1, tmp_path / "run", "configs/digits-buffered.yaml", *SMALLEST, "training.group_size=3")
    assert _same(there) == _same(inline("digits-buffered"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_worker_slowed_by_random_sleeps(
    name: str, ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    there = ran(4, tmp_path / "run", f"configs/{name}.yaml", env={"FEDSIM_INJECT": "sleep:0.02@2"})
    assert _same(there) == _same(inline(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_another_mpi(
    name: str, ran: Ran, start_mpich: Any, inline: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    there = ran(3, tmp_path / "run", f"configs/{name}.yaml", how=start_mpich)
    assert there["ranks"] == 3
    assert _same(there) == _same(inline(name))


def test_more_ranks_than_clients(ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    there = ran(7, tmp_path / "run", "configs/heart-async.yaml")
    assert _same(there) == _same(inline("heart-async"))


def test_another_seed_gives_another_history(ran: Ran, inline: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    other = ran(1, tmp_path / "run", "configs/heart-async.yaml", "seed=2")
    assert other["history_sha256"] != inline("heart-async")["history_sha256"]
    assert other["model_sha256"] != inline("heart-async")["model_sha256"]
