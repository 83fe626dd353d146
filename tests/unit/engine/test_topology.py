"""Where ranks sit, as the record says it, and that what they get to do does not depend on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.engine import topology


@given(st.sets(st.integers(0, 300)))
def test_ranges_hold_the_same_numbers(found: set[int]) -> None:
    assert set(topology.numbers(topology.ranges(found))) == found


def test_memory_nodes_are_those_of_the_cores(tmp_path: Path) -> None:
    for number, text in ((0, "0-3,8-11\n"), (1, "4-7,12-15\n"), (2, "\n"), (10, "16\n")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(text)
    assert topology.memory_nodes("2-3", tmp_path) == "0"
    assert topology.memory_nodes("3-4,16", tmp_path) == "0-1,10"
    assert topology.memory_nodes("", tmp_path) == topology.memory_nodes("99", tmp_path) == ""


def test_the_record_says_where_its_ranks_sat(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "name": "seat",
        "data": {"dataset": "heart"},
        "model": {"kind": "logistic"},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "batch_size": 4, "steps": 1},
        "schedule": {"policy": "sync", "cohort": 2},
        "aggregation": {"rule": "fedavg"},
        "stop": {"versions": 1},
    }
    run = fedsim.run(config, tmp_path / "run")
    assert run is not None
    [place] = run.places
    assert place.local_rank == 0 and topology.numbers(place.cores) == sorted(os.sched_getaffinity(0))
    assert place.memory_nodes == topology.memory_nodes(place.cores)


@pytest.mark.parametrize("n_per_host", [(3, 3), (1, 5)])
def test_local_ranks_count_the_ranks_of_a_host(n_per_host: tuple[int, int]) -> None:
    hosts = [f"n{i}" for i, n in enumerate(n_per_host) for _ in range(n)]
    assert topology.local_ranks(hosts) == [i for n in n_per_host for i in range(n)]
