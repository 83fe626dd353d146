"""`fedsim scale`: what grows, what is written, and that a study of a small run holds together."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, TypeAdapter

from fedsim import aggregation, configfile
from fedsim.aggregation import Arrival, Rule
from fedsim.aggregation.batch import Batch
from fedsim.bench.figures import Report
from fedsim.bench.machine import this_machine
from fedsim.bench.rank import Stopwatch, watch_server
from fedsim.bench.scale import numbers, scale
from fedsim.bench.scale.files import check, drawn, extrap
from fedsim.bench.scale.measure import FILE_KEYS, Study, _figures, absolute, grown
from fedsim.config import AggregationConfig, RunConfig
from fedsim.errors import ConfigError, RecordError
from fedsim.record.writer import RecordWriter
from fedsim.types import TaskReport, Update

ROOT = Path(__file__).parents[2]
RATES = {1: (10.0, 12.0), 2: (19.0, 20.0), 4: (30.0, 32.0)}


def runs(points: Sequence[tuple[int, int]] = ((1, 0), (2, 0), (4, 0))) -> list[dict[str, Any]]:
    """Two rounds of (workers, nodes), with what the figures read; a second node slows a run to nine tenths."""
    split = {"0": {"aggregate": 1.0, "record": 2.0, "wait": 90.0}}
    worker = {"train": 80.0, "evaluate": 1.0, "send": 2.0, "wait": 15.0}
    return [
        {
            "workers": workers,
            "nodes": nodes,
            "updates_per_s": RATES[workers][i] * (0.9 if nodes > 1 else 1.0),
            "split": {**split, **{str(w + 1): worker for w in range(workers)}},
        }
        for i in range(2)
        for workers, nodes in points
    ]


def study(**changes: Any) -> Study:
    config = configfile.load(ROOT / "configs" / "digits-buffered.yaml")
    return Study(
        **{
            "config": config,
            "base_dir": ROOT,
            "workers": [1, 2, 4],
            "nodes": [0],
            "weak": False,
            "repeat": 2,
            **changes,
        }
    )


def test_efficiency_is_against_one_worker_of_the_same_round() -> None:
    figures = {figure.name: figure for figure in _figures(study(), runs())}
    assert figures["updates, 2 workers"].value == 19.5
    two = figures["efficiency, 2 workers"]
    assert (two.least, two.most) == (pytest.approx(100 * 20 / 12 / 2), pytest.approx(100 * 19 / 10 / 2))
    assert figures["efficiency, 4 workers"].value == pytest.approx(100 * (3.0 + 32 / 12) / 2 / 4)
    assert "efficiency, 1 worker" not in figures
    assert figures["a worker's time: train, 4 workers"].value == 80.0
    assert figures["rank zero's time: record, 1 worker"].value == 2.0


@pytest.mark.parametrize(
    ("workers", "nodes", "points"),
    [
        ([4, 2, 1], [0], [(1, 0), (2, 0), (4, 0)]),
        ([1, 2, 4], [2], [(1, 1), (2, 2), (4, 2)]),
        ([1, 2, 2], [2, 1, 1], [(1, 1), (2, 1), (2, 2)]),
        ([2], [2], [(1, 1), (2, 2)]),
        ([1], [4], [(1, 1)]),
    ],
)
def test_the_base_is_one_worker_on_one_node(workers: list[int], nodes: list[int], points: list[Any]) -> None:
    assert study(workers=workers, nodes=nodes).points == points


def test_efficiency_on_two_nodes_alone_is_against_one_worker() -> None:
    two = study(workers=[1, 2], nodes=[2])
    figures = {figure.name: figure for figure in _figures(two, runs(two.points))}
    assert figures["efficiency, 2 workers on 2 nodes"].least == pytest.approx(100 * 0.9 * 20 / 12 / 2)
    assert "efficiency, 1 worker" not in figures


def test_extra_p_gets_all_repetitions_of_a_point_on_one_line() -> None:
    assert extrap(runs()) == (
        "PARAMETER workers\nPOINTS ( 1 ) ( 2 ) ( 4 )\nREGION update\nMETRIC seconds\n"
        "DATA 0.1 0.0833333333\nDATA 0.0526315789 0.05\nDATA 0.0333333333 0.03125\n"
    )


def test_extra_p_gets_nodes_as_a_parameter_where_they_differ() -> None:
    assert extrap(runs([(1, 1), (2, 1), (2, 2)])) == (
        "PARAMETER workers\nPARAMETER nodes\nPOINTS ( 1 1 ) ( 2 1 ) ( 2 2 )\nREGION update\nMETRIC seconds\n"
        "DATA 0.1 0.0833333333\nDATA 0.0526315789 0.05\nDATA 0.0584795322 0.0555555556\n"
    )


def test_weak_scaling_gives_each_worker_what_one_had() -> None:
    buffered = grown(configfile.load(ROOT / "configs" / "digits-buffered.yaml"), 3)
    assert (buffered.partition.clients, buffered.schedule.concurrency, buffered.schedule.buffer) == (180, 48, 24)  # type: ignore[union-attr]
    assert buffered.stop.versions == 60  # each of three times the updates
    rounds = grown(configfile.load(ROOT / "configs" / "images-sync.yaml"), 2)
    assert (rounds.data.clients, rounds.schedule.cohort, rounds.stop.versions) == (2000, 20, 30)  # type: ignore[union-attr]
    single = grown(configfile.load(ROOT / "configs" / "heart-async.yaml", ["schedule.concurrency=2"]), 2)
    assert (single.schedule.concurrency, single.stop.versions) == (4, 400)


def texts(kind: object, keys: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The keys of a configuration whose values are any text, by the section at the top and the last of them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return {found for key, field in fields for found in texts(field.annotation, (*keys, key))}
    if kind is str:
        return {(keys[0], keys[-1])}
    return {found for inner in get_args(kind) for found in texts(inner, keys)}


def test_every_text_of_a_configuration_is_a_file_or_known_to_be_none() -> None:
    columns = {("data", "x"), ("data", "y"), ("data", "client"), ("data", "label")}
    code = {("data", "function"), ("training", "function"), ("schedule", "function"), ("aggregation", "function")}
    code |= {(section, "options") for section, _ in code}  # refused: it is not loaded elsewhere
    names = {("name", "name"), ("personalization", "layers")}
    files = {(section, key) for section, keys in FILE_KEYS.items() for key in keys}
    assert texts(RunConfig) - columns - code - names == files


def test_files_are_found_from_the_folder_of_the_runs(tmp_path: Path) -> None:
    for name in ("tcga_brca", "loop"):  # a folder that has the name of a training path
        (tmp_path / name).mkdir()
    sets = ["training.path=loop", "devices.compute.time={law: trace, path: times.csv}"]
    config = configfile.load(ROOT / "configs" / "flamby" / "tcga-fedavg.yaml", sets)
    plain = absolute(config.model_dump(mode="json"), tmp_path)
    assert plain["data"]["folder"] == str(tmp_path / "tcga_brca")
    assert plain["devices"]["compute"]["time"]["path"] == str(tmp_path / "times.csv")  # not there: said of this place
    assert plain["training"]["path"] == "loop"
    assert absolute(plain, Path("/elsewhere")) == plain


def reframe_check(text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An instance of the check's class, whose ReFrame is the least that it needs."""
    sanity: Any = types.ModuleType("reframe.utility.sanity")
    sanity.assert_found = lambda pattern, said: bool(re.search(pattern, said))
    sanity.extractsingle = lambda pattern, said, group, kind: kind(re.search(pattern, said)[group])  # type: ignore[index]
    sanity.make_performance_function = lambda value, unit: (value, unit)
    modules: dict[str, Any] = {
        name: types.ModuleType(name) for name in ("reframe", "reframe.core", "reframe.core.backends", "reframe.utility")
    }
    modules["reframe"].simple_test, modules["reframe"].RunOnlyRegressionTest = (lambda cls: cls), object
    modules["reframe.core.backends"].getlauncher = lambda name: lambda: name
    modules["reframe.utility"].sanity, modules["reframe"].utility = sanity, modules["reframe.utility"]
    for name, module in {**modules, "reframe.utility.sanity": sanity}.items():
        monkeypatch.setitem(sys.modules, name, module)
    scope: dict[str, Any] = {"sanity_function": lambda f: f, "run_before": lambda stage: lambda f: f}
    exec(compile(text, "check.py", "exec"), scope)
    return scope["FedsimScale"]()


