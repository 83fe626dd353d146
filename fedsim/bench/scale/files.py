"""What a scaling study leaves behind: its numbers, a plot, Extra-P's text, a ReFrame check."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.bench.figures import Report
from fedsim.bench.scale.measure import PARTS, Found, Point, Study, by_point, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # of numbers of nodes, in turn

_CHECK = '''"""A ReFrame check of {name}: updates a second at each point of a study, beside what was measured.

Run it with `reframe -c {file} -r --system=SYSTEM` where the environment has fedsim and an mpirun. The reference is of
{machine}
"""

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.backends import getlauncher


@rfm.simple_test
class FedsimScale(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "fedsim"
    executable_opts = {options!r}
    num_tasks = {n_tasks}  # places for the ranks, which the study launches itself
    num_tasks_per_node = {n_tasks_per_node}
    time_limit = "2h"
    exclusive_access = True
    # (value, lowest allowed as a share of it, highest, unit)
    reference = {{"*": {reference!r}}}

    @sanity_function
    def is_whole(self):
        return sn.assert_found(r'"bench": "scale"', self.stdout)

    @run_before("run")
    def start_once(self):
        self.job.launcher = getlauncher("local")()

    def updates_per_s(self, words):
        pattern = rf'"name": "updates, {{words}}",\\s+"unit": "1/s",\\s+"median": ([0-9.e+-]+)'
        return sn.extractsingle(pattern, self.stdout, 1, float)

    @run_before("performance")
    def set_performance(self):
        self.perf_variables = {{
            name: sn.make_performance_function(self.updates_per_s(words), "1/s")
            for name, words in {points!r}.items()
        }}
'''


def write(folder: Path, report: Report, study: Study, config: Path) -> None:
    """Writes scale.json, scale.png, extrap.txt and fedsim_scale_check.py."""
    (folder / "scale.json").write_text(report.json() + "\n", encoding="utf-8")
    (folder / "extrap.txt").write_text(extrap(report.runs), encoding="utf-8")
    (folder / "fedsim_scale_check.py").write_text(check(report, study, config), encoding="utf-8")
    plot(report, study, folder / "scale.png")


def extrap(runs: Sequence[Found]) -> str:
    """Extra-P's text format: seconds of an update by workers, all repetitions of a point on one line.

    Nodes are a second parameter where there are several numbers of them.
    """
    runs_of = by_point(runs)
    names = ("workers", "nodes") if len({nodes for _, nodes in runs_of}) > 1 else ("workers",)
    lines = [f"PARAMETER {name}" for name in names]
    lines.append("POINTS " + " ".join(f"( {' '.join(map(str, point[: len(names)]))} )" for point in runs_of))
    lines += ["REGION update", "METRIC seconds"]
    lines += ["DATA " + " ".join(f"{1 / run['updates_per_s']:.9g}" for run in mine) for mine in runs_of.values()]
    return "\n".join(lines) + "\n"


def check(report: Report, study: Study, config: Path) -> str:
    """A ReFrame check that runs the same study again, with the medians as its reference."""
    medians = _medians(report.runs)
    n_tasks_per_node = max(-(-(workers + 1) // max(1, nodes)) for workers, nodes in study.points)
    return _CHECK.format(
        name=study.config.name,
        file="fedsim_scale_check.py",
        machine=report.machine.line(),
        options=[
            shlex.quote(word) for word in ("scale", str(config.resolve()), *_options(study))
        ],  # as a shell's words
        n_tasks=n_tasks_per_node * max(1, *study.nodes),
        n_tasks_per_node=n_tasks_per_node,
        reference={_variable(point): (round(rate, 3), -0.1, None, "1/s") for point, rate in medians.items()},
        points={_variable(point): named(point) for point in medians},
    )


def _options(study: Study) -> list[str]:
    """The options of `fedsim scale` that make this study."""
    words = [word for override in study.overrides for word in ("--set", override)]
    words += ["--workers", ",".join(map(str, study.workers))]
    words += ["--nodes", ",".join(map(str, study.nodes))] if max(study.nodes) else []
    words += ["--weak"] if study.weak else []
    return [*words, "--repeat", str(study.repeat), "--json"]


def _variable(point: Point) -> str:
    workers, nodes = point
    return f"updates_{workers}" + (f"_on_{nodes}_nodes" if nodes > 1 else "")


def _medians(runs: Sequence[Found]) -> dict[Point, float]:
    return {point: statistics.median(run["updates_per_s"] for run in mine) for point, mine in by_point(runs).items()}


def plot(report: Report, study: Study, path: Path) -> None:
    """Writes the picture of a study."""
    drawn(report, study).savefig(path, dpi=120)


def drawn(report: Report, study: Study) -> Figure:
    """Two pictures side by side: updates a second beside the ideal, and what workers' time went into."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    rates, times = figure.subplots(1, 2)
    _draw_rates(rates, report.runs)
    rates.set(
        xlabel="workers", ylabel="updates a second", title=f"{study.config.name}: {report.settings['kind']} scaling"
    )
    rates.legend(frameon=False)
    _draw_times(times, report.runs)
    times.set(xlabel="workers", ylabel="% of wall time", title="a worker's time", ylim=(0, 105))
    times.legend(frameon=False, loc="lower right")
    return figure


def _draw_rates(axes: Axes, runs: Sequence[Found]) -> None:
    """All rates as points, and a line through the medians for each number of nodes."""
    medians = _medians(runs)
    on_nodes = sorted({nodes for _, nodes in medians})
    for i, nodes in enumerate(on_nodes):
        colour = _COLOURS[i % len(_COLOURS)]
        mine = [run for run in runs if run["nodes"] == nodes]
        rates = [run["updates_per_s"] for run in mine]
        axes.plot([run["workers"] for run in mine], rates, ".", color=colour, alpha=0.6)
        line = {workers: rate for (workers, n), rate in medians.items() if n == nodes}
        where = f" on {nodes} node{'s' * (nodes > 1)}" if len(on_nodes) > 1 else ""
        axes.plot(list(line), list(line.values()), "-", color=colour, label=f"measured{where} (median)")
    counts = sorted({workers for workers, _ in medians})
    base = next(iter(medians.values()))  # of one worker
    axes.plot(counts, [base * n for n in counts], ":", color="#7F7F7F", label="ideal")


def _draw_times(axes: Axes, runs: Sequence[Found]) -> None:
    """A bar for each point: the parts of its workers' time, one on the other."""
    runs_of = by_point(runs)
    labels = [str(workers) + (f"\non {nodes} nodes" if nodes > 1 else "") for workers, nodes in runs_of]
    bottom = [0.0] * len(labels)
    for part, colour in zip(PARTS, ("#009E73", "#56B4E9", "#E69F00", "#CCCCCC"), strict=True):
        shares = [_share(mine, part) for mine in runs_of.values()]
        axes.bar(labels, shares, bottom=bottom, color=colour, label=part)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]


def _share(runs: Sequence[Found], part: str) -> float:
    """The mean of a part over all workers of some runs."""
    values = [split[part] for run in runs for rank, split in run["split"].items() if rank != "0"]
    return statistics.mean(values) if values else 0.0
