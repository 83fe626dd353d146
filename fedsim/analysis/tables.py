"""Runs as tables for a terminal, and several runs against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.analysis.workers import worker_use
from fedsim.record.reader import Run

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MOST_CLIENTS = 20
MOST_KEYS = 6  # of a configuration, in a table; as JSON there are all
_SEED_AND_NAME = re.compile(r"(?m)^(?:seed|name):.*\n?")
_COMPARED = ("versions", "updates", "virtual_s", "wall_s", "updates_per_s")


# ---------------------------------------------------------------------------------------------- one run


def summary_table(run: Run, lies: Sequence[tuple[str, str]] = ()) -> Group:
    """What `fedsim show` prints, to be printed by rich: the run's state, then its metrics by client.

    `lies` are further lines (what, where), such as where the plot is.
    """
    from rich.console import Group

    summary = run.summary()
    parts = [_overview(run, summary, lies)]
    if summary["metrics"]:
        parts.append(_metrics(summary["metrics"], ["loss", *run.metric_names]))
    if summary["personal"]:
        parts.append(_metrics(summary["personal"], ["loss", *run.metric_names], "Clients' second models"))
    return Group(*parts)


def _overview(run: Run, summary: dict[str, Any], lies: Sequence[tuple[str, str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"Run {summary['name'] or run.path}"), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, said in [*_facts(run, summary), *lies]:
        table.add_row(escape(what), escape(said))
    return table


def _facts(run: Run, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the overview."""
    setting = [f"{name} {summary[name]}" for name in ("policy", "rule", "dataset", "clock", "seed")]
    outcomes = ", ".join(f"{count} {name}" for name, count in summary["outcomes"].items())
    facts = [
        ("status", summary["status"] + (" (or killed)" if summary["status"] == "running" else "")),
        ("setting", ", ".join(setting)),
        ("versions", str(summary["versions"])),
        ("updates", f"{summary['updates']}; tasks: {outcomes}"),
        ("virtual time", duration(summary["virtual_s"])),
        ("wall time", f"{duration(summary['wall_s'])}, {number(summary['updates_per_s'])} updates a second"),
        ("staleness", _staleness(summary["staleness"])),
        ("ranks", f"{summary['ranks']}; path {summary['training_path']}, groups of {summary['group_size']}"),
    ]
    if run.n_rows("workers"):
        facts.append(("workers", _workers(run)))
    if run.n_rows("failures"):
        facts.append(("failures", f"{run.n_rows('failures')}; see table failures"))
    facts += [("model", f"sha256 {summary['model_sha256'] or 'none yet'}")]
    facts += [("history", f"sha256 {summary['history_sha256']}")]
    return [*facts, ("record", ", ".join(str(path) for path in run.files))]


def _staleness(staleness: dict[str, float] | None) -> str:
    if staleness is None:
        return "-"
    return ", ".join(f"{name} {number(value)}" for name, value in staleness.items())


def _workers(run: Run) -> str:
    """How much of its time a worker trains: the least and the most among those that trained."""
    shares = [use.share(use.busy_s) for use in worker_use(run) if use.n_tasks]
    if not shares:
        return "-"
    return f"{len(shares)} trained {min(shares):.0%} to {max(shares):.0%} of their time"


def _metrics(metrics: dict[str, Any], names: list[str], what: str = "Evaluation") -> Table:
    """The last evaluation: a line a client, then the whole."""
    from rich.markup import escape
    from rich.table import Table

    clients = metrics.get("clients", {})
    table = Table(title=f"{what} of version {metrics['version']}", title_justify="left")
    table.add_column("test set")
    for name in ("samples", *names):
        table.add_column(escape(name), justify="right")
    for client, scores in list(clients.items())[:MOST_CLIENTS]:
        table.add_row(escape(client), str(scores["n_samples"]), *(number(scores[name]) for name in names))
    if len(clients) > MOST_CLIENTS:
        table.add_row(f"... {len(clients) - MOST_CLIENTS} more clients", *[""] * (1 + len(names)))
    pooled = "n_samples" in metrics
    table.add_section()
    table.add_row(
        "test set" if pooled else "mean of clients",
        str(metrics["n_samples"]) if pooled else "",
        *(number(metrics[name]) for name in names),
    )
    return table