def report_of(some: Study) -> Report:
    found = runs(some.points)
    return Report("scale", this_machine("x"), "what", {"kind": "strong"}, _figures(some, found), found)


def test_the_reframe_check_finds_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check's own extraction, on what the command prints."""
    report = report_of(study())
    made = reframe_check(check(report, study(), Path("configs/digits-buffered.yaml")), monkeypatch)
    made.stdout = report.json()
    assert made.is_whole()
    made.set_performance()
    assert made.perf_variables == {"updates_1": (11.0, "1/s"), "updates_2": (19.5, "1/s"), "updates_4": (31.0, "1/s")}
    assert made.reference["*"]["updates_2"] == (19.5, -0.1, None, "1/s")
    assert made.executable_opts[0] == "scale" and made.executable_opts[2:4] == ["--workers", "1,2,4"]
    assert "--nodes" not in made.executable_opts and "--weak" not in made.executable_opts
    assert Path(made.executable_opts[1]).is_absolute() and (made.num_tasks, made.num_tasks_per_node) == (5, 5)


def test_the_reframe_check_runs_the_study_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ("stop.versions=20", "schedule.selection={kind: oort, step_s: 3}")
    some = study(nodes=[1, 2], weak=True, overrides=sets)
    report = report_of(some)
    made = reframe_check(check(report, some, Path("a folder") / "x.yaml"), monkeypatch)
    words = shlex.split(" ".join(made.executable_opts))  # as ReFrame puts them into the job's script
    told = scale.make_context("scale", words[1:]).params
    wanted = {"overrides": sets, "workers": "1,2,4", "nodes": "1,2", "weak": True, "repeat": 2, "as_json": True}
    assert {key: told[key] for key in wanted} == wanted
    assert told["config"] == (Path("a folder") / "x.yaml").resolve()
    assert (made.num_tasks, made.num_tasks_per_node) == (10, 5)  # a place for each rank of four workers on one node
    made.stdout = report.json()
    made.set_performance()
    assert {name: value for name, (value, _) in made.perf_variables.items()} == pytest.approx(
        {"updates_1": 11.0, "updates_2": 19.5, "updates_2_on_2_nodes": 0.9 * 19.5,
         "updates_4": 31.0, "updates_4_on_2_nodes": 0.9 * 31.0}
    )  # fmt: skip
    assert set(made.reference["*"]) == set(made.perf_variables)


