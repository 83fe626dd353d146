"""The twin beside the engine: runs whose tasks sleep, the twin fitted to two of them, its predictions of the others."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import aggregation
from fedsim.aggregation.accumulate import ServerState
from fedsim.aggregation.rule import ALONE, Arrival, Rule
from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import share_of_time, steady
from fedsim.bench.twin.forecast import forecast, look_ahead, look_ahead_markdown, markdown, plot
from fedsim.bench.twin.model import Job, Machine, Twin
from fedsim.bench.twin.pingpong import latency_and_byte_s
from fedsim.comm.faults import VARIABLE
from fedsim.config import FedAsyncRule, FedBuffRule
from fedsim.errors import DataError
from fedsim.record.writer import one_line
from fedsim.types import TaskReport, Update

CLIENTS = 2000
IN_FLIGHT = 1024
SHIFT = 0.5  # of virtual durations is fixed: so the order of events leaves every worker something to do
FIT_RANKS = (2, 4)
OTHER_RANKS = (3, 5, 6, 7, 8, 9)
FIT_TASK_S = 0.02
OTHER_TASKS_S = (0.01, 0.04)
WITHIN = Target(most=10.0)
PLACES = [  # of a round, in their order: ranks and the length of tasks
    *((ranks, FIT_TASK_S) for ranks in sorted(FIT_RANKS + OTHER_RANKS)),
    *((ranks, task_s) for task_s in OTHER_TASKS_S for ranks in (3, 5, 9)),
]
_RULE_SIZES = (10_000, 1_000_000, 10_000_000)

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A run: ranks, the mean length of its tasks, and what was measured of it.

    `workers_cpu_share` is the processor time of all workers together, in cores.
    """

    ranks: int
    task_s: float
    updates_per_s: float
    server_cpu_share: float
    workers_cpu_share: float