def number(value: float | None) -> str:
    """A number with four significant digits, "-" for none.

    >>> number(0.73126), number(12), number(None)
    ('0.7313', '12', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it.

    >>> duration(0.25), duration(75.0), duration(7384.0), duration(200000.0), duration(None)
    ('0.25 s', '75 s', '2 h 03 min', '2 d 7 h', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 600:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# ------------------------------------------------------------------------------------------ several runs


class Spread(NamedTuple):
    """Mean and sample standard deviation over the runs that have the number; the deviation of one run is NaN."""

    mean: float
    deviation: float
    n_runs: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs of one configuration, seed and name aside: `values` by name, each over those runs.

    `differs` holds what distinguishes this configuration from the others that it is compared with, by key.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    statuses: tuple[str, ...]
    setting: str
    values: dict[str, Spread]
    paths: tuple[str, ...] = ()
    differs: dict[str, Any] = field(default_factory=dict)


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """A row for each configuration among the runs, in the order of their first: mean and spread over its seeds.

    Values are versions, updates, times, and loss and metrics of the last evaluation, a client's own as
    `<metric>/<client>`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_SEED_AND_NAME.sub("", run.config_text), []).append(run)
    distinct = _distinct([_flat(group[0].config_values) for group in groups.values()])
    return [_compared(group, differs) for group, differs in zip(groups.values(), distinct, strict=True)]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested sections by their dotted keys."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{path}.{name}".lstrip(".")).items()
    }


def _distinct(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration what is not the same in all of them, seed and name aside."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in ("seed", "name"))
    absent = object()
    varied = [key for key in keys if any(config.get(key, absent) != configs[0].get(key, absent) for config in configs)]
    return [{key: config[key] for key in varied if key in config} for config in configs]


def _compared(runs: list[Run], differs: dict[str, Any]) -> Comparison:
    summaries = [run.summary() for run in runs]
    numbers = [_numbers(summary) for summary in summaries]
    names = dict.fromkeys(name for found in numbers for name in found)
    first = summaries[0]
    return Comparison(
        names=tuple(str(summary["name"]) for summary in summaries),
        seeds=tuple(summary["seed"] for summary in summaries),
        statuses=tuple(summary["status"] for summary in summaries),
        setting=", ".join(str(first[name]) for name in ("dataset", "policy", "rule")),
        values={name: spread([found[name] for found in numbers if name in found]) for name in names},
        paths=tuple(str(run.path) for run in runs),
        differs=differs,
    )


def comparison_json(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparison as plain values for JSON: what is not a number is None."""
    return [
        {
            "runs": list(row.paths),
            "names": list(row.names),
            "seeds": list(row.seeds),
            "statuses": list(row.statuses),
            "setting": row.setting,
            "differs": {key: _plain_json(value) for key, value in row.differs.items()},
            "values": {name: _spread_json(value) for name, value in row.values.items()},
        }
        for row in rows
    ]


def _plain_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _spread_json(value: Spread) -> dict[str, Any]:
    numbers = {"mean": value.mean, "deviation": value.deviation}
    plain = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {**plain, "n_runs": value.n_runs}


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run that can be averaged, without those that it lacks."""
    found = {name: summary[name] for name in _COMPARED}
    for table, prefix in (("metrics", ""), ("personal", "personal ")):
        metrics = dict(summary[table] or {})
        clients = metrics.pop("clients", {})
        found |= {f"{prefix}{name}": metrics[name] for name in metrics if name not in ("version", "n_samples")}
        for client, scores in clients.items():
            found |= {f"{prefix}{name}/{client}": value for name, value in scores.items() if name != "n_samples"}
    return {name: float(value) for name, value in found.items() if value is not None}


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one number.

    >>> spread([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, n_runs=2)
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, math.nan, 1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)), len(values))


def comparison_table(rows: Sequence[Comparison], names: Sequence[str] | None = None) -> Table:
    """The comparison to be printed by rich, with these values as columns: by default all but the clients' own."""
    from rich.markup import escape
    from rich.table import Table

    shown = list(names) if names is not None else _default_names(rows)
    table = Table()
    keys = list(dict.fromkeys(key for row in rows for key in row.differs))[:MOST_KEYS]
    for heading in ("runs", "setting", *keys, "seeds", "status"):
        table.add_column(escape(heading))
    for name in shown:
        table.add_column(escape(name), justify="right")
    for row in rows:
        seeds, statuses = " ".join(map(str, row.seeds)), " ".join(dict.fromkeys(row.statuses))
        cells = [_cell(row.values.get(name)) for name in shown]
        told = [escape(_value(row.differs, key)) for key in keys]
        table.add_row(escape(row.names[0]), escape(row.setting), *told, seeds, statuses, *cells)
    return table


def _value(differs: dict[str, Any], key: str) -> str:
    value = differs.get(key, "")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _default_names(rows: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values if "/" not in name))


def _cell(value: Spread | None) -> str:
    if value is None:
        return "-"
    return number(value.mean) if math.isnan(value.deviation) else f"{number(value.mean)} ± {value.deviation:.2g}"
