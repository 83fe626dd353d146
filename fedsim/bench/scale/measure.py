"""The runs of a scaling study, in turn, and what their records say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.analysis.workers import worker_use
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import steady
from fedsim.bench.rank import SPLIT
from fedsim.config import RunConfig
from fedsim.configfile import from_mapping
from fedsim.errors import LaunchError, RecordError
from fedsim.record.reader import Run
from fedsim.record.summary import model_sha256

EFFICIENCY = Target(least=90.0)
PARTS = ("train", "evaluate", "send", "wait")  # of a worker's wall time, beside what is left
SERVER_PARTS = ("aggregate", "record", "wait")  # of rank zero's

Found = Mapping[str, Any]
Point = tuple[int, int]  # workers, nodes


@dataclass(frozen=True)
class Study:
    """What is measured: numbers of workers, of nodes (0: wherever the launcher puts ranks), strong or weak scaling.

    `overrides` are the `--set` options that made the configuration what it is.
    """

    config: RunConfig
    base_dir: Path
    workers: Sequence[int]
    nodes: Sequence[int]
    weak: bool
    repeat: int
    overrides: Sequence[str] = ()

    @property
    def points(self) -> list[Point]:
        """(workers, nodes) of every run of a round, each once; the first is the base, one worker on one node."""
        spread = {(w, n) for w in self.workers for n in self.nodes if n <= 1 or w >= n}
        return sorted({(1, min(1, *self.nodes)), *spread})


def measure(launcher: Launcher, study: Study) -> Report:
    """The report: updates a second, efficiency against one worker, and where the time went, for every point."""
    hosts = job_hosts(os.environ) if study.nodes != [0] else []
    _check_nodes(study, hosts)
    runs = [
        _run(launcher, f"{w}-workers-{n}-nodes-{i}", study, w, hosts[:n])
        for i in range(study.repeat)
        for w, n in study.points
    ]
    if not study.weak and study.config.clock == "virtual" and len({run["model_sha256"] for run in runs}) != 1:
        raise RecordError("runs of one configuration reached different models: they cannot be compared")
    kind = "weak" if study.weak else "strong"
    return Report(
        bench="scale",
        machine=launcher.machine,
        what=f"{kind} scaling of {study.config.name}, {study.repeat} rounds in turn",
        settings={"kind": kind, "workers": list(study.workers), "nodes": list(study.nodes), "repeat": study.repeat},
        figures=_figures(study, runs),
        runs=runs,
    )


def grown(config: RunConfig, workers: int) -> RunConfig:
    """The configuration with so many times the clients, tasks in flight and updates: weak scaling."""
    plain = config.model_dump()
    for section, keys in (
        ("data", ("clients",)),
        ("partition", ("clients",)),
        ("schedule", ("concurrency", "cohort", "buffer")),
        ("stop", ("updates",)),
    ):
        for key in keys:
            if isinstance(plain[section].get(key), int):
                plain[section][key] *= workers
    if "cohort" not in plain["schedule"] and "buffer" not in plain["schedule"] and plain["stop"]["versions"]:
        plain["stop"]["versions"] *= workers  # every update makes a version, or every k
    return from_mapping(plain, "the configuration, grown")


def job_hosts(environ: Mapping[str, str]) -> list[str]:
    """The nodes of the Slurm job that we are in; none outside of one."""
    nodes = environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        return []
    words = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(f"the nodes of this job cannot be had: {error}") from None
    return done.stdout.split()


def _check_nodes(study: Study, hosts: Sequence[str]) -> None:
    if study.nodes != [0] and max(study.nodes) > len(hosts):
        there = f"this job has {len(hosts)}" if hosts else "this is no Slurm job"
        raise LaunchError(f"--nodes asks for {max(study.nodes)} nodes, but {there}")


def _run(launcher: Launcher, name: str, study: Study, workers: int, hosts: Sequence[str]) -> Found:
    config = grown(study.config, workers) if study.weak else study.config
    spread = launcher
    if hosts:
        slots = -(-(workers + 1) // len(hosts))
        words = [*launcher.mpirun, "--host", ",".join(f"{host}:{slots}" for host in hosts)]
        spread = replace(launcher, mpirun=words)
    plain = absolute(config.model_dump(mode="json"), study.base_dir)
    ran = spread.run(name, plain, workers, {SPLIT: "1"})
    window, weights = steady(ran.run), ran.run.weights
    found = {
        "workers": workers,
        "nodes": len(hosts),
        "hosts": json.loads(str(ran.run.attributes["hosts"])),
        "updates_per_s": window.updates_per_s,
        "model_sha256": "" if weights is None else model_sha256(weights),
        "split": _split(ran.run, launcher.folder / f"{name}-peaks"),
    }
    launcher.say(f"{name}: {window.updates_per_s:.2f} updates/s")
    return found


# The keys of a section, at any depth, that name files or folders: training.path, for one, is none.
FILE_KEYS: Mapping[str, frozenset[str]] = {
    "data": frozenset({"folder", "images", "labels", "test_images", "test_labels", "path", "test_path"}),
    "devices": frozenset({"path"}),
}


def absolute(plain: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """The configuration for a file elsewhere: paths, which are relative to the first file's folder, made absolute."""

    def fixed(value: Any, keys: frozenset[str]) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: str(base_dir / item) if key in keys and isinstance(item, str) else fixed(item, keys)
            for key, item in value.items()
        }

    return {name: fixed(item, FILE_KEYS.get(name, frozenset())) for name, item in plain.items() if name != "name"}


