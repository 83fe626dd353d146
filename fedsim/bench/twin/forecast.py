"""What the twin says of machines one does not have: 64 to 65,536 ranks, three model sizes, and what moves the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedsim.bench.twin.model import Job, Machine, Twin, limit_per_s

RANKS = (64, 256, 1024, 4096, 16_384, 65_536)
MODELS = (("tiny, 2,410 parameters", 2_410), ("cnn, 110,526 parameters", 110_526), ("10^7 parameters", 10**7))
GROUP_S = 1.0
PER_WORKER = 3  # groups in flight
GROUP = 16
IN_FLIGHT = (64, 256, 1024, 4096, 16_384)
SHIFTS = (0.0, 0.1, 0.5, 0.9)
_GROUPS_A_WORKER = 5  # simulated: by then the pipeline is full


@dataclass(frozen=True)
class Option:
    """A way to run: its name, tasks a group, updates a version and worker (0: one a version), how updates travel."""

    name: str
    group: int = 1
    buffer_a_worker: int = 0
    wire: float = 1.0
    reduced: bool = False

    def job(self, n_workers: int, model_bytes: float) -> Job:
        """So many workers, so run."""
        return Job(
            n_workers=n_workers,
            n_in_flight=PER_WORKER * n_workers,
            group_s=GROUP_S,
            model_bytes=model_bytes,
            group=self.group,
            buffer=max(1, self.buffer_a_worker * n_workers),
            wire=self.wire,
            reduced=self.reduced,
            is_ordered=False,
        )


OPTIONS = (
    Option("FedAsync, every arrival a version"),
    Option(f"FedBuff, groups of {GROUP}, {GROUP} updates a worker and version", GROUP, GROUP),
    Option("the same, half precision on the wire", GROUP, GROUP, wire=0.5),
    Option("the same, summed by the workers", GROUP, GROUP, reduced=True),
)


@dataclass(frozen=True)
class Row:
    """One forecast: updates a second with a band, rank zero's load, and how much of its time a worker trains."""

    model: str
    option: str
    ranks: int
    updates_per_s: float
    low_per_s: float
    high_per_s: float
    server_busy: float
    worker_busy: float
    limit_per_s: float


def forecast(machine: Machine, spread: float, error: float, ranks: Sequence[int] = RANKS) -> list[Row]:
    """The rows of every model, option and number of ranks.

    The band: `spread` is by what factor rank zero's costs may be off, `error` by what share predictions were.
    """
    rows = []
    for model, n_parameters in MODELS:
        for option in OPTIONS:
            for n_ranks in ranks:
                job = option.job(n_ranks - 1, 4.0 * n_parameters)
                rows.append(_row(machine, (spread, error), model, option.name, n_ranks, job))
    return rows


def _row(machine: Machine, off: tuple[float, float], model: str, option: str, ranks: int, job: Job) -> Row:
    spread, error = off
    n_groups = max(1000, _GROUPS_A_WORKER * job.n_workers)
    said = Twin(machine, job).run(n_groups * job.group)
    rate, limit = said.updates_per_s, limit_per_s(machine, job)
    low, high = (limit_per_s(machine.scaled(factor), job) for factor in (spread, 1.0 / spread))
    low, high = min(rate * (1.0 - error), low), max(rate, min(rate * (1.0 + error), high), high * (rate > 0.9 * limit))
    return Row(model, option, ranks, rate, low, high, said.server_busy, said.worker_busy, limit)


class LookAhead(NamedTuple):
    """How many workers the order of events can keep busy: tasks in flight, the fixed share of durations, workers."""

    n_in_flight: int
    shift: float
    n_busy: float


def look_ahead(in_flight: Sequence[int] = IN_FLIGHT, shifts: Sequence[float] = SHIFTS) -> list[LookAhead]:
    """Busy workers on the virtual clock where nothing costs anything and there are as many workers as tasks."""
    free = Machine()
    rows = []
    for n in in_flight:
        for shift in shifts:
            said = Twin(free, Job(n, n, GROUP_S, 0.0, is_exponential=False, shift=shift)).run(max(4000, 12 * n))
            rows.append(LookAhead(n, shift, said.updates_per_s * GROUP_S))
    return rows


def look_ahead_markdown(rows: Sequence[LookAhead]) -> str:
    """The rows as a Markdown table: a line for each number of tasks in flight."""
    shifts = sorted({row.shift for row in rows})
    lines = ["| tasks in flight | " + " | ".join(f"{100 * shift:g} % fixed" for shift in shifts) + " |"]
    lines.append("|" + " --- |" * (len(shifts) + 1))
    for n in sorted({row.n_in_flight for row in rows}):
        cells = [f"{row.n_busy:,.0f}" for shift in shifts for row in rows if row[:2] == (n, shift)]
        lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table a model."""
    lines: list[str] = []
    for model, _ in MODELS:
        lines += [f"**{model}**, a group trains for {GROUP_S:g} s", ""]
        lines += ["| way to run | " + " | ".join(f"{n:,}" for n in RANKS) + " | rank zero's limit, updates/s |"]
        lines += ["|" + " --- |" * (len(RANKS) + 2)]
        for option in OPTIONS:
            own = [row for row in rows if (row.model, row.option) == (model, option.name)]
            cells = [f"{row.updates_per_s:,.0f} ({100 * row.server_busy:.0f} %)" for row in own]
            lines.append(f"| {option.name} | {' | '.join(cells)} | {own[-1].limit_per_s:,.0f} |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draws updates a second over ranks, a panel a model, with bands; returns `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    for axes, (model, _) in zip(figure.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
        for option in OPTIONS:
            own = [row for row in rows if (row.model, row.option) == (model, option.name)]
            ranks = [row.ranks for row in own]
            (line,) = axes.plot(ranks, [row.updates_per_s for row in own], marker="o", markersize=3, label=option.name)
            low, high = [row.low_per_s for row in own], [row.high_per_s for row in own]
            axes.fill_between(ranks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(model)
        axes.set_xlabel("ranks")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("updates a second")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)
    return path
