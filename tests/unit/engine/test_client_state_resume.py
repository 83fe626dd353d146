"""What clients keep is in checkpoints: a run that was stopped goes on to the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.engine.launching import ALONE
from fedsim.engine.run import Caller, resume_run, run_file
from fedsim.record.reader import open_run

CONFIG = """
name: states
seed: 5
data: {dataset: synthetic-leaf, clients: 12, features: 9, classes: 3, max_samples: 60}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.05}, batch_size: 8, steps: 5, order: continued}
devices:
  compute: {time: {law: exponential, mean: 1.0}}
  loss_probability: 0.2
schedule: {policy: sync, cohort: 4, over_selection: 1.5, deadline_s: 3.0}
aggregation: {rule: %s}
%s
evaluation: {every_versions: 5}
stop: {versions: 30}
checkpoint: {every_versions: 4}
"""


class After:
    """Asks for an end when asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self._n_left = n

    def __call__(self) -> bool:
        self._n_left -= 1
        return self._n_left < 0


TOP_K = "compression: {updates: {kind: top-k, fraction: 0.1}, versions: float16}"
BATCH_NORM = "model: {kind: mlp, hidden: [6], norm: batch, buffers: %s}"


CASES = {
    "scaffold": ("scaffold", ""),
    "feddyn": ("feddyn", ""),
    "top-k": ("fedavg", TOP_K),
    "ditto": ("fedavg", "personalization: {kind: ditto}"),
    "fine-tune": ("fedadam", "personalization: {kind: fine-tune, steps: 2}"),
    "fedbn": ("scaffold", "personalization: {kind: fedbn, layers: ['1']}\n" + BATCH_NORM % "local"),
    "buffers": ("fedadam", BATCH_NORM % "average"),
}


@pytest.mark.parametrize(("case", "n_asked"), [("scaffold", 40), ("feddyn", 40), *((case, 90) for case in CASES)])
def test_the_bits_of_the_undisturbed_run(case: str, n_asked: int, tmp_path: Path) -> None:
    rule, more = CASES[case]
    path = tmp_path / "config.yaml"
    config = CONFIG % (rule, more)
    if "norm: batch" in more:  # whose clients have 40 samples each: no batch of one
        config = config.replace("model: {kind: logistic}\n", "").replace("max_samples: 60", "max_samples: 50")
    path.write_text(config)
    run_file(path, (), tmp_path / "whole", Caller(ALONE))
    ending = run_file(path, (), tmp_path / "cut", Caller(ALONE, stop_requested=After(n_asked)))
    assert ending is not None and ending.status == "stopped"
    stopped_at = open_run(tmp_path / "cut").n_rows("versions")
    assert 0 < stopped_at < 30
    resume_run(tmp_path / "cut", Caller(ALONE))
    whole, resumed = open_run(tmp_path / "whole"), open_run(tmp_path / "cut")
    assert resumed.status == "done"
    for table, column in (("evaluations", "loss"), ("tasks", "update_norm"), ("tasks", "weight")):
        assert np.array_equal(whole.column(table, column), resumed.column(table, column), equal_nan=True)
    assert np.array_equal(whole.column("personal", "loss"), resumed.column("personal", "loss"))
    assert bool(whole.n_rows("personal")) == ("ditto" in more or "fine-tune" in more)
