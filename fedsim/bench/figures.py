"""What a benchmark found: figures with their spread, beside the figure asked for, and the machine that they are of."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsim.errors import RecordError


@dataclass(frozen=True, slots=True)
class Target:
    """The range that a figure's median is meant to lie in, both ends included."""

    least: float = -math.inf
    most: float = math.inf

    def is_met(self, value: float) -> bool:
        """Whether a value lies in the range."""
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.least == -math.inf:
            return f"at most {self.most:.4g}"
        if self.most == math.inf:
            return f"at least {self.least:.4g}"
        return f"{self.least:.4g} to {self.most:.4g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: the median of `n` values and the least and largest of them, in `unit`."""

    name: str
    value: float
    least: float
    most: float
    n: int
    unit: str
    target: Target | None = None

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str, target: Target | None = None) -> Figure:
        """The figure of some measurements, at least one.

        Raises:
            RecordError: a value is not a number.
        """
        if not values or not all(math.isfinite(value) for value in values):
            raise RecordError(f"{name}: measured {list(values)}, which is no number")
        return cls(name, statistics.median(values), min(values), max(values), len(values), unit, target)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is as asked for; None where nothing is."""
        return None if self.target is None else self.target.is_met(self.value)

    def as_dict(self) -> dict[str, Any]:
        """The figure for JSON; `target` is its words."""
        values = {"name": self.name, "unit": self.unit, "median": self.value, "min": self.least, "max": self.most}
        target = None if self.target is None else str(self.target)
        return {**values, "n": self.n, "target": target, "met": self.is_met}

    def cells(self) -> tuple[str, ...]:
        """The figure as the words of a table's line."""
        verdict = {None: "", True: "met", False: "missed"}[self.is_met]
        spread = ("", "") if self.n == 1 else (_short(self.least), _short(self.most))
        target = "" if self.target is None else str(self.target)
        return (self.name, _short(self.value), *spread, self.unit, target, verdict)


def paired_ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """`of[i] / to[i]`: each measurement against its neighbour in time, so that what slows both cancels out."""
    return [a / b for a, b in zip(of, to, strict=True)]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and with what was measured; `load` is the load average of a minute before the start."""

    cpu: str
    cores: int
    usable_cores: int
    load: float
    python: str
    fedsim: str
    torch: str
    numpy: str
    mpi: str

    def line(self) -> str:
        """The machine in words."""
        return (
            f"{self.cpu}, {self.cores} cores ({self.usable_cores} usable), load {self.load:.2f} before; "
            f"Python {self.python}, fedsim {self.fedsim}, torch {self.torch}, numpy {self.numpy}, {self.mpi}"
        )


_HEADS = ("figure", "median", "min", "max", "unit", "target", "")


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark's result. `settings` say what was run, `runs` hold the raw values of each run in their order."""

    bench: str
    machine: Machine
    what: str
    settings: Mapping[str, Any]
    figures: Sequence[Figure]
    runs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def json(self) -> str:
        """One JSON object: bench, what, machine, settings, figures, runs."""
        whole = {
            "bench": self.bench,
            "what": self.what,
            "machine": asdict(self.machine),
            "settings": dict(self.settings),
            "figures": [figure.as_dict() for figure in self.figures],
            "runs": [dict(run) for run in self.runs],
        }
        return json.dumps(whole, indent=2, allow_nan=False)

    def text(self) -> str:
        """The report for people: what, where, and a line a figure."""
        rows = [_HEADS, *(figure.cells() for figure in self.figures)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        changed = [f"changed: {' '.join(self.settings['set'])}"] if self.settings.get("set") else []
        return "\n".join([f"{self.bench}: {self.what}", *changed, f"machine: {self.machine.line()}", "", *lines])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
