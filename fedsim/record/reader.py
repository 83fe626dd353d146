"""Reads a run: finished, live, or killed; its attempts as one.

A `Run` is a snapshot: which rows it has is settled when it is opened or refreshed. No file stays open, so that a live
run can be watched for days and a finished one be moved. Tables become data frames when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedsim import yamltree
from fedsim.errors import ConfigError, RecordError
from fedsim.record import guard
from fedsim.record.pieces import Piece, kept_rows, largest_number, pieces_at, read_columns, wall_s
from fedsim.record.provenance import Attribute, RankPlace
from fedsim.record.schema import TABLES, RunTotals, Table, Tensors, table_named
from fedsim.types import Float32, Outcome

if TYPE_CHECKING:
    import pandas


def open_run(path: Path | str) -> Run:
    """The run in a folder, or of one record file. `RecordError` if there is none, or none that can be read."""
    return Run(Path(path))


class Run:
    """A run read from its record.

    `tasks`, `versions`, `evaluations`, `workers` and `failures` are data frames with the record's columns; units are in
    `attrs["units"]`. Integers that do not exist are -1, floats NaN; `tasks.outcome` numbers a `fedsim.types.Outcome`.
    """

    def __init__(self, path: Path, joined: bool = True) -> None:
        """Looks at the run. Without `joined` the attempts are read even where there is a joined record."""
        self.path = path
        self._joined = joined
        self.refresh()

    def refresh(self) -> None:
        """Looks again: new rows of a live run, new attempts, a new status."""
        self._cache: dict[str, Any] = {}
        self._pieces = pieces_at(self.path, self._joined)
        self._kept = kept_rows(self._pieces)

    def __repr__(self) -> str:
        shown = [table for table in TABLES if not table.optional or self.n_rows(table.name)]
        counts = ", ".join(f"{self.n_rows(table.name)} {table.name}" for table in shown)
        return f"<Run {self.path}: {self.status}, {counts}>"

    @property
    def files(self) -> tuple[Path, ...]:
        """The record files that are read, in order."""
        return tuple(piece.path for piece in self._pieces)

    def parts(self, table: str) -> list[tuple[Piece, int]]:
        """The record files, and how many of a table's rows are kept of each, from its first on."""
        table_named(table)
        return list(zip(self._pieces, self._kept[table], strict=True))

    @property
    def attributes(self) -> dict[str, Attribute]:
        """The provenance: root attributes of the last attempt."""
        return dict(self._pieces[-1].attributes)

    @property
    def status(self) -> str:
        """running, done, stopped, stalled or failed; a killed run is still `running`."""
        return self._pieces[-1].status

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Each life of the process set: attempt, file, status, created, ranks, hosts, wall_s, rows kept by table."""
        if self._pieces[-1].last_attempt is not None:
            return list(self._last("attempts", self._noted_attempts))
        return [self._attempt(index) for index in range(len(self._pieces))]

    def _noted_attempts(self, file: h5py.File) -> list[dict[str, Any]]:
        """What a joined record says of its attempts; their rows must add up to the rows that are there."""
        noted: list[dict[str, Any]] = guard.read_json(file, "run/attempts", list)
        for table in TABLES:
            counts = [attempt["rows"].get(table.name, 0 if table.optional else None) for attempt in noted]
            if any(type(count) is not int or count < 0 for count in counts) or sum(counts) != self.n_rows(table.name):
                raise RecordError(
                    f"run/attempts: rows of table {table.name} do not add up to {self.n_rows(table.name)}"
                )
        return noted

    def _attempt(self, index: int) -> dict[str, Any]:
        piece = self._pieces[index]
        known = {name: piece.attributes.get(name) for name in ("attempt", "created", "ranks", "hosts")}
        rows = {table: kept[index] for table, kept in self._kept.items()}
        return {"file": piece.path.name, "status": piece.status, "wall_s": wall_s(piece), "rows": rows, **known}

    def table(self, name: str) -> Table:
        """What the table holds: its columns, the extra ones included."""
        table_named(name)
        return self._pieces[-1].tables[name]

    def n_rows(self, table: str) -> int:
        """Rows of a table."""
        table_named(table)
        return sum(self._kept[table])

    def column(self, table: str, name: str) -> NDArray[Any]:
        """One column, all attempts joined: shape (rows,), in the dtype of the schema; texts are bytes."""
        return self.columns(table, [name])[name]

    def columns(self, table: str, names: list[str]) -> dict[str, NDArray[Any]]:
        """Several columns by name, each as `column` gives it, with every file opened once."""
        known = {column.name: column for column in self.table(table).columns}
        for name in names:
            if name not in known:
                raise RecordError(f"table {table} has no column '{name:.80}'; allowed: {', '.join(known)}")
        parts: dict[str, list[NDArray[Any]]] = {name: [np.empty(0, known[name].dtype)] for name in names}
        for piece, kept in self.parts(table):
            if not kept:
                continue
            dtypes = {f"{table}/{name}": known[name].dtype for name in names}
            for part, values in zip(parts.values(), read_columns(piece, dtypes, 0, kept), strict=True):
                part.append(values)
        return {name: np.concatenate(part) for name, part in parts.items()}

    def frame(self, table: str) -> pandas.DataFrame:
        """A table as a data frame; texts decoded. The same object until `refresh`."""
        if table not in self._cache:
            import pandas

            columns = self.table(table).columns
            data = {name: _decoded(values) for name, values in self.columns(table, [c.name for c in columns]).items()}
            frame = pandas.DataFrame(data, copy=False)
            frame.attrs["units"] = {column.name: column.units for column in columns}
            self._cache[table] = frame
        return self._cache[table]

    @property
    def tasks(self) -> pandas.DataFrame:
        """A row a task that ended, in event order."""
        return self.frame("tasks")

    @property
    def versions(self) -> pandas.DataFrame:
        """A row a version."""
        return self.frame("versions")

    @property
    def evaluations(self) -> pandas.DataFrame:
        """A row a scored version and test set."""
        return self.frame("evaluations")

    @property
    def workers(self) -> pandas.DataFrame:
        """A row a worker and interval; sums since the attempt's start."""
        return self.frame("workers")

    @property
    def failures(self) -> pandas.DataFrame:
        """A row something that went wrong."""
        return self.frame("failures")

    @property
    def personal(self) -> pandas.DataFrame:
        """A row a client whose second model was scored, as in `evaluations`; empty where clients have none."""
        return self.frame("personal")

    @property
    def metric_names(self) -> list[str]:
        """The evaluations' metrics, loss aside."""
        base = table_named("evaluations").names
        return [name for name in self.table("evaluations").names if name not in base]

    @property
    def config_text(self) -> str:
        """The resolved configuration."""
        return str(self._last("config", lambda file: guard.read_text(file, "run/config")))

    @property
    def config_values(self) -> dict[str, Any]:
        """The resolved configuration as nested plain values; empty if that is not what the record holds."""
        try:
            value = yamltree.parse(self.config_text.encode(), str(self.path)).value
        except ConfigError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def client_names(self) -> list[str]:
        """Names of the clients by number; empty where they have none."""
        names = self._last("clients", lambda file: guard.read_json(file, "run/clients", list))
        return [str(name) for name in names]

    @property
    def places(self) -> list[RankPlace]:
        """Rank, host, device and CPU capability of every rank of the last attempt."""
        found: list[RankPlace] = self._last("ranks", _read_places)
        return found

    @property
    def layout(self) -> Tensors:
        """The model's tensors: name, shape, offset into the flat vector."""
        found: Tensors = self._last("layout", _read_layout)
        return found

    @property
    def n_parameters(self) -> int:
        """Values of the flat vector."""
        return int(self._last("n_parameters", lambda file: guard.dataset_of(file, "model/weights").maxshape[0] or 0))

    @property
    def weights(self) -> Float32 | None:
        """The final model, float32 (P,); None while there is none, or only an earlier one than was recorded."""
        if not self._pieces[-1].supersedes:
            return None
        found: Float32 | None = self._last("weights", _read_weights)
        return found

    def _last(self, key: str, read: Callable[[h5py.File], Any]) -> Any:
        """What `read` finds in the last attempt's file, remembered until `refresh`."""
        if key not in self._cache:
            self._cache[key] = guard.reading(self._pieces[-1].path, read)
        return self._cache[key]

    def totals(self) -> RunTotals:
        """Versions, updates, virtual seconds reached, and wall seconds over all attempts; counted where not noted."""
        last = self._pieces[-1]
        noted = last.totals if last.totals.versions >= 0 and last.supersedes else None
        if noted is not None and len(self._pieces) == 1:
            return noted
        if "totals" not in self._cache:
            total_s = sum(wall_s(piece) for piece in self._pieces)
            self._cache["totals"] = (noted or self._counted())._replace(wall_s=total_s)
        totals: RunTotals = self._cache["totals"]
        return totals

    def _counted(self) -> RunTotals:
        versions = self.columns("versions", ["version", "virtual_s"])
        tasks = self.columns("tasks", ["outcome", "virtual_arrival_s"])
        return RunTotals(
            int(max(versions["version"], default=0)),
            int((tasks["outcome"] == Outcome.APPLIED).sum()),
            largest_number([versions["virtual_s"], tasks["virtual_arrival_s"]]),
            0.0,
        )

    def summary(self) -> dict[str, Any]:
        """What `fedsim show --json` prints; see `fedsim.record.summary`."""
        from fedsim.record.summary import summarise

        return summarise(self)


