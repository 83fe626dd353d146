"""A run that waits for evaluations can be stopped there, and goes on to the bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

POLICIES: list[dict[str, Any]] = [{"policy": "async", "concurrency": 3}, {"policy": "sync", "cohort": 3}]
TARGET = {
    "evaluation": {"every_versions": 2, "lag_versions": 0},
    "stop": {"versions": 8, "target": {"metric": "accuracy", "value": 0.06}},
}
LAST_ALONE = {"evaluation": {"every_versions": None}, "stop": {"versions": 3}}
BY_TIME = {"evaluation": {"every_versions": 2}, "stop": {"virtual_s": 2.0}}


class Asked:
    """Asks for an end when asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self._n_left = n

    def __call__(self) -> bool:
        self._n_left -= 1
        return self._n_left <= 0


def told(result: Any) -> tuple[Any, ...]:
    """What has to be the same; the record's wall times are not."""
    evaluated = [(row[0], row[1], *row[3:]) for row in result.rows.tables["evaluations"]]
    return result.status, result.weights_P.tobytes(), result.rows.history(), evaluated


@pytest.mark.parametrize("policy", POLICIES, ids=["async", "sync"])
@pytest.mark.parametrize("sections", [TARGET, LAST_ALONE, BY_TIME], ids=["target", "last-alone", "by-time"])
def test_stopped_wherever_it_waits(
    sections: dict[str, Any], policy: dict[str, Any], bench: Any, config: Any, killing: Any, tmp_path: Path
) -> None:
    made = config(schedule=policy, **sections)
    whole = bench(n_workers=2).run(made)
    assert whole.status == "done"
    n_stopped = at_last = 0  # `at_last`: with the last version made
    for seed in range(8):  # of who answers when
        for n in range(1, 100):
            keeper = killing(tmp_path, (), -1)
            part = bench(n_workers=2, seed=seed, stop_requested=Asked(n)).run(made, keeper)
            if part.status == "done":
                assert told(part) == told(whole)
                break
            assert keeper.last is not None
            n_stopped += 1
            is_at_last = len(part.rows.tables["versions"]) == len(whole.rows.tables["versions"])
            at_last += is_at_last
            if seed == 0 or is_at_last:
                assert told(bench(n_workers=2).run(made, killing(tmp_path, (), -1), keeper.last)) == told(whole)
    assert n_stopped > 10 and at_last > 0, "it was stopped while its last evaluation was waited for, too"


def test_a_checkpoint_that_is_due_does_not_wait_for_the_last_evaluation(
    bench: Any, config: Any, killing: Any, tmp_path: Path
) -> None:
    made = config(**LAST_ALONE)
    whole = told(bench(n_workers=2).run(made))
    n_at_last = 0
    for seed in range(8):  # of who answers when
        keeper = killing(tmp_path, range(1, 1000), -1)
        bench(n_workers=2, seed=seed).run(made, keeper)
        if len(keeper.last.rows().tables["versions"]) == 3:
            n_at_last += 1
            assert told(bench(n_workers=2).run(made, killing(tmp_path, (), -1), keeper.last)) == whole
    assert n_at_last > 0


def test_on_the_wall_clock(bench: Any, config: Any, killing: Any, tmp_path: Path) -> None:
    made = config(clock="wall", **LAST_ALONE)
    n_versions = []
    for n in range(1, 60):
        keeper = killing(tmp_path, (), -1)
        part = bench(n_workers=2, stop_requested=Asked(n)).run(made, keeper)
        if part.status == "done":
            break
        n_versions.append(len(part.rows.tables["versions"]))
        resumed = bench(n_workers=2).run(made, killing(tmp_path, (), -1), keeper.last)
        assert resumed.status == "done" and len(resumed.rows.tables["versions"]) == 3
        assert [row[0] for row in resumed.rows.tables["evaluations"]] == [3]
    assert n_versions[-1] == 3


def test_the_wall_s_stop_keeps_what_was_before_its_own_last_evaluation(
    bench: Any, config: Any, killing: Any, tmp_path: Path
) -> None:
    made = config(evaluation={"every_versions": None}, stop={"versions": 20, "wall_s": 0.01})
    keeper = killing(tmp_path, (), -1)
    part = bench(n_workers=2).run(made, keeper)
    n = len(part.rows.tables["versions"])
    assert part.status == "stopped" and 0 < n < 20 and [row[0] for row in part.rows.tables["evaluations"]] == [n]
    whole = config(evaluation={"every_versions": None}, stop={"versions": 20})
    assert told(bench().run(whole, killing(tmp_path, (), -1), keeper.last)) == told(bench().run(whole))
