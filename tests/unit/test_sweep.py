"""`fedsim sweep`: its points, the frozen manifest, and going on where it was left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim import configfile
from fedsim.errors import ConfigError, RecordError
from fedsim.jobs import sweep
from fedsim.record.reader import open_run

ROOT = Path(__file__).parents[2]
HEART = ROOT / "configs" / "heart-async.yaml"


def fedsim(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim", *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=200)


def test_the_points_are_all_combinations_the_last_key_fastest(tmp_path: Path) -> None:
    made = sweep.grid(HEART, ("name=x",), ("seed=[1, 2]", "schedule.concurrency=[1,3]"), tmp_path)
    assert [point.overrides for point in made.points] == [
        ("name=x", f"seed={seed}", f"schedule.concurrency={n}") for seed in (1, 2) for n in (1, 3)
    ]
    assert [point.name for point in made.points] == [f"point-{i:05d}" for i in range(4)]
    loaded = configfile.load(HEART, made.points[3].overrides)
    assert (loaded.seed, loaded.schedule.concurrency) == (2, 3)
    assert made.points[3].config_sha256 == configfile.sha256(loaded)


@pytest.mark.parametrize("value", ['"a b"', "true", "null", "1e-3", "-.5", '"no"', '"1e3"', "ünï"])
def test_values_come_back_as_they_were_given(value: str) -> None:
    from fedsim import yamltree

    _, (given,) = sweep._axis(f"key=[{value}]")
    assert yamltree.parse_value(sweep._written(given), "x") == given


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ("seed", "expected key=[value, ...]"),
        ("seed=3", "expected key=[value, ...]"),
        ("seed=[]", "expected key=[value, ...]"),
        ("=[1]", "expected key=[value, ...]"),
        ("seed=[[1]]", "got a list or a mapping"),
        ("sed=[1]", "--set sed: unknown key; did you mean 'seed'?"),
        ("seed=[-1]", "--set seed: must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_gets_a_line(vary: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        sweep.grid(HEART, (), (vary,), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_too_many_points_are_refused_before_they_are_made(tmp_path: Path) -> None:
    many = "seed=[" + ",".join(map(str, range(400))) + "]"
    with pytest.raises(ConfigError, match="160,000 points, allowed: up to 100,000"):
        sweep.grid(HEART, (), (many, many.replace("seed", "schedule.concurrency")), tmp_path)


def test_a_manifest_is_written_once_and_read_by_all(tmp_path: Path) -> None:
    made = sweep.grid(HEART, (), ("seed=[1,2]",), tmp_path / "s")
    sweep.freeze(made)
    before = (tmp_path / "s" / sweep.MANIFEST).stat()
    sweep.freeze(made)
    assert (tmp_path / "s" / sweep.MANIFEST).stat().st_mtime_ns == before.st_mtime_ns
    assert sweep.read(tmp_path / "s") == made
    with pytest.raises(RecordError, match="is there already, of another sweep"):
        sweep.freeze(sweep.grid(HEART, (), ("seed=[1,3]",), tmp_path / "s"))
    assert [path.name for path in (tmp_path / "s").iterdir()] == [sweep.MANIFEST]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1, "config": "a", "points": []}',
        '{"version": 2, "config": "a", "points": [{"name": "point-00000", "overrides": [], "config_sha256": ""}]}',
        '{"version": 1, "config": "a", "points": [{"name": "../x", "overrides": [], "config_sha256": ""}]}',
        '{"version": 1, "config": "a", "points": [{"name": "point-00000", "overrides": "x", "config_sha256": ""}]}',
        '{"version": 1, "config": 3, "points": [{"name": "point-00000", "overrides": [], "config_sha256": ""}]}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_gets_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / sweep.MANIFEST).write_text(text)
    with pytest.raises(RecordError, match="not a sweep's manifest"):
        sweep.read(tmp_path)


def test_a_changed_configuration_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(HEART.read_text())
    made = sweep.grid(own, (), ("seed=[1]",), tmp_path / "s")
    made.check(made.points[0])
    own.write_text(HEART.read_text().replace("alpha: 0.6", "alpha: 0.5"))
    with pytest.raises(ConfigError, match=r"changed since .* was frozen"):
        made.check(made.points[0])


def test_a_sweep_runs_skips_what_is_done_and_goes_on(tmp_path: Path) -> None:
    words = ("sweep", str(HEART), "--vary", "seed=[1,2,3]", "--set", "stop.versions=4", "--out", "s")
    done = fedsim(*words, "--point", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", "point-00001"]
    done = fedsim("sweep", "s", cwd=tmp_path)
    assert done.returncode == 0 and "point-00001: done already" in done.stderr
    runs = [open_run(tmp_path / "s" / f"point-0000{i}") for i in range(3)]
    assert [run.attributes["seed"] for run in runs] == [1, 2, 3] and {run.status for run in runs} == {"done"}
    shown = fedsim("compare", "s", "--json", cwd=tmp_path)
    (row,) = json.loads(shown.stdout)
    assert row["seeds"] == [1, 2, 3] and row["values"]["versions"] == {"mean": 4.0, "deviation": 0.0, "n_runs": 3}
    assert row["values"]["accuracy"]["deviation"] > 0.0
    refused = fedsim("sweep", "s", "--point", "3", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "fedsim: --point is 3; allowed: 0 to 2\n")


def test_a_signal_ends_a_sweep_with_a_checkpoint_and_it_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedsim", "sweep", str(HEART), "--vary", "seed=[1]", "--out", "s"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "FEDSIM_INJECT": "sleep:0.1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=environ)
    point = tmp_path / "s" / "point-00000"
    give_up_s = time.monotonic() + 90
    while not list(point.glob("record-*.h5")) and time.monotonic() < give_up_s:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(90) == 75
    assert json.loads((tmp_path / "s" / sweep.MANIFEST).read_text())["points"]
    done = fedsim("sweep", "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [attempt["status"] for attempt in open_run(point).attempts] == ["stopped", "done"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_point_without_a_record_is_begun_again(ranks: int, tmp_path: Path) -> None:
    """What a start leaves that is killed before its record is there."""
    words = ("sweep", str(HEART), "--vary", "seed=[1]", "--set", "stop.versions=4", "--out", "s", "--freeze")
    assert fedsim(*words, cwd=tmp_path).returncode == 0
    (point,) = sweep.read(tmp_path / "s").points
    left = tmp_path / "s" / point.name
    left.mkdir()
    (left / "config.yaml").write_text(configfile.resolved_text(configfile.load(HEART, point.overrides)))
    mpirun = os.environ.get("FEDSIM_TEST_MPIRUN", "mpirun")
    env = {"FEDSIM_MPIRUN": f"{mpirun} --bind-to none --map-by :OVERSUBSCRIBE"}
    done = fedsim("sweep", "s", "--ranks", str(ranks), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert open_run(left).status == "done"
