"""`fedsim watch`: follows a live record until its run ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from fedsim.errors import EXIT_BUG, EXIT_DONE, EXIT_LOST, EXIT_STALLED, FedsimError

if TYPE_CHECKING:
    from fedsim.config import RunConfig
    from fedsim.engine.roles import Pulse
    from fedsim.record.reader import Run

NOTE_AFTER_S = 30.0  # of silence: a live run writes a row for each rank every few seconds
STALL_TIMEOUT_S = 600.0  # where the configuration in the record cannot be read
_EXIT_CODES = {"done": EXIT_DONE, "stopped": EXIT_DONE, "stalled": EXIT_STALLED, "failed": EXIT_BUG, "lost": EXIT_LOST}
_NEWS = ("tasks", "versions", "evaluations", "failures")
_SIGNS_OF_LIFE = (*_NEWS, "workers")


class Look(NamedTuple):
    """A record at one moment: `news` changes when there is something to tell, `life` whenever something was written."""

    status: str
    news: tuple[int, ...]
    life: tuple[int, ...]
    line: str


@click.command(short_help="Follow a run until it ends.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05, max=3600.0),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds between looks.",
)
def watch(run: Path, interval: float) -> int:
    """Follow RUN while it goes on: a line whenever there is something new, and its status at the end.

    A record to which nothing was written for longer than the run's stall_timeout_s has no writer any more: the run was
    killed. Exit code 0 for a run that was done or stopped, 76 stalled, 70 failed, 77 killed or
    left without workers.
    """
    from fedsim.record.reader import open_run

    opened = open_run(run)
    config = _config(opened)
    patience_s = max(2 * NOTE_AFTER_S, STALL_TIMEOUT_S if config is None else config.stall_timeout_s)
    return follow(_looker(opened, config), interval, patience_s, click.echo)


def follow(
    look: Callable[[], Look],
    interval_s: float,
    patience_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """The exit code for how a run ended; looks every `interval_s`, gives up if nothing is written for `patience_s`."""
    news: tuple[int, ...] = ()
    life: tuple[int, ...] = ()
    alive_s, is_noted = clock(), False
    while True:
        now = look()
        if now.news != news:
            say(now.line)
        if now.life != life:
            alive_s, is_noted = clock(), False
        news, life = now.news, now.life
        if now.status != "running":
            say(f"status: {now.status}")
            return _EXIT_CODES.get(now.status, EXIT_BUG)
        silent_s = clock() - alive_s
        if silent_s >= patience_s:
            say(f"status: killed (the record says running, but nothing was written for {silent_s:.0f} s)")
            return EXIT_LOST
        if silent_s >= NOTE_AFTER_S and not is_noted:
            say(f"nothing was written for {silent_s:.0f} s; was the run killed? ({patience_s:.0f} s will tell)")
            is_noted = True
        sleep(interval_s)


def _config(run: Run) -> RunConfig | None:
    """The configuration in the record; None if this version of fedsim cannot read it."""
    from fedsim import configfile, yamltree

    try:
        mapping = yamltree.parse(run.config_text.encode(), str(run.path)).value
        return configfile.from_mapping(mapping, str(run.path))
    except FedsimError:
        return None


def _looker(run: Run, config: RunConfig | None) -> Callable[[], Look]:
    """Looks at a record again and again, and judges its pace by what it saw."""
    from fedsim.engine.progress import Limits, Pace, describe, duration

    pace = Pace(Limits() if config is None else Limits.of(config.stop))
    on_wall = config is not None and config.clock == "wall"

    def look() -> Look:
        run.refresh()
        pulse = _pulse(run)
        pace.observe(pulse)
        news, life = (tuple(run.n_rows(table) for table in tables) for tables in (_NEWS, _SIGNS_OF_LIFE))
        line = f"{duration(pulse.wall_s)}: {describe(pulse, pace, on_wall)}"
        return Look(run.status, news, (len(run.files), *life), line)

    return look


def _pulse(run: Run) -> Pulse:
    """Where the run stands by its record."""
    from fedsim.engine.roles import Pulse
    from fedsim.record.summary import last_metrics

    totals, metrics = run.totals(), last_metrics(run) or {}
    shown = {name: metrics[name] for name in ("loss", *run.metric_names) if name in metrics}
    return Pulse(totals.versions, totals.updates, totals.virtual_s, totals.wall_s, shown)