def test_the_plot_has_a_line_for_each_number_of_nodes() -> None:
    some = study(nodes=[1, 2])
    rates, times = drawn(report_of(some), some).axes
    lines = {str(line.get_label()): line.get_xydata() for line in rates.get_lines() if line.get_linestyle() == "-"}
    assert lines["measured on 1 node (median)"].tolist() == [[1, 11.0], [2, 19.5], [4, 31.0]]  # type: ignore[union-attr]
    two = [[2, 0.9 * 19.5], [4, 0.9 * 31.0]]
    assert np.allclose(lines["measured on 2 nodes (median)"], two)
    assert [text.get_text() for text in times.get_xticklabels()] == ["1", "2", "2\non 2 nodes", "4", "4\non 2 nodes"]


def test_lists_of_numbers_are_checked() -> None:
    assert numbers(" 1, 8", "--workers") == [1, 8]
    for wrong in ("", "0", "1,,2", "a", "-1", "1.5", "1000000000000000000000"):
        with pytest.raises(ConfigError, match=r"--workers: got .* allowed: numbers"):
            numbers(wrong, "--workers")


def test_a_stopwatch_counts_nested_calls_once() -> None:
    class Owner:
        def outer(self) -> int:
            return self.inner() + 1

        def inner(self) -> int:
            time.sleep(0.02)
            return 1

    watch = Stopwatch()
    watch.watch(Owner, ("outer",), "a")
    watch.watch(Owner, ("inner",), "b")
    assert Owner().outer() == 2 and set(watch.spent_s) == {"a"} and watch.spent_s["a"] >= 0.02
    assert Owner().inner() == 1 and watch.spent_s["b"] >= 0.02


