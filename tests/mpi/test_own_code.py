"""Code of the user's own on several ranks: the same bits as on one, and what fails ends all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim

OWN = Path(__file__).parents[2] / "configs" / "own"
SETS = ("--set", "stop.versions=20", "--set", "evaluation.every_versions=null")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples."""
    for name in ("mine.py", "all.yaml"):
        (tmp_path / name).write_text((OWN / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def facts(run: Path) -> dict[str, Any]:
    summary = fedsim.open_run(run).summary()
    return {key: summary[key] for key in ("status", "model_sha256", "history_sha256", "metrics", "rule")}


def test_the_same_bits_on_one_and_three_ranks(folder: Path, start: Callable[..., Any]) -> None:
    fedsim.run(folder / "all.yaml", folder / "r1", overrides=SETS[1::2], allow_code=True)
    done = start(3, "run", str(folder / "all.yaml"), "--out", str(folder / "r3"), "--quiet", "--allow-code", *SETS)
    assert done.returncode == 0, done.stderr
    assert facts(folder / "r1") == facts(folder / "r3")
    assert facts(folder / "r1")["rule"] == "./mine.py:half_median"


def test_a_rule_that_fails_ends_all_ranks(folder: Path, start: Callable[..., Any]) -> None:
    text = (folder / "mine.py").read_text(encoding="utf-8")
    broken = text.replace(
        "    fresh = [", "    if len(updates) and updates[0].staleness > 0:\n        {}['x']\n    fresh = ["
    )
    (folder / "mine.py").write_text(broken, encoding="utf-8")
    line = broken[: broken.index("{}['x']")].count("\n") + 1
    done = start(3, "run", str(folder / "all.yaml"), "--out", str(folder / "r"), "--quiet", "--allow-code", *SETS)
    assert done.returncode == 2, done.stderr
    assert f"fedsim: ./mine.py:half_median: mine.py:{line}, in half_median: KeyError: 'x'" in done.stderr
    run = fedsim.open_run(folder / "r")
    assert run.status == "failed" and run.failures.kind.iloc[-1] == "UserCodeError"


STATEFUL = """\
name: kept
data: {dataset: ./mine.py:two_moons, options: {clients: 8, samples: 60}}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.1}, batch_size: 10, epochs: 1}
schedule: {policy: sync, cohort: 4}
aggregation: {rule: scaffold}
stop: {versions: 20}
"""


def test_a_run_that_goes_back_keeps_the_leave_to_load_code(folder: Path, start_tolerant: Callable[..., Any]) -> None:
    """A worker dies with what its clients kept: those that are left plan the run again, own data set and all."""
    (folder / "kept.yaml").write_text(STATEFUL, encoding="utf-8")
    words = ("run", str(folder / "kept.yaml"), "--out", str(folder / "r"), "--quiet", "--allow-code")
    done = start_tolerant(4, *words, env={"FEDSIM_INJECT": "kill:3@1"})
    assert done.returncode == 0, done.stderr
    assert [attempt["status"] for attempt in fedsim.open_run(folder / "r").attempts] == ["lost", "done"]
