"""What a scaling study leaves behind: its numbers, a plot, Extra-P's text, a ReFrame check."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.bench.figures import Report
from fedsim.bench.scale.measure import PARTS, Study

_CHECK = '''"""A ReFrame check of {name}: updates a second with each number of workers, beside what was measured once.

Run it with `reframe -c {file} -r --system=SYSTEM` where the environment has fedsim and an mpirun. The reference is of
{machine}
"""

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class FedsimScale(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "fedsim"
    executable_opts = {options!r}
    time_limit = "2h"
    exclusive_access = True
    # (value, lowest allowed as a share of it, highest, unit)
    reference = {{"*": {reference!r}}}

    @sanity_function
    def is_whole(self):
        return sn.assert_found(r'"bench": "scale"', self.stdout)

    def updates_per_s(self, workers):
        words = "updates, 1 worker" if workers == 1 else f"updates, {{workers}} workers"
        pattern = rf'"name": "{{words}}",\\s+"unit": "1/s",\\s+"median": ([0-9.e+-]+)'
        return sn.extractsingle(pattern, self.stdout, 1, float)

    @run_before("performance")
    def set_performance(self):
        self.perf_variables = {{
            f"updates_{{n}}": sn.make_performance_function(self.updates_per_s(n), "1/s") for n in {workers!r}
        }}
'''


def write(folder: Path, report: Report, study: Study, config: Path) -> None:
    """Writes scale.json, scale.png, extrap.txt and fedsim_scale_check.py."""
    (folder / "scale.json").write_text(report.json() + "\n", encoding="utf-8")
    (folder / "extrap.txt").write_text(extrap(report.runs), encoding="utf-8")
    (folder / "fedsim_scale_check.py").write_text(check(report, study, config), encoding="utf-8")
    plot(report, study, folder / "scale.png")


def extrap(runs: Sequence[Mapping[str, Any]]) -> str:
    """Extra-P's text format: seconds of an update by workers, all repetitions of a point on one line."""
    workers = sorted({run["workers"] for run in runs})
    lines = ["PARAMETER workers", "POINTS " + " ".join(f"( {n} )" for n in workers)]
    lines += ["REGION update", "METRIC seconds"]
    for n in workers:
        lines.append("DATA " + " ".join(f"{1 / run['updates_per_s']:.9g}" for run in runs if run["workers"] == n))
    return "\n".join(lines) + "\n"


def check(report: Report, study: Study, config: Path) -> str:
    """A ReFrame check that runs the study again, with the medians as its reference."""
    medians = _medians(report.runs)
    counts = ",".join(map(str, study.workers))
    options = [str(config.resolve()), "--workers", counts, "--repeat", str(study.repeat), "--json"]
    return _CHECK.format(
        name=study.config.name,
        file="fedsim_scale_check.py",
        machine=report.machine.line(),
        options=["scale", *options, *(["--weak"] if study.weak else [])],
        reference={f"updates_{n}": (round(rate, 3), -0.1, None, "1/s") for n, rate in medians.items()},
        workers=list(medians),
    )


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    counts = sorted({run["workers"] for run in runs})
    return {n: statistics.median(run["updates_per_s"] for run in runs if run["workers"] == n) for n in counts}


def plot(report: Report, study: Study, path: Path) -> None:
    """Two pictures side by side: updates a second beside the ideal, and what workers' time went into."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    medians = _medians(report.runs)
    counts = list(medians)
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    rates, times = figure.subplots(1, 2)
    for n in counts:
        values = [run["updates_per_s"] for run in report.runs if run["workers"] == n]
        rates.plot([n] * len(values), values, ".", color="#0072B2", alpha=0.6)
    rates.plot(counts, list(medians.values()), "-", color="#0072B2", label="measured (median)")
    rates.plot(counts, [medians[counts[0]] * n for n in counts], ":", color="#7F7F7F", label="ideal")
    rates.set(
        xlabel="workers", ylabel="updates a second", title=f"{study.config.name}: {report.settings['kind']} scaling"
    )
    rates.legend(frameon=False)
    bottom = [0.0] * len(counts)
    for part, colour in zip(PARTS, ("#009E73", "#56B4E9", "#E69F00", "#CCCCCC"), strict=True):
        shares = [_share(report.runs, n, part) for n in counts]
        times.bar([str(n) for n in counts], shares, bottom=bottom, color=colour, label=part)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    times.set(xlabel="workers", ylabel="% of wall time", title="a worker's time", ylim=(0, 105))
    times.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def _share(runs: Sequence[Mapping[str, Any]], workers: int, part: str) -> float:
    values = [
        split[part] for run in runs if run["workers"] == workers for rank, split in run["split"].items() if rank != "0"
    ]
    return statistics.mean(values) if values else 0.0
