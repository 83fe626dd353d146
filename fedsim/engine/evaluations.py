"""Evaluations under way: they run on workers, are recorded in the order of versions, and never hold up the engine.

What reads one (the target stop) does so `lag_versions` after its version; only then is a late result waited for. What
else is to be seen to meanwhile, `while_waiting` does, which may end the waiting by raising an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from fedsim import states
from fedsim.config import EvaluationConfig, TargetConfig
from fedsim.engine.supply import Supply
from fedsim.snapshot import Snapshot
from fedsim.types import EvaluationRow

_FALLING = ("loss", "mse", "mae")  # metrics of which less is better
_MOST_OUTSTANDING = 32  # each keeps a version alive


def _nothing() -> None:
    return None


class Recorder(Protocol):
    """What the engine asks of the record."""

    def append(self, table: str, row: Sequence[float]) -> None: ...

    def extend_columns(self, table: str, columns: Sequence[NDArray[Any]]) -> None: ...

    def tick(self, now_s: float) -> None: ...

    def flush(self) -> None: ...

    def is_due(self, now_s: float) -> bool: ...

    def rows(self) -> dict[str, int]: ...


def mean_metrics(rows: Sequence[EvaluationRow], is_personal: bool = False) -> dict[str, float]:
    """Loss and metrics of an evaluation: the pooled set's if there is one, else the unweighted mean over clients.

    `is_personal`: of the clients' second models, in place of the version.
    """
    rows = [row for row in rows if row.is_personal == is_personal]
    chosen = [row for row in rows if row.client == -1] or rows
    names = chosen[0].metrics
    means = {"loss": math.fsum(row.loss for row in chosen) / len(chosen)}
    return means | {name: math.fsum(row.metrics[name] for row in chosen) / len(chosen) for name in names}


_PLACES = {"virtual_s": "_virtual_s", "means": "_means", "last_issued": "_last_issued", "latest": "latest"}


def _columns(rows: Sequence[EvaluationRow]) -> dict[str, list[float]]:
    """An evaluation as a few lists, for a checkpoint; every row has the same metrics."""
    plain: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in ("client", "n_samples", "loss", "is_personal")
    }
    return plain | {f"metric {name}": [row.metrics[name] for row in rows] for name in rows[0].metrics}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[EvaluationRow]:
    names = [name for name in columns if name.startswith("metric ")]
    plain = zip(columns["client"], columns["n_samples"], columns["loss"], strict=True)
    metrics = [{name.removeprefix("metric "): columns[name][i] for name in names} for i in range(len(columns["loss"]))]
    whose = columns.get("is_personal", [False] * len(metrics))  # a checkpoint of before there were second models
    return [
        EvaluationRow(*values, named, is_personal)
        for values, named, is_personal in zip(plain, metrics, whose, strict=True)
    ]


class Evaluations:
    """The evaluations of a run; without test data there are none."""

    def __init__(
        self,
        config: EvaluationConfig,
        target: TargetConfig | None,
        supply: Supply,
        recorder: Recorder,
        clock: Callable[[], float],
        has_tests: bool,
    ) -> None:
        self._has_tests = has_tests
        self._config = config
        self._target = target
        self._supply = supply
        self._recorder = recorder
        self._clock = clock
        self._virtual_s: dict[int, float] = {}  # issued and not yet recorded, by version
        self._results: dict[int, Sequence[EvaluationRow]] = {}  # in, but an earlier one is not
        self._means: dict[int, dict[str, float]] = {}  # recorded, not yet judged
        self._last_issued = -1
        self.latest: dict[str, float] = {}

    def published(self, version: int, virtual_s: float, while_waiting: Callable[[], None] = _nothing) -> None:
        """Called with every new version: evaluates it if it is one of those to be evaluated, once."""
        if self.are_due(version) and version > self._last_issued:
            self._issue(version, virtual_s, while_waiting)
        self.collect()

    def are_due(self, version: int) -> bool:
        """Whether a version is one of those to be evaluated."""
        every = self._config.every_versions
        return self._has_tests and every is not None and version % every == 0

    def n_versions_at_once(self, version: int) -> int | None:
        """How many versions after this one can be made before one has to wait for its evaluation's place; None: any."""
        every = self._config.every_versions
        if not self._has_tests or every is None:
            return None
        self.collect()
        n_free = _MOST_OUTSTANDING - len(self._virtual_s)
        return (version // every + n_free + 1) * every - 1 - version

    def target_reached(self, version: int, while_waiting: Callable[[], None] = _nothing) -> bool:
        """Whether an evaluation that may be read at this version reached the target; waits for it if it must.

        Each is judged once: asked again at the same version the answer is no.
        """
        if self._target is None:
            return False
        readable = version - self._config.lag_versions
        while any(issued <= readable for issued in self._virtual_s):
            self._supply.pump()
            self._wait(while_waiting)
        judged = [v for v in self._means if v <= readable]
        return any([self._reaches(self._means.pop(v)) for v in judged])

    def finish(self, version: int, virtual_s: float, while_waiting: Callable[[], None] = _nothing) -> None:
        """Evaluates the last version if that was not done, and waits for what is outstanding; no task starts now."""
        if self._has_tests and version != self._last_issued:
            self._issue(version, virtual_s, while_waiting)
        self.drain(while_waiting)

    def drain(self, while_waiting: Callable[[], None] = _nothing) -> None:
        """Waits for all that is outstanding."""
        while self._virtual_s:
            self._wait(while_waiting)

    def collect(self) -> None:
        """Records the evaluations that came in, in the order of their versions."""
        if not self._virtual_s:
            return
        for message in self._supply.evaluations():
            self._results[message.version] = message.rows
        for version in sorted(self._virtual_s):
            if version not in self._results:
                return
            self._record(version, self._results.pop(version))

    def outstanding(self) -> list[int]:
        """The versions whose results are not in: those that are still needed here."""
        return [version for version in self._virtual_s if version not in self._results]

    def snapshot(self) -> Snapshot:
        """What is outstanding, what is in and waits for an earlier one, and what is not judged yet."""
        state = {name: getattr(self, place) for name, place in _PLACES.items()}
        results = {version: _columns(rows) for version, rows in self._results.items()}
        return states.of(state | {"results": results})

    def restore(self, saved: Snapshot) -> None:
        """Goes on from a snapshot; what was outstanding is asked for again. The versions must be there by now."""
        here = {name: getattr(self, place) for name, place in _PLACES.items()}
        state = states.restored(saved, here | {"results": {}})
        for name, place in _PLACES.items():
            setattr(self, place, state[name])
        self._results = {version: _rows(columns) for version, columns in state["results"].items()}
        for version in self.outstanding():
            self._supply.evaluate(version)

    def _issue(self, version: int, virtual_s: float, while_waiting: Callable[[], None]) -> None:
        while len(self._virtual_s) >= _MOST_OUTSTANDING:
            self._supply.pump()
            self._wait(while_waiting)
        self._virtual_s[version] = virtual_s
        self._last_issued = version
        self._supply.evaluate(version)

    def _wait(self, while_waiting: Callable[[], None]) -> None:
        self._supply.listen()
        self.collect()
        if self._virtual_s:
            while_waiting()
        self._supply.check_living()

    def _record(self, version: int, rows: Sequence[EvaluationRow]) -> None:
        virtual_s, wall_s = self._virtual_s.pop(version), self._clock()
        for row in rows:
            values = (version, virtual_s, wall_s, row.client, row.n_samples, row.loss, *row.metrics.values())
            self._recorder.append("personal" if row.is_personal else "evaluations", values)
        self.latest = mean_metrics(rows)
        if self._target is not None:
            self._means[version] = mean_metrics(rows, self._target.of == "personal")

    def _reaches(self, means: dict[str, float]) -> bool:
        assert self._target is not None
        value = means[self._target.metric]
        return value <= self._target.value if self._target.metric in _FALLING else value >= self._target.value
