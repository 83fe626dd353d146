"""Small records to read: what a run of some tasks leaves behind. Programs that tests start load this file, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.record.join import join
from fedsim.record.pieces import attempt_name
from fedsim.record.provenance import Provenance, RankPlace, RunFacts, collect
from fedsim.record.schema import (
    EvaluationRecord,
    RecordPlan,
    RunTotals,
    TaskRow,
    VersionRow,
    WorkerRow,
    scalar_column,
)
from fedsim.record.writer import RecordWriter
from fedsim.types import Outcome

NAN = float("nan")
WEIGHTS = np.arange(6, dtype=np.float32)


def task_row(task: int, shift: float = 0.0) -> tuple[float, ...]:
    """Task `task`, whose every column can be told from its number; every third is lost. `shift` moves its weight."""
    lost = task % 3 == 2
    row = TaskRow(
        task=task,
        client=task % 4,
        worker=-1 if lost else 1,
        outcome=Outcome.LOST if lost else Outcome.APPLIED,
        base_version=task // 2,
        applied_version=-1 if lost else task,
        staleness=-1 if lost else task - task // 2,
        virtual_dispatch_s=task * 1.0,
        virtual_download_s=0.25,
        virtual_compute_s=0.5,
        virtual_upload_s=0.25,
        virtual_arrival_s=task + 1.0,
        wall_dispatch_s=task * 0.1,
        wall_arrival_s=NAN if lost else task * 0.1 + 0.05,
        train_s=0.01,
        n_samples=40,
        n_steps=4,
        loss_before=0.7,
        loss_after=0.6,
        weight=NAN if lost else 1.0 + task / 8 + shift,
        update_norm=2.0,
    )
    return (*row, task * 0.5)


def evaluation(version: int, client: int, loss: float, accuracy: float) -> tuple[float, ...]:
    """A row of `evaluations` on 20 samples."""
    return (*EvaluationRecord(version, version * 1.0, version * 0.1, client, 20, loss), accuracy)


def facts_of(attempt: int = 0, seed: int = 3, **changes: object) -> RunFacts:
    """What the engine would say of a made-up run on two ranks."""
    given: dict[str, object] = {
        "name": f"made-up-{seed}",
        "clock": "virtual",
        "policy": "async",
        "rule": "fedasync",
        "dataset": "heart",
        "config_text": f"name: made-up-{seed}\nseed: {seed}\nclock: virtual\ndata:\n  seed: fixed\n",
        "command": ("fedsim", "run", "ünïcode.yaml"),
        "created": "2025-01-02T03:04:05+00:00",
        "data_sha256": "ab" * 32,
        "training_path": "loop",
        "group_size": 1,
        "threads": 1,
        "places": (RankPlace(0, "node1", "cpu", "AVX2"), RankPlace(1, "node2", "cuda:0", "AVX2")),
    }
    return RunFacts(attempt=attempt, seed=seed, **(given | changes))  # type: ignore[arg-type]


def provenance_of(attempt: int = 0, seed: int = 3, **changes: object) -> Provenance:
    return collect(facts_of(attempt, seed, **changes), {"SLURM_JOB_ID": "77", "HOME": "/root"}, Path("/"))


def plan_of(
    start_rows: dict[str, int] | None = None, names: tuple[str, ...] = (), tail_rows: dict[str, int] | None = None
) -> RecordPlan:
    return RecordPlan(
        n_parameters=6,
        layout=(("weight", (2, 2), 0), ("bias", (2,), 4)),
        client_names=names,
        rule_scalars=(scalar_column("discount", "staleness discount"),),
        metrics=(scalar_column("accuracy", "share of right answers"),),
        start_rows=tuple((start_rows or {}).items()),
        tail_rows=tuple((tail_rows or {}).items()),
    )


class Records:
    """Makes records in a run folder."""

    task_row = staticmethod(task_row)
    evaluation = staticmethod(evaluation)
    facts_of = staticmethod(facts_of)
    weights = WEIGHTS

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(
        self,
        tasks: range = range(0),
        attempt: int = 0,
        start_rows: dict[str, int] | None = None,
        seed: int = 3,
        names: tuple[str, ...] = (),
        shift: float = 0.0,
        tail_rows: dict[str, int] | None = None,
    ) -> RecordWriter:
        """An attempt's record with these tasks, a version each, and a row of worker 1: flushed, not closed."""
        path = self.folder / attempt_name(attempt)
        writer = RecordWriter(path, provenance_of(attempt, seed), plan_of(start_rows, names, tail_rows))
        for task in tasks:
            writer.append("tasks", task_row(task, shift))
            writer.append("versions", VersionRow(task + 1, task + 1.0, task * 0.1, 1, 1.0, 0.0, 0))
        n = len(tasks)
        writer.append("workers", WorkerRow(n * 0.1, 1, n, 1, n * 0.05, n * 0.01, n * 0.02, 0.0, 9, 8, 0.5, 1000))
        writer.flush()
        return writer

    def finish(self, writer: RecordWriter, n_tasks: int, wall_s: float = 4.0, status: str = "done") -> None:
        """Ends an attempt of a run that came to `n_tasks` tasks."""
        applied = sum(1 for task in range(n_tasks) if task % 3 != 2)
        writer.close(status, RunTotals(n_tasks, applied, float(n_tasks), wall_s), WEIGHTS)

    def finished(self, n_tasks: int = 12, seed: int = 3) -> Path:
        """The folder of a run that is done and joined, with evaluations of two clients."""
        with self.begin(range(n_tasks), seed=seed, names=("north", "south")) as writer:
            for version in (0, n_tasks):
                writer.append("evaluations", evaluation(version, 1, 0.75 + seed / 8, 0.25))
                writer.append("evaluations", evaluation(version, 0, 0.25 + seed / 8, 0.75))
            writer.append("failures", (0.5, 1, -1, -1, "Slow", "worker 1 was slow: ünïcode"))
            self.finish(writer, n_tasks)
        join(self.folder)
        return self.folder


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)
