"""A run as one object for scripts: what `fedsim show --json` prints.

Nothing in it depends on how many ranks there were, but `ranks`, the wall times and what is derived from them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.record.reader import Run
from fedsim.record.schema import HISTORY
from fedsim.types import Float32, Outcome

_KNOWN = ("name", "seed", "clock", "policy", "rule", "dataset", "ranks", "training_path", "group_size")
_STALENESS = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def summarise(run: Run) -> dict[str, Any]:
    """The summary of a run, ready for JSON: what is not a number is None, what is unknown too."""
    totals = run.totals()
    attributes = run.attributes
    weights = run.weights
    summary = {
        "status": run.status,
        "versions": totals.versions,
        "updates": totals.updates,
        "virtual_s": totals.virtual_s,
        "wall_s": totals.wall_s,
        "updates_per_s": totals.updates / totals.wall_s if totals.wall_s > 0 else None,
        "model_sha256": None if weights is None else model_sha256(weights),
        "history_sha256": history_sha256(run),
        "metrics": last_metrics(run),
        "personal": last_metrics(run, "personal"),
        "outcomes": outcome_counts(run),
        "staleness": staleness(run),
        "attempts": len(run.attempts),
        **{name: attributes.get(name) for name in _KNOWN},
    }
    cleaned: dict[str, Any] = _without_nan(summary)
    return cleaned


def model_sha256(weights_P: Float32) -> str:
    """SHA-256, hexadecimal, of the flat parameters' little-endian float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(weights_P, "<f4").data).hexdigest()


def history_sha256(run: Run) -> str:
    """SHA-256, hexadecimal, of the virtual columns of `tasks` in event order: see `fedsim.record.schema.HISTORY`."""
    columns = run.columns("tasks", [name for name, _ in HISTORY])
    return columns_sha256([columns[name] for name, _ in HISTORY])


def columns_sha256(columns: list[NDArray[Any]]) -> str:
    """The hash of a history whose columns are given in the order of `HISTORY`, in any integer or float type."""
    digest = hashlib.sha256()
    for values, (_, dtype) in zip(columns, HISTORY, strict=True):
        exact = np.array(values, dtype)
        if dtype == "<f8":
            exact[np.isnan(exact)] = np.nan  # one NaN of the many
        digest.update(exact.data)
    return digest.hexdigest()


def last_metrics(run: Run, table: str = "evaluations") -> dict[str, Any] | None:
    """The evaluation of the last version that has one: loss and metrics, and those of every client that was scored.

    Without a pooled or central test set the top level is the unweighted mean over the clients. Table `personal` has
    the clients' second models.
    """
    if not run.n_rows(table):
        return None
    names = ["loss", *run.metric_names]
    columns = run.columns(table, ["version", "client", "n_samples", *names])
    version = int(columns["version"].max())
    rows = _scores(columns, version, names)
    clients = {client: scores for client, scores in sorted(rows.items()) if client >= 0}
    top = rows.get(-1) or {name: _mean([scores[name] for scores in clients.values()]) for name in names}
    metrics: dict[str, Any] = {"version": version, **top}
    if clients:
        given = run.client_names
        metrics["clients"] = {_client_name(given, client): scores for client, scores in clients.items()}
    return metrics


def _scores(columns: dict[str, NDArray[Any]], version: int, names: list[str]) -> dict[int, dict[str, Any]]:
    """Loss, metrics and samples of one version by client."""
    rows = {}
    for row in np.flatnonzero(columns["version"] == version).tolist():
        scores: dict[str, Any] = {name: float(columns[name][row]) for name in names}
        rows[int(columns["client"][row])] = scores | {"n_samples": int(columns["n_samples"][row])}
    return rows


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _client_name(names: list[str], client: int) -> str:
    return names[client] if client < len(names) else str(client)


def outcome_counts(run: Run) -> dict[str, int]:
    """Tasks that ended in each way, by the outcome's name."""
    outcomes = run.column("tasks", "outcome")
    return {outcome.name.lower(): int((outcomes == outcome).sum()) for outcome in Outcome}


def staleness(run: Run) -> dict[str, float] | None:
    """Mean, quantiles and maximum of the staleness of the updates that were applied; None without any."""
    columns = run.columns("tasks", ["outcome", "staleness"])
    values = columns["staleness"][columns["outcome"] == Outcome.APPLIED]
    if not values.size:
        return None
    quantiles = {name: float(np.quantile(values, q)) for name, q in _STALENESS}
    return {"mean": float(values.mean()), **quantiles, "max": int(values.max())}


def _without_nan(value: Any) -> Any:
    """The same with None for every float that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
