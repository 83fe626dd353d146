"""Benchmarks: what they read out of a record, how they start runs, and that each of them works in a tiny setting."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from fedsim.bench import bench, configs
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import environment, find_mpirun, launcher_in, run_folder
from fedsim.bench.machine import this_machine
from fedsim.bench.measure import resident_bytes, share_of_time, steady
from fedsim.cli import cli
from fedsim.configfile import from_mapping
from fedsim.errors import LaunchError, RecordError
from fedsim.record.provenance import Provenance
from fedsim.record.reader import Run, open_run
from fedsim.record.schema import SCHEMA_VERSION, TASKS, RecordPlan, TaskRow, VersionRow, WorkerRow
from fedsim.record.writer import RecordWriter
from fedsim.types import Outcome

NAN = float("nan")
TIMEOUT_S = 300
SHARED = ["--json", "--repeat", "--updates", "--set", "--keep"]
OPTIONS = {
    "parallel": [*SHARED, "--workers"],
    "memory": [*SHARED, "--workers"],
    "checkpoint": [*SHARED, "--workers"],
    "population": [*SHARED, "--clients"],
    "schedule": [*SHARED, "--concurrency"],
    "cohort": [*SHARED, "--cohort"],
    "twin": ["--repeat", "--points", "--seconds", "--forecast", "--json"],
    "node": ["--json", "--repeat", "--megabytes", "--ranks"],
    "apply": ["--json", "--repeat", "--sizes"],
    "engine": [*SHARED, "--workers", "--cases"],
    "large": [*SHARED, "--parameters"],
    "chaos": ["--workers", "--jobs", "--seed", "--json", "--keep"],
    "training": ["--model", "--paths", "--group-size", "--ranks", "--repeat", "--json"],
    "groups": ["--models", "--paths", "--optimizers", "--repeat", "--json"],
    "footprint": ["--models", "--paths", "--optimizers", "--repeat", "--json"],
}


# ------------------------------------------------------------------------------------------------ figures


def test_a_figure_is_the_median_with_its_spread() -> None:
    figure = Figure.of("ratio", [1.7, 1.9, 1.85], "1", Target(least=1.8))
    assert (figure.value, figure.least, figure.most, figure.n, figure.is_met) == (1.85, 1.7, 1.9, 3, True)
    assert figure.as_dict() == {
        **{"name": "ratio", "unit": "1", "median": 1.85, "min": 1.7, "max": 1.9, "n": 3},
        **{"target": "at least 1.8", "met": True},
    }
    assert Figure.of("share", [5.1], "%", Target(most=5.0)).is_met is False
    assert Figure.of("rate", [5.1], "1/s").as_dict()["met"] is None


@pytest.mark.parametrize(
    ("target", "words", "inside", "outside"),
    [
        (Target(least=85.0), "at least 85", 85.0, 84.9),
        (Target(most=1.0), "at most 1", 1.0, 1.1),
        (Target(0.9, 1.1), "0.9 to 1.1", 1.0, 1.2),
    ],
)
def test_targets_say_what_they_ask(target: Target, words: str, inside: float, outside: float) -> None:
    assert str(target) == words
    assert target.is_met(inside) and not target.is_met(outside)


def test_no_number_is_no_figure() -> None:
    for values in ([], [1.0, NAN]):
        with pytest.raises(RecordError, match="no number"):
            Figure.of("share", values, "%")


def test_ratios_are_those_of_neighbours() -> None:
    assert paired_ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="longer"):
        paired_ratios([1.0], [1.0, 2.0])


def test_a_report_as_text_and_as_json() -> None:
    figures = [Figure.of("speed", [1.0, 3.0], "1/s", Target(least=1.0)), Figure.of("load", [20_000.4], "MiB")]
    report = Report("tiny", this_machine("Some MPI"), "what was run", {"set": ["a=1"]}, figures, [{"x": 1}])
    lines = report.text().splitlines()
    assert lines[0] == "tiny: what was run" and lines[1] == "changed: a=1"
    assert "Some MPI" in lines[2] and f"{os.cpu_count()} cores" in lines[2]
    assert lines[5].split() == ["speed", "2", "1", "3", "1/s", "at", "least", "1", "met"]
    assert lines[6].split() == ["load", "20,000", "MiB"]
    loaded = json.loads(report.json())
    assert list(loaded) == ["bench", "what", "machine", "settings", "figures", "runs"]
    assert loaded["machine"] == dataclasses.asdict(report.machine) and loaded["runs"] == [{"x": 1}]


# ---------------------------------------------------------------------------------------- from a record


def _task(number: int, arrival_s: float, outcome: Outcome) -> TaskRow:
    row = dict.fromkeys(TaskRow._fields, 0.0) | {"task": number, "outcome": outcome, "wall_arrival_s": arrival_s}
    is_integer = {column.name: column.dtype[1] == "i" for column in TASKS.columns}
    return TaskRow(**{name: int(value) if is_integer[name] else value for name, value in row.items()})  # type: ignore[arg-type]


@pytest.fixture
def recorded(tmp_path: Path) -> Run:
    """Two slow updates, then one every half second from 10 to 14 s; rank 1 trains half of its time, rank 0 a tenth."""
    arrivals_s = [1.0, 9.0, *np.arange(10.0, 14.1, 0.5).tolist()]
    provenance, plan = Provenance({"schema_version": SCHEMA_VERSION}, "", ()), RecordPlan(n_parameters=1)
    with RecordWriter(tmp_path / "record-000.h5", provenance, plan) as writer:
        writer.append("tasks", _task(99, NAN, Outcome.LOST))
        for number, at_s in enumerate(arrivals_s):
            writer.append("tasks", _task(number, at_s, Outcome.APPLIED))
            writer.append("versions", VersionRow(number + 1, 0.0, at_s, 1, 1.0, 0.0, 0))
        for at_s in range(2, 17, 2):
            for rank, busy, cpu in ((0, 0.0, 0.1), (1, 0.5, 0.9)):
                counts = dict.fromkeys(WorkerRow._fields, 0)
                times = {"busy_s": busy * at_s, "cpu_s": cpu * at_s, "rss_bytes": 1000 * rank + at_s}
                writer.append("workers", WorkerRow(**(counts | {"wall_s": float(at_s), "worker": rank} | times)))  # type: ignore[arg-type]
        writer.close("done")
    return open_run(tmp_path)


def test_the_steady_part_leaves_the_start_out(recorded: Run) -> None:
    window = steady(recorded)  # 2 of 11 updates are a fifth, rounded down
    assert (window.start_s, window.end_s, window.n_updates) == (10.0, 14.0, 8)
    assert window.updates_per_s == 2.0
    assert steady(recorded, start_up=0.0).start_s == 1.0
    with pytest.raises(RecordError, match="too few"):
        steady(recorded, start_up=0.95)


def test_shares_are_of_the_window(recorded: Run) -> None:
    window = steady(recorded)
    assert share_of_time(recorded, 1, "busy_s", window) == pytest.approx(0.5)
    assert share_of_time(recorded, 0, "cpu_s", window) == pytest.approx(0.1)
    with pytest.raises(RecordError, match=r"1 rows of rank 1 in 1\.50 steady seconds"):
        share_of_time(recorded, 1, "busy_s", window._replace(end_s=11.5))
    with pytest.raises(RecordError, match="0 rows of rank 7"):
        share_of_time(recorded, 7, "busy_s", window)


def test_memory_is_read_at_updates(recorded: Run) -> None:
    # updates 1, 3 and 11 were applied at 1, 10 and 14 s; rows are at even seconds
    assert resident_bytes(recorded, [1, 3, 11]) == {0: [2, 10, 14], 1: [1002, 1010, 1014]}


# -------------------------------------------------------------------------------------------- starting runs


def _launcher(folder: Path, says: str) -> Path:
    script = folder / "launcher"
    script.write_text(f"#!/bin/sh\necho '{says}'\n")
    script.chmod(0o755)
    return script


def test_open_mpi_is_told_to_find_room(tmp_path: Path) -> None:
    script = str(_launcher(tmp_path, "mpirun (Open MPI) 5.0.11"))
    room = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    assert find_mpirun({"FEDSIM_MPIRUN": script}) == ([script, *room], "mpirun (Open MPI) 5.0.11")
    given = find_mpirun({"FEDSIM_MPIRUN": f"{script} --host 'a b:3'"})
    assert given[0] == [script, "--host", "a b:3"]


def test_other_launchers_are_told_nothing(tmp_path: Path) -> None:
    script = str(_launcher(tmp_path, "HYDRA build details:"))
    assert find_mpirun({"FEDSIM_MPIRUN": script}) == ([script], "HYDRA build details:")


def test_a_launcher_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="nowhere --version fails"):
        find_mpirun({"FEDSIM_MPIRUN": str(tmp_path / "nowhere")})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"no mpirun beside .* name one in FEDSIM_MPIRUN"):
        find_mpirun({})


def test_ranks_start_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(LaunchError, match="starts the ranks itself"):
        launcher_in(tmp_path, (), print)


def test_root_may_start_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, allowed in ((0, "1"), (1000, None)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        made = environment({"A": "b", "OMP_NUM_THREADS": "8"}, {"C": "d"})
        assert (made["A"], made["OMP_NUM_THREADS"], made["C"]) == ("b", "1", "d")
        assert made.get("OMPI_ALLOW_RUN_AS_ROOT") == made.get("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == allowed


def test_a_folder_to_keep_is_new(tmp_path: Path) -> None:
    with run_folder(tmp_path / "kept" / "runs") as folder:
        (folder / "run").touch()
    assert (tmp_path / "kept" / "runs" / "run").exists()
    with pytest.raises(RecordError, match="exists already"), run_folder(tmp_path / "kept"):
        pass
    with run_folder(None) as temporary:
        assert temporary.is_dir()
    assert not temporary.exists()


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    launcher = launcher_in(tmp_path, ("model.kernel=0",), print)
    with pytest.raises(LaunchError, match=r"check: exit code 2 of .*check\.yaml.*model\.kernel"):
        launcher.check_s("check", configs.cnn(20, 1000))


def test_the_configurations_can_run() -> None:
    for config in (configs.cnn(100, 10**6), configs.tiny(100, 64)):
        assert from_mapping({"name": "x", **config}).schedule.concurrency == configs.CONCURRENCY


# ------------------------------------------------------------------------------------- the commands themselves


def test_commands_and_options_are_these() -> None:
    found = {name: [opts for p in command.params for opts in p.opts] for name, command in bench.commands.items()}
    assert found == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_explained(name: str) -> None:
    command = bench.commands[name]
    assert command.help and command.short_help and command.short_help.endswith(".")
    assert all(isinstance(p, click.Option) and p.help and p.help.endswith(".") for p in command.params)


def test_the_command_line_has_it() -> None:
    assert cli.get_command(click.Context(cli), "bench") is bench


def _measured(*words: str) -> dict[str, Any]:
    """What a benchmark of a network of a few parameters prints as JSON."""
    program = [sys.executable, "-m", "fedsim", "bench", *words]
    options = ["--json", "--repeat", "1", *([] if words[0] == "node" else ["--set", "record.flush_s=0.02"])]
    done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == ["bench", "what", "machine", "settings", "figures", "runs"]
    assert found["bench"] == words[0] and found["machine"]["mpi"]
    assert found["machine"]["cores"] >= found["machine"]["usable_cores"] >= 1
    for figure in found["figures"]:
        assert list(figure) == ["name", "unit", "median", "min", "max", "n", "target", "met"]
        assert figure["n"] == 1 and figure["min"] == figure["median"] == figure["max"]
        assert (figure["met"] is None) == (figure["target"] is None)
    return found


def _targets(found: dict[str, Any]) -> dict[str, str]:
    return {figure["name"]: figure["target"] for figure in found["figures"] if figure["target"]}


CHANGES = ("data.shape=[1,8,8]", "model.channels=[2,2]", "model.kernel=3", "data.classes=5")
SMALL = [word for change in CHANGES for word in ("--set", change)]


@pytest.mark.mpi
@pytest.mark.slow
def test_parallel_in_a_tiny_setting(tmp_path: Path) -> None:
    found = _measured("parallel", "--updates", "600", "--keep", str(tmp_path / "kept"), *SMALL)
    assert _targets(found) == {
        "ratio of updates/s": "at least 1.8",
        "worker 1 of 2 trains": "at least 85",
        "worker 2 of 2 trains": "at least 85",
        "rank zero, 2 workers": "at most 5",
    }
    one, two = found["runs"]
    assert one["model_sha256"] == two["model_sha256"]
    assert (one["workers"], len(one["training_shares"]), two["workers"], len(two["training_shares"])) == (1, 1, 2, 2)
    assert all(0 < share <= 101 for share in one["training_shares"] + two["training_shares"])
    assert open_run(tmp_path / "kept" / "many-0").summary()["updates"] == 600
    ratio = two["updates_per_s"] / one["updates_per_s"]
    assert next(f["median"] for f in found["figures"] if f["name"] == "ratio of updates/s") == ratio


@pytest.mark.mpi
@pytest.mark.slow
def test_memory_in_a_tiny_setting() -> None:
    found = _measured("memory", "--updates", "400", "--workers", "1")
    assert list(_targets(found)) == ["rank 0 grows by", "rank 1 grows by"]
    (run,) = found["runs"]
    assert run["marks"] == [20, 100, 200, 400] and list(run["rss_bytes"]) == ["0", "1"]
    assert all(10 * 2**20 < value < 2**34 for values in run["rss_bytes"].values() for value in values)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_host_holds_its_data_once() -> None:
    """60 MB are enough to tell one copy from three, and few enough to be quick."""
    found = _measured("node", "--megabytes", "60", "--ranks", "3")
    figures = {figure["name"]: figure["median"] for figure in found["figures"]}
    assert 50 < figures["data set, one rank"] < 100
    assert figures["ratio of 3 to one"] < 1.5


def test_population_in_a_tiny_setting() -> None:
    found = _measured("population", "--updates", "600", "--clients", "5000", *SMALL)
    assert _targets(found) == {
        "check, 5,000 clients": "at most 10",
        "ratio of the times of an update": "0.9 to 1.1",
        "rank zero's peak, 5,000 clients": "at most 1",
    }
    few, many = found["runs"]
    assert (few["clients"], many["clients"]) == (1000, 5000)
    assert all(run["update_ms"] > 0 and 10 * 2**20 < run["peak_bytes"] < 2**34 for run in (few, many))


def test_schedules_without_training_are_timed() -> None:
    found = _measured("schedule", "--updates", "3000", "--concurrency", "30")
    assert _targets(found)["10,000,000 clients, peak"] == "at most 2"
    assert [run["clients"] for run in found["runs"]] == [10**4, 10**5, 10**6, 10**7]
    assert all(run["tasks_per_s"] > 0 and run["peak_bytes"] < 2**31 for run in found["runs"])


@pytest.mark.mpi
def test_engine_in_a_tiny_setting() -> None:
    words = ("--updates", "3000", "--cases", "tiny-sync,tiny-fedasync", "--workers", "1")
    found = _measured("engine", *words, "--set", "data.clients=300")
    names = [figure["name"] for figure in found["figures"]]
    assert names[:3] == ["tiny-sync: trainers alone", "tiny-sync: through the engine", "tiny-sync: share"]
    share = found["figures"][2]
    run = found["runs"][0]
    assert share["median"] == pytest.approx(100 * run["job_per_s"] / run["alone_per_s"]) and share["median"] > 0
    assert 1 <= run["group"] <= 64 and run["server_us"] > 1


@pytest.mark.mpi
def test_apply_of_small_models() -> None:
    program = [sys.executable, "-m", "fedsim", "bench", "apply", "--json", "--repeat", "1", "--sizes", "1000,50000"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(run["parameters"], run["rule"]) for run in found["runs"]] == [
        (n, rule) for n in (1000, 50_000) for rule in ("fedbuff", "fedasync")
    ]
    figures = iter(found["figures"])  # how the times compare is the machine's matter: it may be busy with other things
    for run in found["runs"]:
        assert next(figures)["median"] == pytest.approx(1e3 * run["apply_s"]) and run["apply_s"] > 0
        assert next(figures)["median"] == pytest.approx(run["apply_s"] / run["touch_s"])
        assert next(figures)["median"] == pytest.approx(1e6 * run["overhead_s"]) and run["overhead_s"] > 0
    assert not list(figures)
