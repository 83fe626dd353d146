"""`fedsim sweep`: the runs of a grid of values, one after the other, or one of them as an element of a job array."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fedsim.cli.running import code_option, quiet_option, set_option
from fedsim.errors import EXIT_DONE, EXIT_REQUEUE, ConfigError

if TYPE_CHECKING:
    from fedsim.jobs.sweep import Point, Sweep

vary_option = click.option(
    "--vary", multiple=True, metavar="PATH=[V,...]", help="Values to combine, as seed=[1,2,3]; repeatable."
)


@click.command(short_help="Run a configuration with some values varied.")
@click.argument("config", type=click.Path(path_type=Path))
@vary_option
@set_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder; runs/NAME-sweep if not given.")
@click.option("--ranks", type=click.IntRange(1, 2**20), default=1, show_default=True, metavar="N", help="Ranks a run.")
@click.option("--point", type=click.IntRange(0), metavar="I", help="Run this point only, counted from 0.")
@click.option("--freeze", is_flag=True, help="Check and write the manifest; run nothing.")
@quiet_option
@code_option
def sweep(
    config: Path,
    vary: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    ranks: int,
    point: int | None,
    freeze: bool,
    quiet: bool,
    allow_code: bool,
) -> int:
    """Run the configuration file CONFIG with all combinations of the values of --vary.

    The points are checked and written into DIR/manifest.json, which is then fixed; each run gets a folder of its own
    beside it. Called again, or with the folder DIR in place of CONFIG, it goes on: what is done is skipped, what was
    begun is resumed. More than one rank start under supervision, as by launch/run.
    """
    chosen = prepared(config, vary, overrides, out, ranks, allow_code)
    if point is not None and point >= len(chosen.points):
        raise ConfigError(f"--point is {point}; allowed: 0 to {len(chosen.points) - 1}")
    if freeze:
        click.echo(f"{len(chosen.points)} points: {chosen.folder}")
        return EXIT_DONE
    worst = EXIT_DONE
    for one in chosen.points if point is None else (chosen.points[point],):
        code = _run_point(chosen, one, ranks, quiet, allow_code)
        if code == EXIT_REQUEUE or code < 0:
            return EXIT_REQUEUE if code == EXIT_REQUEUE else 128 - code
        worst = worst or code
    return worst


def prepared(
    config: Path, vary: tuple[str, ...], overrides: tuple[str, ...], out: Path | None, ranks: int, allow_code: bool
) -> Sweep:
    """The frozen sweep: that of a folder, or a new one, whose points could all run."""
    from fedsim.jobs import sweep as sweeps

    if config.is_dir():
        if vary or overrides or out is not None:
            raise ConfigError(f"{config}: a sweep that goes on keeps its points: no --vary, no --set, no --out")
        return sweeps.read(config)
    made = checked(config, vary, overrides, out, ranks, allow_code)
    sweeps.freeze(made)
    return made


def checked(
    config: Path, vary: tuple[str, ...], overrides: tuple[str, ...], out: Path | None, ranks: int, allow_code: bool
) -> Sweep:
    """A new sweep, not yet written down, whose points could all run on so many ranks each."""
    from fedsim import configfile
    from fedsim.engine import launching
    from fedsim.engine.plan import plan
    from fedsim.jobs import sweep as sweeps

    if not vary:
        raise ConfigError("a sweep needs --vary PATH=[V,...], such as --vary seed=[1,2,3]")
    name = configfile.load(config, overrides).name
    made = sweeps.grid(config, overrides, vary, Path("runs") / f"{name}-sweep" if out is None else out)
    for one in made.points:
        planned = plan(configfile.load(config, one.overrides), config.resolve().parent, allow_code)
        launching.check_size(planned.training_path, ranks)
    return made


def _run_point(chosen: Sweep, one: Point, ranks: int, quiet: bool, allow_code: bool) -> int:
    """The exit code of a point's run; negative if a signal killed it."""
    if chosen.is_done(one):
        _say(f"{one.name}: done already", quiet)
        return EXIT_DONE
    chosen.check(one)
    _say(f"{one.name}: {' '.join(one.overrides)}", quiet)
    return _call([*_words(chosen, one, ranks), *["--allow-code"] * allow_code])


def _words(chosen: Sweep, one: Point, ranks: int) -> list[str]:
    """What runs a point, or goes on with it."""
    run = chosen.run_of(one)
    begun = any(run.glob("record-*.h5"))
    first = [str(chosen.config), "--out", str(run), *(word for value in one.overrides for word in ("--set", value))]
    if ranks > 1:
        words = ["-m", "fedsim.supervisor", "-n", str(ranks), *([str(run)] if begun else first)]
    else:
        words = ["-m", "fedsim", *(["resume", str(run)] if begun else ["run", *first])]
    return [sys.executable, *words, "--quiet"]


def _call(words: list[str]) -> int:
    """The exit code of a command; what asks us to end is handed on to it, once as SIGUSR2, then as it is."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number if asked else signal.SIGUSR2)
        asked.append(number)

    former: dict[int, Any] = {}
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        former[name] = signal.signal(name, hand_on)
    try:
        return process.wait()
    finally:
        for given, handler in former.items():
            signal.signal(given, handler)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        click.echo(text, err=True)