def measure(
    launcher: Launcher, repeat: int, seconds: float, folder: Path | None = None, kept: Path | None = None
) -> Report:
    """The report: every point in turn, `repeat` times, each run of about so many seconds.

    Each point is kept in the file `kept`; those that it holds already count, and are not run again.

    A forecast for many more ranks goes to `folder`, if one is given: its error band is what the rounds' own fits say
    of rank zero's costs, and the largest error seen.
    """
    length_s, byte_s = ping_pong(launcher)
    points = [] if kept is None else read_points(kept)
    for i in range(len(points), repeat * len(PLACES)):
        points.append(_point(launcher, i // len(PLACES), *PLACES[i % len(PLACES)], seconds))
        if kept is not None:
            kept.write_text(json.dumps([vars(point) for point in points], indent=1), encoding="utf-8")
    cores = launcher.machine.usable_cores
    machine = fit([p for p in points if is_fitted(p)], costs_apart(length_s, byte_s, cores))
    errors = {key: _error(machine, of) for key, of in _by_place(points).items() if not is_fitted(of[0])}
    figures = [
        Figure.of(f"{ranks} ranks, tasks of {1e3 * task_s:g} ms: twin less engine", [error], "%", Target(-10.0, 10.0))
        for (ranks, task_s), error in errors.items()
    ]
    worst = max(abs(error) for error in errors.values())
    figures.append(Figure.of("largest error", [worst], "%", WITHIN))
    figures += [Figure.of(name, [value], unit) for name, value, unit in _costs(machine)]
    if folder is not None:
        write_forecast(folder, machine, _spread(points, machine), max(worst / 100.0, 0.02))
    return Report(
        bench="twin",
        machine=launcher.machine,
        what=f"FedAsync, {IN_FLIGHT} tasks in flight that sleep; fitted at {FIT_RANKS} ranks and {FIT_TASK_S} s a task",
        settings={"repeat": repeat, "seconds": seconds, "set": list(launcher.overrides)},
        figures=figures,
        runs=[{**vars(point), "twin_per_s": predicted(machine, point)} for point in points],
    )


def _spread(points: Sequence[Point], machine: Machine) -> float:
    """By what factor rank zero's costs may be off: the rounds' own fits beside each other, a quarter at least."""
    fitted = [point for point in points if is_fitted(point)]
    n = len(FIT_RANKS)
    own = [fit(fitted[i : i + n], machine).update_s for i in range(0, len(fitted), n)]
    return max(max(own) / max(min(own), 1e-9), 1.25)


def write_forecast(folder: Path, machine: Machine, spread: float, error: float) -> None:
    """Writes `forecast.md`, tables, and `forecast.png`, plots, into a folder that is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = forecast(replace(machine, cores=0), spread, error)  # a core for each rank
    plot(rows, folder / "forecast.png")
    costs = ", ".join(f"{name} {value:.4g} {unit}" for name, value, unit in _costs(machine))
    text = f"Fitted costs: {costs}. Band: rank zero's costs times or over {spread:.2f}, "
    text += f"predictions off by {100 * error:.0f} %.\n\n{markdown(rows)}\n"
    text += look_ahead_markdown(look_ahead()) + "\n"
    (folder / "forecast.md").write_text(text, encoding="utf-8")


def read_points(path: Path) -> list[Point]:
    """The points that former calls left in a file; none if it is not there.

    Raises:
        DataError: it holds something else.
    """
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        points = [Point(int(each.pop("ranks")), **{k: float(v) for k, v in each.items()}) for each in said]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{path}: not a file of points that fedsim bench twin wrote: {one_line(error)}") from None
    places = [(point.ranks, point.task_s) for point in points]
    if any(place != PLACES[i % len(PLACES)] for i, place in enumerate(places)):
        raise DataError(f"{path}: not the points of this benchmark in their order")
    return points


def is_fitted(point: Point) -> bool:
    """Whether the twin was fitted to such a point."""
    return point.ranks in FIT_RANKS and point.task_s == FIT_TASK_S


def _point(launcher: Launcher, i: int, ranks: int, task_s: float, seconds: float) -> Point:
    name = f"{i}-{ranks}-{1e3 * task_s:g}"
    n_updates = max(200, int(seconds * (ranks - 1) / task_s))
    config = configs.tiny(n_updates, CLIENTS)
    config["schedule"] = {"policy": "async", "concurrency": IN_FLIGHT}
    config["devices"] = {"compute": {"time": {"law": "shifted-exponential", "shift": SHIFT, "mean": 1.0}}}
    config["training"] = {**config["training"], "group_size": 1}
    config |= {"placement": "dynamic", "record": {"flush_s": max(0.1, seconds / 20.0)}}
    ran = launcher.run(name, config, ranks - 1, {VARIABLE: f"sleep:{task_s}"})
    window = steady(ran.run)
    server, *workers = [share_of_time(ran.run, rank, "cpu_s", window) for rank in range(ranks)]
    point = Point(ranks, task_s, window.updates_per_s, server, sum(workers))
    launcher.say(
        f"{name}: {point.updates_per_s:.1f} updates/s, rank zero {100 * point.server_cpu_share:.1f} % of a core, "
        f"workers {point.workers_cpu_share:.2f} cores"
    )
    return point


def _by_place(points: Sequence[Point]) -> dict[tuple[int, float], list[Point]]:
    places: dict[tuple[int, float], list[Point]] = {}
    for point in points:
        places.setdefault((point.ranks, point.task_s), []).append(point)
    return places


def _error(machine: Machine, points: Sequence[Point]) -> float:
    """How much the twin's prediction exceeds the median measured, in per cent."""
    median = statistics.median(point.updates_per_s for point in points)
    return 100.0 * (predicted(machine, points[0]) / median - 1.0)


# ----------------------------------------------------------------------------------------------- the fit


def job_of(ranks: int, task_s: float) -> Job:
    """The job that `_point` runs."""
    return Job(
        n_workers=ranks - 1,
        n_in_flight=IN_FLIGHT,
        group_s=task_s,
        model_bytes=4.0 * configs.TINY_PARAMETERS,
        shift=SHIFT,
    )


def predicted(machine: Machine, point: Point) -> float:
    """Updates a second of such a run, by the twin."""
    return Twin(machine, job_of(point.ranks, point.task_s)).run(20_000).updates_per_s


def fit(points: Sequence[Point], apart: Machine) -> Machine:
    """The machine that explains the points: four numbers are fitted, the others are those of `apart`.

    Rank zero's time an update is the slope of its processor time over the rate; what it takes at rest is its polling.
    A worker's overhead a task is what is left of a worker's time beside the task itself; what a task needs of a core is
    the workers' processor time over the rate.
    """
    rates = np.array([point.updates_per_s for point in points])
    shares = np.array([point.server_cpu_share for point in points])
    slope, rest = (float(value) for value in np.polyfit(rates, shares, 1))
    per_update_s = max(slope, 0.25 * float((shares / rates).mean()))
    bytes_s = (apart.mix_byte_s + 2.0 * apart.message_byte_s) * 4.0 * configs.TINY_PARAMETERS  # a row in, a version out
    each = [(point.ranks - 1) / point.updates_per_s - point.task_s for point in points]
    machine = replace(
        apart,
        update_s=max(per_update_s - bytes_s, 0.0),
        group_s=0.0,  # groups of one: its share is in update_s
        task_s=max(float(np.mean(each)), 0.0),
        task_cpu_s=float(np.mean([point.workers_cpu_share / point.updates_per_s for point in points])),
        rest_cores=min(max(rest, 0.0), 0.5),
    )
    return _corrected(machine, points)


def _corrected(machine: Machine, points: Sequence[Point]) -> Machine:
    """The worker's overhead once more, less what the twin itself accounts for by waiting."""
    for _ in range(3):
        off = [(p.ranks - 1) / p.updates_per_s - (p.ranks - 1) / predicted(machine, p) for p in points]
        machine = replace(machine, task_s=max(machine.task_s + float(np.mean(off)), 0.0))
    return machine


def ping_pong(launcher: Launcher) -> tuple[float, float]:
    """Seconds a message and a byte between two ranks of this machine."""
    found = json.loads(launcher.program("pingpong", ["-m", "fedsim.bench.twin.pingpong"], 2))
    return latency_and_byte_s([(int(size), float(seconds)) for size, seconds in found])


def costs_apart(latency_s: float, byte_s: float, cores: int) -> Machine:
    """What is measured without a run: messages as said, and rank zero's passes over a model, timed here."""
    return Machine(
        mix_byte_s=_slope(_mix_s),
        add_byte_s=_slope(_add_s),
        version_byte_s=_slope(_version_s),
        total_byte_s=_slope(_total_s),
        latency_s=latency_s,
        message_byte_s=byte_s,
        cores=cores,
    )


def _slope(seconds_of: Callable[[int], float]) -> float:
    """Seconds a byte of the model in float32, over model sizes."""
    times = [seconds_of(n) for n in _RULE_SIZES]
    slope = np.polyfit([4.0 * n for n in _RULE_SIZES], times, 1, w=1.0 / np.array(times))[0]
    return max(float(slope), 0.0)


def _timed_s(action: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def _least_s(action: Callable[[], object]) -> float:
    return min(_timed_s(action) for _ in range(5))


def _update(n: int) -> Update:
    return Update(TaskReport(0, 1, 40, 4, 1.0, 1.0, 1.0, 0.0), np.ones(n, np.float32))


def _mix_s(n: int) -> float:
    """FedAsync: an update is applied and the version made, together."""
    rule = aggregation.build(FedAsyncRule(rule="fedasync"), ALONE)
    state, update = rule.init(np.zeros(n, np.float32)), _update(n)
    return _least_s(lambda: rule.complete(state, update, Arrival(0)))


def _buffered(n: int) -> tuple[Rule, ServerState, Update]:
    rule = aggregation.build(FedBuffRule(rule="fedbuff"), replace(ALONE, n_updates=1000))
    state, update = rule.init(np.zeros(n, np.float32)), _update(n)
    rule.accumulate(state, update, Arrival(0))
    return rule, state, update


def _add_s(n: int) -> float:
    """FedBuff: an update is added."""
    rule, state, update = _buffered(n)
    return _least_s(lambda: rule.accumulate(state, update, Arrival(0)))


def _version_s(n: int) -> float:
    """FedBuff: a version is made of what was added."""
    rule, state, update = _buffered(n)

    def make() -> None:
        rule.commit(state)
        rule.publish(state)

    times = []
    for _ in range(5):
        rule.accumulate(state, update, Arrival(0))
        times.append(_timed_s(make))
    return min(times)


def _total_s(n: int) -> float:
    """A worker's total is added to another's."""
    total_P = np.ones(n, np.int64)
    return _least_s(lambda: total_P + total_P)


def _costs(machine: Machine) -> list[tuple[str, float, str]]:
    return [
        ("rank zero an update", 1e6 * machine.update_s, "us"),
        ("rank zero a megabyte of a version of one", 1e12 * machine.mix_byte_s, "us"),
        ("rank zero a megabyte added", 1e12 * machine.add_byte_s, "us"),
        ("rank zero a megabyte of a version of many", 1e12 * machine.version_byte_s, "us"),
        ("rank zero a megabyte of a total", 1e12 * machine.total_byte_s, "us"),
        ("a worker's overhead a task", 1e6 * machine.task_s, "us"),
        ("a task's time on a core", 1e6 * machine.task_cpu_s, "us"),
        ("rank zero's polling", 100.0 * machine.rest_cores, "% of a core"),
        ("latency of a message", 1e6 * machine.latency_s, "us"),
        ("a megabyte in a message", 1e12 * machine.message_byte_s, "us"),
    ]