def _read_weights(file: h5py.File) -> Float32 | None:
    dataset = guard.dataset_of(file, "model/weights")
    if dataset.ndim != 1 or dataset.dtype != np.dtype("<f4"):
        raise RecordError(f"model/weights: {dataset.dtype} of shape {dataset.shape}, not one dimension of <f4")
    if dataset.size * 4 > dataset.id.get_storage_size() * guard.expansion(dataset):
        raise RecordError(f"model/weights: {dataset.size} values are said, but not stored")
    weights: Float32 = dataset[...]
    return weights if weights.size else None


def _read_places(file: h5py.File) -> list[RankPlace]:
    return [RankPlace(**place) for place in guard.read_json(file, "run/ranks", list)]


def _read_layout(file: h5py.File) -> Tensors:
    """The layout as written; one that cannot be is refused, since others cut the weights by it."""
    tensors, total = [], 0
    for tensor in guard.read_json(file, "model/layout", list):
        shape = tuple(tensor["shape"])
        if type(tensor["name"]) is not str or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
            raise RecordError("model/layout: a tensor without a name and a shape")
        if tensor["offset"] != total:
            raise RecordError(f"model/layout: offset {tensor['offset']!r:.40} where {total} was due")
        tensors.append((tensor["name"], shape, total))
        total += math.prod(shape)
    return tuple(tensors)


def _decoded(values: NDArray[Any]) -> Any:
    if values.dtype.kind != "S":
        return values
    return [text.decode("utf-8", "replace") for text in values.tolist()]
