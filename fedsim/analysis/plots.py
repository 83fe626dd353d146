"""A run as one picture: how well the model does, how stale the updates were, what the workers did.

Drawn with matplotlib's objects, not with pyplot: no window, no global state, the same on a machine without a display.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.analysis.tables import duration
from fedsim.analysis.workers import WorkerUse, worker_use
from fedsim.errors import RecordError
from fedsim.record.reader import Run
from fedsim.types import Float64, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 10
_MOST_BARS = 40
# Colours of Okabe and Ito (2008), which people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#7F7F7F", "#882255", "#44AA99")
_PARTS = (
    ("busy_s", "training (rank 0: serving)", "#009E73"),
    ("evaluating_s", "evaluating", "#56B4E9"),
    ("sending_s", "sending", "#E69F00"),
)


def plot_run(run: Run, path: Path) -> Path:
    """Draws a run into a PNG (or what the suffix says) and returns its path. `RecordError` if it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    metric = (run.metric_names or ["loss"])[0]
    _draw_metric(axes[0, 0], run, metric)
    _draw_metric(axes[0, 1], run, "loss")
    _draw_staleness(axes[1, 0], run)
    _draw_workers(axes[1, 1], worker_use(run))
    figure.suptitle(_title(run), parse_math=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot write the plot: {' '.join(str(error).split())}") from error
    return path


def _title(run: Run) -> str:
    known = run.attributes
    totals = run.totals()
    setting = ", ".join(f"{name} {known[name]}" for name in ("dataset", "policy", "rule", "seed") if name in known)
    time = f", {duration(totals.virtual_s)} of virtual time" if math.isfinite(totals.virtual_s) else ""
    reached = f"{totals.versions} versions, {totals.updates} updates{time}, {duration(totals.wall_s)} of wall time"
    return f"{known.get('name', run.path.name)} ({run.status}): {setting}\n{reached}"


# ---------------------------------------------------------------------------------------- over time


def _draw_metric(axes: Axes, run: Run, name: str) -> None:
    """A metric over time: the clients' lines or, of many, their range; the clients' mean; the pooled test set."""
    columns = run.columns("evaluations", ["version", "virtual_s", "wall_s", "client", name])
    order = np.argsort(columns["version"], kind="stable")
    times_s, clock = _times(columns)
    order = order[np.isfinite(times_s[order])]
    times_s, columns = times_s[order], {key: values[order] for key, values in columns.items()}
    unit, seconds = _time_unit(times_s)
    axes.set_xlabel(f"{clock} time ({unit})")
    axes.set_ylabel(f"{name} on the test set" if name == "loss" else name)
    axes.grid(alpha=0.3)
    if not times_s.size:
        _say_nothing(axes, "no evaluations")
        return
    _draw_clients(axes, run, columns["client"], times_s / seconds, columns[name])
    pooled = columns["client"] == -1
    if pooled.any():
        axes.plot(times_s[pooled] / seconds, columns[name][pooled], color="black", lw=2, marker=".", label="test set")
    _legend_above(axes)


def _draw_clients(axes: Axes, run: Run, clients: NDArray[Any], times: Float64, values: Float64) -> None:
    """The clients' own test sets: a line each, or the range in which four fifths of them lie; and their mean."""
    known = np.unique(clients[clients >= 0])
    if not known.size:
        return
    names = run.client_names
    if known.size <= MOST_LINES:
        for client, colour in zip(known.tolist(), COLOURS, strict=False):
            mine = clients == client
            label = names[client] if client < len(names) else f"client {client}"
            axes.plot(times[mine], values[mine], color=colour, lw=1, marker=".", ms=3, alpha=0.8, label=_plain(label))
    scored = (clients >= 0) & np.isfinite(values)
    at, groups = _by_time(times[scored], values[scored])
    if known.size > MOST_LINES:
        low, high = ([float(np.quantile(group, q)) for group in groups] for q in (0.1, 0.9))
        axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="10 to 90 % of clients")
    means = [float(group.mean()) for group in groups]
    axes.plot(at, means, color="black", lw=2, ls="--", label=f"mean of {known.size} clients")


def _by_time(times: Float64, values: Float64) -> tuple[Float64, list[Float64]]:
    """The times, each once and in order, and the values that belong to each."""
    at, counts = np.unique(times, return_counts=True)
    return at, np.split(values[np.argsort(times, kind="stable")], np.cumsum(counts)[:-1])


def _times(columns: dict[str, NDArray[Any]]) -> tuple[Float64, str]:
    """The virtual times, or the wall times of a run on the wall clock, and which of the two they are."""
    virtual_s: Float64 = columns["virtual_s"]
    wall_s: Float64 = columns["wall_s"]
    return (virtual_s, "virtual") if np.isfinite(virtual_s).all() else (wall_s, "wall")


def _time_unit(times_s: Float64) -> tuple[str, float]:
    """The unit in which such times are read easily, and its seconds."""
    longest_s = float(times_s.max()) if times_s.size else 0.0
    if longest_s >= 3 * 86400:
        return "days", 86400.0
    return ("hours", 3600.0) if longest_s >= 3 * 3600 else ("s", 1.0)


# --------------------------------------------------------------------------------------- staleness, workers


def _draw_staleness(axes: Axes, run: Run) -> None:
    """Shares of the applied updates by their staleness, and the mean."""
    columns = run.columns("tasks", ["outcome", "staleness"])
    applied = (columns["outcome"] == Outcome.APPLIED) & (columns["staleness"] >= 0)
    stale = columns["staleness"][applied].astype(np.int64)
    axes.set_xlabel("staleness (versions)")
    axes.set_ylabel("share of applied updates")
    if not stale.size:
        _say_nothing(axes, "no updates applied")
        return
    width = max(1, math.ceil((int(stale.max()) + 1) / _MOST_BARS))  # versions a bar
    shares = np.bincount(stale // width) / stale.size
    left = np.arange(shares.size) * width - 0.5
    axes.bar(left, shares, width=width, align="edge", color=COLOURS[0], edgecolor="white", lw=0.5)
    axes.axvline(float(stale.mean()), color="black", ls="--", label=f"mean {stale.mean():.3g}, largest {stale.max()}")
    _whole_numbers(axes)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")


def _draw_workers(axes: Axes, uses: list[WorkerUse]) -> None:
    """A bar for each rank: how its wall time was spent."""
    axes.set_xlabel("rank (0 is the server)")
    axes.set_ylabel("share of wall time (%)")
    if not uses:
        _say_nothing(axes, "no rows of workers")
        return
    ranks = np.array([use.worker for use in uses])
    bottom = np.zeros(len(uses))
    for name, label, colour in _PARTS:
        share = np.array([100.0 * use.share(getattr(use, name)) for use in uses])
        axes.bar(ranks, share, bottom=bottom, color=colour, label=label, width=0.8)
        bottom += share
    rest = np.maximum(0.0, 100.0 - bottom)
    axes.bar(ranks, rest, bottom=bottom, color="#DDDDDD", label="waiting or other", width=0.8)
    axes.set_ylim(0.0, 100.0)
    margin = max(0.6, 2.5 - len(uses) / 2)  # so that few bars do not become walls
    axes.set_xlim(ranks.min() - margin, ranks.max() + margin)
    if len(uses) <= _MOST_BARS:
        axes.set_xticks(ranks)
    else:
        _whole_numbers(axes)
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """A legend outside the axes, where it hides no line."""
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _say_nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _plain(text: str) -> str:
    """A label that matplotlib takes literally: a leading underscore would hide it, dollars would be mathematics."""
    return text.lstrip("_").replace("$", r"\$") or "?"
