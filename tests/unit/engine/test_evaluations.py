"""Evaluations: recorded in the order of versions, read `lag_versions` later, waited for only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fedsim.comm.transport import Evaluated
from fedsim.config import EvaluationConfig, TargetConfig
from fedsim.engine.evaluations import Evaluations, mean_metrics
from fedsim.types import EvaluationRow


class Workers:
    """Stands for the supply: results come when they are let in, or at the `n`-th time that they are waited for."""

    def __init__(self, patience: int = 3) -> None:
        self.issued: list[int] = []
        self.n_pumped = self.n_listened = 0
        self._patience = patience
        self._in: list[Evaluated] = []

    def evaluate(self, version: int) -> None:
        self.issued.append(version)

    def let_in(self, *versions: int, score: Callable[[int], float] = lambda version: version / 100.0) -> None:
        for version in versions:
            self.issued.remove(version)
            self._in.append(Evaluated(0, version, [EvaluationRow(-1, 5, 1.0, {"accuracy": score(version)})]))

    def evaluations(self) -> list[Evaluated]:
        done, self._in = self._in, []
        return done

    def pump(self) -> None:
        self.n_pumped += 1

    def check_living(self) -> None:
        pass

    def listen(self) -> bool:
        self.n_listened += 1
        if self.n_listened % self._patience == 0 and self.issued:
            self.let_in(self.issued[-1])  # the latest first: out of order
            return True
        return False


class Rows:
    def __init__(self) -> None:
        self.rows: list[Sequence[float]] = []

    def append(self, table: str, row: Sequence[float]) -> None:
        assert table == "evaluations"
        self.rows.append(row)

    def tick(self, now_s: float) -> None:
        pass

    @property
    def versions(self) -> list[float]:
        return [row[0] for row in self.rows]


def build(
    workers: Workers, target: float | None = None, has_tests: bool = True, **config: Any
) -> tuple[Evaluations, Rows]:
    rows, supply = Rows(), workers
    asked = None if target is None else TargetConfig(metric="accuracy", value=target)
    given: Any = supply
    return Evaluations(EvaluationConfig(**config), asked, given, rows, lambda: 7.0, has_tests), rows


def test_every_nth_version_is_evaluated() -> None:
    workers = Workers()
    evaluations, _ = build(workers, every_versions=3)
    for version in range(8):
        evaluations.published(version, float(version))
    assert workers.issued == [0, 3, 6]


def test_rows_are_in_the_order_of_versions() -> None:
    # 2 and 1 are in before 0: they wait for it. The time is that of the version, and that of the record.
    workers = Workers()
    evaluations, rows = build(workers, every_versions=1)
    for version in range(4):
        evaluations.published(version, 10.0 * version)
    workers.let_in(2, 1)
    evaluations.collect()
    assert rows.rows == [] and evaluations.latest == {}
    workers.let_in(0)
    evaluations.collect()
    assert rows.versions == [0, 1, 2] and rows.rows[2] == (2, 20.0, 7.0, -1, 5, 1.0, 0.02)
    assert evaluations.latest == {"loss": 1.0, "accuracy": 0.02}


@pytest.mark.parametrize("lag", [0, 1, 5])
def test_a_result_takes_effect_exactly_lag_versions_later(lag: int) -> None:
    # All results are in at once, but version 4's, the first to reach .04, is read at 4 + lag.
    workers = Workers()
    evaluations, _ = build(workers, target=0.04, every_versions=2, lag_versions=lag)
    reached = []
    for version in range(1, 20):
        evaluations.published(version, 0.0)
        workers.let_in(*list(workers.issued))
        evaluations.collect()
        reached.append(evaluations.target_reached(version))
    assert reached.index(True) + 1 == 4 + lag
    assert workers.n_listened == 0, "nothing had to be waited for"


def test_a_late_result_is_waited_for_and_only_then() -> None:
    workers = Workers(patience=4)
    evaluations, rows = build(workers, target=0.9, every_versions=5, lag_versions=2)
    for version in range(1, 7):
        evaluations.published(version, 0.0)
        assert not evaluations.target_reached(version)
    assert workers.n_listened == 0 and rows.versions == []
    evaluations.published(7, 0.0)
    assert not evaluations.target_reached(7)
    assert workers.n_listened == 4 == workers.n_pumped and rows.versions == [5]


def test_a_target_is_found_whatever_else_is_read_with_it() -> None:
    # Two results become readable together; the first reaches the target, the second does not.
    workers = Workers()
    evaluations, _ = build(workers, target=0.5, every_versions=1, lag_versions=3)
    for version in (1, 2):
        evaluations.published(version, 0.0)
    workers.let_in(1, 2, score=lambda version: 0.6 if version == 1 else 0.1)
    evaluations.collect()
    assert evaluations.target_reached(8)
    assert not evaluations.target_reached(9), "a result is judged once"


def test_the_last_version_is_evaluated_once_and_waited_for() -> None:
    workers = Workers()
    evaluations, rows = build(workers, every_versions=4)
    for version in range(6):
        evaluations.published(version, 0.0)
    evaluations.finish(5, 0.0)
    assert rows.versions == [0, 4, 5] and workers.n_pumped == 0, "no task is started at the end"
    again = Workers()
    evaluations, rows = build(again, every_versions=5)
    for version in range(6):
        evaluations.published(version, 0.0)
    evaluations.finish(5, 0.0)
    assert rows.versions == [0, 5]


def test_without_a_rhythm_only_the_last_is_evaluated() -> None:
    workers = Workers()
    evaluations, rows = build(workers, every_versions=None)
    for version in range(30):
        evaluations.published(version, 0.0)
    evaluations.finish(29, 0.0)
    assert rows.versions == [29]


def test_without_tests_nothing_is_evaluated() -> None:
    workers = Workers()
    evaluations, rows = build(workers, has_tests=False, every_versions=1)
    for version in range(5):
        evaluations.published(version, 0.0)
    evaluations.finish(4, 0.0)
    assert workers.issued == [] and rows.rows == []


def test_outstanding_evaluations_are_bounded() -> None:
    # Each keeps a version alive. Nobody answers before being waited for, and then the latest first: all 32 that are out
    # have to be in before the first of them can be recorded.
    workers = Workers(patience=1)
    evaluations, rows = build(workers, every_versions=1)
    for version in range(100):
        evaluations.published(version, 0.0)
        assert len(workers.issued) <= 32
    evaluations.finish(99, 0.0)
    assert rows.versions == list(range(100))


def test_mean_metrics() -> None:
    clients = [EvaluationRow(c, 10 * c, float(c), {"accuracy": c / 10}) for c in (1, 2, 6)]
    means = mean_metrics(clients)
    assert means == {"loss": 3.0, "accuracy": pytest.approx(0.3)}  # not by samples
    pooled = EvaluationRow(-1, 90, 8.0, {"accuracy": 0.5})
    assert mean_metrics([*clients, pooled]) == {"loss": 8.0, "accuracy": 0.5}
