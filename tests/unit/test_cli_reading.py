"""`check`, `list`, `show`, `compare`, `watch` on a record of a small run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fedsim
from fedsim.cli import cli
from fedsim.cli.planning import KINDS, entries
from fedsim.cli.reading import plot_path
from fedsim.cli.watching import Look, follow
from fedsim.record.store import put_status

CONFIG = """\
name: tiny
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.01}, batch_size: 4, steps: 2}
schedule: {policy: async, concurrency: 2}
aggregation: {rule: fedasync}
stop: {versions: 3}
"""


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run_folder(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fedsim.run(config_path, out=folder)
    return folder


def fedsim_says(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="fedsim")


def test_check_says_what_would_happen(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = fedsim_says("check", config_path, "--set", "stop.versions=7")
    assert result.exit_code == 0
    lines = {line[:14].strip(): line[14:].strip() for line in result.stdout.splitlines()}
    assert lines["stops at"] == "7 versions"
    assert lines["data"].startswith("heart: 4 clients")
    assert not list(tmp_path.iterdir()), "checking leaves nothing behind"


def test_check_refuses_what_cannot_run(config_path: Path) -> None:
    result = fedsim_says(
        "check", config_path, "--set", "schedule={policy: sync, cohort: 5}", "--set", "aggregation={rule: fedavg}"
    )
    assert result.exit_code == 2 and result.stderr.startswith("fedsim: ") and "cohort" in result.stderr
    assert result.stderr.count("\n") == 1


def test_show_json_is_the_summary(run_folder: Path) -> None:
    result = fedsim_says("show", run_folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == fedsim.open_run(run_folder).summary()


def test_show_prints_a_table(run_folder: Path) -> None:
    result = fedsim_says("show", run_folder)
    summary = fedsim.open_run(run_folder).summary()
    assert result.exit_code == 0 and summary["model_sha256"] in result.stdout
    assert "\x1b" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 120


def test_show_plots_and_joins(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run_folder, folder)
    (folder / "record.h5").unlink()
    result = fedsim_says("show", folder, "--plot", "--join", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["status"] == "done"
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "record.h5").stat().st_size > 0
    assert str(folder / "plot.png")[-20:] in fedsim_says("show", folder, "--plot").stdout


def test_where_plots_go(tmp_path: Path) -> None:
    assert plot_path(tmp_path) == tmp_path / "plot.png"
    assert plot_path(tmp_path / "record-000.h5") == tmp_path / "record-000.png"


def test_compare_puts_runs_side_by_side(run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    result = fedsim_says("compare", run_folder, other)
    assert result.exit_code == 0 and "accuracy" in result.stdout and "tiny" in result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_list_explains_every_choice(kind: str) -> None:
    found = entries(kind)
    assert found and len({entry.name for entry in found}) == len(found)
    for entry in found:
        assert len(entry.text.split(" [")[0]) > 10, f"{kind} {entry.name} has no description"
        assert "\n" not in entry.text
    text = fedsim_says("list", kind).stdout
    assert all(f"  {entry.name} " in text for entry in found)
    assert text in fedsim_says("list").stdout


def test_list_names_what_the_configuration_takes() -> None:
    policies = ["sync", "async", "buffered", "k-async", "window", "tiers", "pisces", "compass", "safa"]
    assert [entry.name for entry in entries("policies")] == policies
    assert [entry.name for entry in entries("optimizers")] == ["sgd", "adam", "adamw"]
    assert dict(entries("policies"))["k-async"].endswith("[concurrency, k, selection=uniform]")


# -------------------------------------------------------------------------------------------------- watch


def test_watching_a_finished_run(run_folder: Path) -> None:
    result = fedsim_says("watch", run_folder)
    assert result.exit_code == 0
    first, last = result.stdout.splitlines()
    assert "version 3 | 3 updates" in first and "accuracy" in first
    assert last == "status: done"


@pytest.mark.parametrize(("status", "code"), [("stopped", 0), ("stalled", 76), ("failed", 70)])
def test_watch_ends_as_the_run_did(run_folder: Path, tmp_path: Path, status: str, code: int) -> None:
    import h5py

    path = tmp_path / "record-000.h5"
    shutil.copy(run_folder / "record-000.h5", path)
    with h5py.File(path, "r+") as file:
        put_status(file, status)
    result = fedsim_says("watch", path)
    assert result.exit_code == code and result.stdout.endswith(f"status: {status}\n")


class Story:
    """A record that goes through given looks, on a clock of its own; the last look stays."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.looks = list(looks)
        self.now_s = 0.0
        self.said: list[str] = []

    def look(self) -> Look:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def follow(self, patience_s: float = 600.0) -> int:
        clock: Callable[[], float] = lambda: self.now_s  # noqa: E731
        return follow(self.look, 2.0, patience_s, self.said.append, clock, self.sleep)


def test_watch_tells_only_what_is_new() -> None:
    looks = [
        ("running", (1,), (1,), "a"),
        ("running", (1,), (2,), "b"),
        ("running", (2,), (3,), "c"),
        ("done", (3,), (4,), "d"),
    ]
    story = Story([Look(*look) for look in looks])
    assert story.follow() == 0
    assert story.said == ["a", "c", "d", "status: done"]
    assert story.now_s == 6.0


def test_watch_gives_up_on_a_record_that_nobody_writes() -> None:
    story = Story([Look("running", (1,), (1,), "a"), Look("running", (2,), (2,), "b")])
    assert story.follow(patience_s=100.0) == 77
    assert story.said[:2] == ["a", "b"]
    assert story.said[2].startswith("nothing was written for 30 s; was the run killed?")
    assert story.said[3] == "status: killed (the record says running, but nothing was written for 100 s)"
    assert len(story.said) == 4 and 100.0 <= story.now_s <= 104.0


def test_watch_is_patient_while_workers_report() -> None:
    alive = [Look("running", (1,), (n,), "a") for n in range(500)]
    story = Story([*alive, Look("done", (1,), (500,), "a")])
    assert story.follow(patience_s=60.0) == 0
    assert story.said == ["a", "status: done"] and story.now_s == 1000.0
