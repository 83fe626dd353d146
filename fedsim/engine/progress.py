"""What a person sees of a run while it goes on: a bar on a terminal, else a line now and then in a log file.

A watcher is called between all events of a run. It compares one number and returns, nearly always.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TextIO

if TYPE_CHECKING:
    from fedsim.config import StopConfig
    from fedsim.engine.roles import Pulse

TERMINAL_INTERVAL_S = 0.2
LOG_INTERVAL_S = 60.0
EVALUATION_INTERVAL_S = 5.0
_WINDOW_S = 60.0  # over which rates are taken
_RESOLUTION = 1000  # steps of the bar


class Limits(NamedTuple):
    """Where a run ends, as far as numbers tell: the first of these that is reached."""

    versions: float | None = None
    updates: float | None = None
    virtual_s: float | None = None
    wall_s: float | None = None

    @classmethod
    def of(cls, stop: StopConfig) -> Limits:
        """The limits of a configuration; a target metric is not one."""
        return cls(stop.versions, stop.updates, stop.virtual_s, stop.wall_s)


class _Sample(NamedTuple):
    """A pulse's numbers, in the order of `Limits`."""

    versions: float
    updates: float
    virtual_s: float
    wall_s: float


class Pace:
    """How fast a run goes on, judged by the last minute of what was seen of it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._samples: deque[_Sample] = deque([_Sample(0.0, 0.0, 0.0, 0.0)])

    def observe(self, pulse: Pulse) -> None:
        """Takes the numbers of this moment."""
        self._samples.append(_Sample(pulse.version, pulse.n_updates, pulse.virtual_s, pulse.wall_s))
        while len(self._samples) > 2 and pulse.wall_s - self._samples[1].wall_s >= _WINDOW_S:
            self._samples.popleft()

    @property
    def updates_per_s(self) -> float:
        """Updates a wall second; NaN before there are two moments."""
        return self._rates().updates

    @property
    def fraction(self) -> float | None:
        """How much of the run is done, by the limit that is nearest: 0 to 1; None without limits."""
        now = self._samples[-1]
        parts = [value / limit for value, limit in zip(now, self._limits, strict=True) if limit]
        return min(1.0, max(parts)) if parts else None

    @property
    def remaining_s(self) -> float | None:
        """Wall seconds to the end at this pace; None where that cannot be told."""
        now, rates = self._samples[-1], self._rates()
        waits = [
            max(0.0, limit - value) / rate
            for value, rate, limit in zip(now, rates, self._limits, strict=True)
            if limit is not None and rate > 0.0
        ]
        return min(waits, default=None)

    def _rates(self) -> _Sample:
        """Each number's growth a wall second."""
        first, last = self._samples[0], self._samples[-1]
        elapsed_s = last.wall_s - first.wall_s
        if elapsed_s <= 0.0:
            return _Sample(math.nan, math.nan, math.nan, math.nan)
        return _Sample(*((b - a) / elapsed_s for a, b in zip(first, last, strict=True)))


def describe(pulse: Pulse, pace: Pace, on_wall: bool) -> str:
    """One line that says where a run stands; `on_wall` leaves out the virtual time, which is the wall's then."""
    rate = pace.updates_per_s
    parts = [
        f"version {pulse.version:,}",
        f"{pulse.n_updates:,} updates" + ("" if math.isnan(rate) else f" ({_short(rate)}/s)"),
    ]
    if not on_wall and not math.isnan(pulse.virtual_s):
        parts.append(f"virtual {_short(pulse.virtual_s)} s")
    parts += metric_texts(pulse.metrics)
    remaining_s = pace.remaining_s
    if remaining_s is not None:
        parts.append(f"{duration(remaining_s)} left")
    return " | ".join(parts)


def metric_texts(metrics: Mapping[str, float]) -> list[str]:
    """`name value` for each metric, the loss last."""
    ordered = sorted(metrics, key=lambda name: name == "loss")
    return [f"{name} {metrics[name]:.4f}" for name in ordered]


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(42.4), duration(3725)
    ('42 s', '1:02:05')
    """
    whole = round(min(seconds, 1e9))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


# ------------------------------------------------------------------------------------------------ watchers


class Progress(Protocol):
    """A watcher that is entered before a run and left after it."""

    def __call__(self, pulse: Pulse) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def watcher(stream: TextIO, limits: Limits, on_wall: bool, quiet: bool) -> Progress:
    """Who shows a run on this stream: a bar where it is a terminal, lines elsewhere, nothing if it is to be quiet."""
    if quiet:
        return Silence()
    return Bar(stream, limits, on_wall) if stream.isatty() else Log(stream, limits, on_wall)


class Silence:
    """Shows nothing."""

    def __call__(self, pulse: Pulse) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Log(Silence):
    """Writes a line a minute; at the beginning one for a new evaluation: after 5 seconds, 10 more, 20 more, 40 more."""

    def __init__(self, stream: TextIO, limits: Limits, on_wall: bool) -> None:
        self._stream = stream
        self._pace = Pace(limits)
        self._on_wall = on_wall
        self._interval_s = EVALUATION_INTERVAL_S
        self._next_s = EVALUATION_INTERVAL_S
        self._due_s = LOG_INTERVAL_S
        self._metrics: Mapping[str, float] = {}

    def __call__(self, pulse: Pulse) -> None:
        if pulse.wall_s < self._next_s:
            return
        if pulse.wall_s < self._due_s and pulse.metrics == self._metrics:
            return
        self._write(pulse)

    def _write(self, pulse: Pulse) -> None:
        self._interval_s = min(2.0 * self._interval_s, LOG_INTERVAL_S)
        self._next_s = pulse.wall_s + self._interval_s
        self._due_s = pulse.wall_s + LOG_INTERVAL_S
        self._metrics = pulse.metrics
        self._pace.observe(pulse)
        line = f"{duration(pulse.wall_s)}: {describe(pulse, self._pace, self._on_wall)}"
        print(line, file=self._stream, flush=True)


class Bar(Silence):
    """Draws a bar on a terminal, at most five times a second; it is gone when the run is over."""

    def __init__(self, stream: TextIO, limits: Limits, on_wall: bool) -> None:
        self._stream = stream
        self._pace = Pace(limits)
        self._on_wall = on_wall
        self._next_s = TERMINAL_INTERVAL_S
        self._drawn: Any = None  # rich's Progress, from the first pulse on

    def __call__(self, pulse: Pulse) -> None:
        if pulse.wall_s < self._next_s:
            return
        self._next_s = pulse.wall_s + TERMINAL_INTERVAL_S
        self._pace.observe(pulse)
        if self._drawn is None:
            self._drawn = self._begun()
        fraction = self._pace.fraction
        completed = None if fraction is None else round(fraction * _RESOLUTION)
        self._drawn.update(0, completed=completed, description=describe(pulse, self._pace, self._on_wall))
        self._drawn.refresh()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None

    def _begun(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.table import Column

        text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"), markup=False)
        # Drawn by hand: no thread may wake up beside MPI and torch.
        drawn = Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            text,
            console=Console(file=self._stream),
            auto_refresh=False,
            transient=True,
        )
        drawn.add_task("", total=None if self._pace.fraction is None else _RESOLUTION)
        drawn.start()
        return drawn