def _split(run: Run, notes: Path) -> dict[str, dict[str, float]]:
    """Shares of each rank's wall time in percent, by rank and part."""
    spent = [json.loads(path.read_text(encoding="utf-8")) for path in notes.glob("*.json")]
    server: Mapping[str, Any] = next((note for note in spent if note["rank"] == 0), {})
    found: dict[str, dict[str, float]] = {}
    for use in worker_use(run):
        if use.worker == 0:
            seconds = {name: float(server.get(f"{name}_s", 0.0)) for name in ("aggregate", "record")}
            seconds["wait"] = use.waiting_s
        else:
            values = (use.busy_s, use.evaluating_s, use.sending_s, use.waiting_s)
            seconds = dict(zip(PARTS, values, strict=True))
        found[str(use.worker)] = {name: 100 * use.share(value) for name, value in seconds.items()}
    return found


def by_point(runs: Sequence[Found]) -> dict[Point, list[Found]]:
    """The runs of each (workers, nodes), in their order; the points ascend."""
    found: dict[Point, list[Found]] = {}
    for run in sorted(runs, key=lambda run: (run["workers"], run["nodes"])):
        found.setdefault((run["workers"], run["nodes"]), []).append(run)
    return found


def named(point: Point) -> str:
    """A point in words.

    >>> named((1, 0)), named((4, 2))
    ('1 worker', '4 workers on 2 nodes')
    """
    workers, nodes = point
    return f"{workers} worker{'s' * (workers > 1)}" + (f" on {nodes} nodes" if nodes > 1 else "")


def _figures(study: Study, runs: Sequence[Found]) -> list[Figure]:
    runs_of = by_point(runs)
    base = [run["updates_per_s"] for run in runs_of[study.points[0]]]
    figures = []
    for point in study.points:
        mine, where, workers = runs_of[point], named(point), point[0]
        rates = [run["updates_per_s"] for run in mine]
        figures.append(Figure.of(f"updates, {where}", rates, "1/s"))
        if point != study.points[0]:
            shares = [100 * ratio / workers for ratio in paired_ratios(rates, base)]
            figures.append(Figure.of(f"efficiency, {where}", shares, "%", EFFICIENCY))
        for part in PARTS:
            parts = [_mean([split[part] for rank, split in run["split"].items() if rank != "0"]) for run in mine]
            figures.append(Figure.of(f"a worker's time: {part}, {where}", parts, "%"))
        for part in SERVER_PARTS:
            figures.append(
                Figure.of(f"rank zero's time: {part}, {where}", [run["split"]["0"][part] for run in mine], "%")
            )
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