def applying(rule: Rule) -> dict[str, Callable[[], object]]:
    """Every way in which the engine applies updates, on a state of its own."""
    rows_RP = np.ones((2, 50), np.float32)
    report, arrival = TaskReport(0, 1, 5, 3, 1.0, 0.5, 0.1, 0.0), Arrival(0)
    update, state = Update(report, rows_RP[0]), rule.init(np.zeros(50, np.float32))
    two = np.array([5, 5]), np.array([0, 0]), np.array([False, True])
    addresses = rows_RP.ctypes.data + rows_RP.strides[0] * np.arange(2)
    batch = Batch(*two, addresses, lambda i: (Update(report, rows_RP[i]), arrival))
    ways: dict[str, Callable[[], object]] = {
        "accumulate": lambda: rule.accumulate(state, update, arrival),
        "commit": lambda: rule.commit(state),
        "publish": lambda: rule.publish(state),
        "complete": lambda: rule.complete(state, update, arrival),
        "consume": lambda: rule.consume(state, batch),
    }
    if rule.sums_at_workers:
        ways["count"] = lambda: rule.count(state, report, arrival)
        ways["put_sum"] = lambda: rule.put_sum(state, np.ones(50))
    return ways


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "fedasync"])
def test_every_way_of_applying_updates_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "build", aggregation.build)
    for method in ("append", "extend_columns", "tick", "flush"):
        monkeypatch.setattr(RecordWriter, method, getattr(RecordWriter, method))
    config = TypeAdapter(AggregationConfig).validate_python({"rule": name})
    plain, watch = aggregation.build(config), Stopwatch()
    watch_server(watch)
    rule = aggregation.build(config)
    rule.hasten()
    for way, apply in applying(rule).items():
        watch.spent_s.clear()
        apply()
        assert watch.spent_s.get("aggregate", 0.0) > 0.0, way
    for made in (rule, aggregation.build(config)):  # a resumed run makes its rule twice
        for fact in ("streams", "sums_at_workers", "_is_plain"):
            assert getattr(made, fact, None) == getattr(plain, fact, None), fact


@pytest.mark.mpi
@pytest.mark.slow
def test_a_study_of_a_small_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedsim", "scale", str(ROOT / "configs" / "digits-buffered.yaml"), "--workers", "2"]
    words += ["--set", "stop.versions=20", "--set", "record.flush_s=0.05", "--repeat", "1", "--out", "study", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["workers"] for run in found["runs"]] == [1, 2]
    assert len({run["model_sha256"] for run in found["runs"]}) == 1
    for run in found["runs"]:
        assert set(run["split"]) == {str(rank) for rank in range(run["workers"] + 1)}
        assert run["split"]["0"]["record"] > 0 and run["split"]["0"]["aggregate"] > 0
        assert 0 < sum(run["split"]["1"].values()) < 105
    assert json.loads((tmp_path / "study" / "scale.json").read_text()) == found
    assert (tmp_path / "study" / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "study" / "extrap.txt").read_text().count("DATA") == 2


def test_nodes_outside_of_a_job_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    words = [sys.executable, "-m", "fedsim", "scale", str(ROOT / "configs" / "digits-buffered.yaml"), "--nodes", "1,2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--nodes asks for 2 nodes, but this is no Slurm job" in done.stderr


def test_a_folder_that_is_there_is_refused_by_the_option_of_scale(tmp_path: Path) -> None:
    done = CliRunner().invoke(scale, [str(ROOT / "configs" / "digits-buffered.yaml"), "--out", str(tmp_path)])
    assert isinstance(done.exception, RecordError)
    assert str(done.exception) == f"{tmp_path}: exists already; give --out another folder"
