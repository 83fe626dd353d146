"""`fedsim run`, `resume` and `replay`: the commands that train, alone or as one of many ranks."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli import EXIT_INTERRUPTED, say
from fedsim.errors import EXIT_BUG, EXIT_DONE, EXIT_LOST, EXIT_REQUEUE, FedsimError

if TYPE_CHECKING:
    from fedsim.engine.launching import StopSignals, World
    from fedsim.engine.progress import Limits, Progress
    from fedsim.engine.run import Caller, Ending

_SIGNAL_BASE = 128

out_option = click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the record.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress and no results; errors are still told.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value, as stop.versions=10; repeatable."
)
code_option = click.option(
    "--allow-code", is_flag=True, help="Load functions from files of your own that the configuration names."
)


@click.command(short_help="Run a configuration file, alone or as a rank of an MPI job.")
@click.argument("config", type=click.Path(path_type=Path))
@set_option
@out_option
@quiet_option
@code_option
def run(config: Path, overrides: tuple[str, ...], out: Path | None, quiet: bool, allow_code: bool) -> int:
    """Run the configuration file CONFIG, alone or as a rank of an MPI job.

    The record goes to runs/NAME, NAME being that of the configuration, or to the folder of --out, which must not exist.

    A run ends in order at SIGINT (Ctrl-C), SIGTERM and SIGUSR2: it writes a checkpoint, its status is then `stopped`,
    and the exit code 75; fedsim resume goes on. One that ends at its `stop.wall_s` is `stopped`, too, with a checkpoint
    and exit code 0. Under mpirun send SIGUSR2, which it forwards: at a Ctrl-C or SIGTERM it kills the ranks after a
    moment. A second Ctrl-C ends a run without MPI at once.
    """

    def start(caller: Caller) -> Ending | None:
        from fedsim.engine.run import run_file

        return run_file(config, overrides, out, replace(caller, allow_code=allow_code))

    return _as_rank(lambda: _limits_of(config, overrides), start, _report_run, quiet)


@click.command(short_help="Go on with a run that was stopped or killed.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--allow-mixed", is_flag=True, help="Go on where other bits may come out: another device or library.")
@quiet_option
@code_option
def resume(run: Path, allow_mixed: bool, quiet: bool, allow_code: bool) -> int:
    """Go on with RUN, the folder of a run that was stopped or killed, alone or as a rank of an MPI job.

    It goes on from the newest checkpoint that is whole, or from the beginning without one, on any number of ranks, and
    comes to the same bits as a run that nobody disturbed. The record of the new attempt lies beside the others; readers
    join them. A run that is done has nothing to go on with: that is said, and the exit code is 0.
    """

    def start(caller: Caller) -> Ending | None:
        from fedsim.engine.run import resume_run

        return resume_run(run, replace(caller, allow_mixed=allow_mixed, allow_code=allow_code))

    return _as_rank(lambda: _limits_in(run), start, _report_run, quiet)


@click.command(short_help="Train a recorded history again and compare the models.")
@click.argument("run", type=click.Path(path_type=Path))
@out_option
@quiet_option
@code_option
def replay(run: Path, out: Path | None, quiet: bool, allow_code: bool) -> int:
    """Train the recorded history of RUN again and compare the models.

    The same clients train from the same versions for the same steps, and their updates are applied in the recorded
    order: what a run on the wall clock did once can be had again. The new record goes to RUN-replay, or to --out.
    Exit code 0: the same model, bit by bit. 70: another one.
    """

    def start(caller: Caller) -> Ending | None:
        from fedsim.engine.run import replay_run

        return replay_run(run, out, replace(caller, allow_code=allow_code))

    return _as_rank(lambda: _limits_of_record(run), start, lambda ending, q: _report_replay(run, ending, q), quiet)


# ------------------------------------------------------------------------------------------- being a rank


def _as_rank(
    limits: Callable[[], tuple[Limits, bool]],
    start: Callable[[Caller], Ending | None],
    report: Callable[[Ending, bool], int],
    quiet: bool,
) -> int:
    """The exit code of this rank: does its part, reports on rank zero, and leaves together with the others."""
    from fedsim.engine import launching, leaving

    world = launching.find_world(os.environ, ("fedsim", *sys.argv[1:]))
    code = _guarded(world, lambda: _part(world, limits, start, report, quiet))
    leaving.leave(world, code)
    return code


def _part(
    world: World,
    limits: Callable[[], tuple[Limits, bool]],
    start: Callable[[Caller], Ending | None],
    report: Callable[[Ending, bool], int],
    quiet: bool,
) -> int:
    from fedsim.engine import launching, watchdog
    from fedsim.engine.run import Caller

    watchdog.listen_to_signal()
    with launching.StopSignals(world) as stop, _progress(world, limits, quiet) as progress:
        watchers = (progress,) if world.rank == 0 else ()
        ending = start(Caller(world, ("fedsim", *sys.argv[1:]), watchers, stop, may_exit=True))
    if ending is None:
        return EXIT_DONE
    code = report(ending, quiet)
    code = _stopped_code(ending, stop) or code
    if ending.is_stuck:
        launching.abort(world, code)
    return code


def _progress(world: World, limits: Callable[[], tuple[Limits, bool]], quiet: bool) -> Progress:
    from fedsim.engine import progress

    if quiet or world.rank > 0:
        return progress.Silence()
    where, on_wall = limits()
    return progress.watcher(sys.stderr, where, on_wall, quiet)


def _guarded(world: World, body: Callable[[], int]) -> int:
    """The body's exit code. What nobody expected ends all ranks at once: the others may wait for this one for ever."""
    from fedsim.engine import launching, leaving

    try:
        return body()
    except FedsimError as error:
        return say(str(error), error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if world.comm is None:
            raise
        if leaving.is_death(error):  # before the server went to work: none could go on
            say("lost: a rank died while all were starting", EXIT_LOST)
            launching.abort(world, EXIT_LOST)
        print(launching.headline(world), file=sys.stderr)
        traceback.print_exc()
        launching.abort(world, EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_BUG)


def _stopped_code(ending: Ending, stop: StopSignals) -> int:
    """The code of a run that a signal stopped, in a line that says how to go on; 0 if none did."""
    if ending.status != "stopped" or not stop.number:
        return 0
    name = signal.Signals(stop.number).name
    if not ending.is_kept:
        return say(f"stopped by {name}", _SIGNAL_BASE + stop.number)
    what = "before its last state could be kept" if ending.is_late else "with a checkpoint"
    return say(f"stopped by {name}, {what}; go on: fedsim resume {ending.folder}", EXIT_REQUEUE)


# -------------------------------------------------------------------------------------------- the limits


def _limits_of(config: Path, overrides: tuple[str, ...]) -> tuple[Limits, bool]:
    """Where the run will end, and whether on the wall clock. An error is left to the run: there all ranks raise it."""
    from fedsim import configfile
    from fedsim.engine.progress import Limits

    try:
        loaded = configfile.load(config, overrides)
    except FedsimError:
        return Limits(), False
    return Limits.of(loaded.stop), loaded.clock == "wall"


def _limits_in(run: Path) -> tuple[Limits, bool]:
    """Where a run that goes on will end, and whether on the wall clock."""
    from fedsim.engine.folder import CONFIG_NAME

    return _limits_of(run / CONFIG_NAME, ())


def _limits_of_record(folder: Path) -> tuple[Limits, bool]:
    """Where the replay of a record will end, and whether the record is of the wall clock."""
    from fedsim.engine.progress import Limits
    from fedsim.record.reader import open_run

    try:
        recorded = open_run(folder)
        return Limits(updates=recorded.totals().updates), recorded.attributes.get("clock") == "wall"
    except FedsimError:
        return Limits(), False


# -------------------------------------------------------------------------------------------- the reports


def _report_run(ending: Ending, quiet: bool) -> int:
    """The exit code of a run that has ended; prints its results and where they lie."""
    if ending.was_over:
        click.echo(f"{ending.folder}: {ending.status} already; there is nothing to go on with")
        return EXIT_DONE
    if not quiet:
        from fedsim.analysis.tables import summary_table
        from fedsim.cli.output import show_table
        from fedsim.record.reader import open_run

        show_table(summary_table(open_run(ending.folder)))
    return _error_code(ending)


def _report_replay(source: Path, ending: Ending, quiet: bool) -> int:
    """The exit code of a replay; prints whether the models are equal."""
    from fedsim.record.reader import open_run

    if ending.error is not None or ending.status != "done":
        return _error_code(ending) or say(f"the replay ended as {ending.status}", EXIT_BUG)
    before, after = open_run(source).summary()["model_sha256"], open_run(ending.folder).summary()["model_sha256"]
    if before != after:
        return say(f"the models differ: {source} has {before}, {ending.folder} {after}", EXIT_BUG)
    if not quiet:
        click.echo(f"the same model: {after}")
        click.echo(f"record: {ending.folder}")
    return EXIT_DONE


def _error_code(ending: Ending) -> int:
    """The exit code of what ended the run, which is printed; 0 without an error."""
    return EXIT_DONE if ending.error is None else say(str(ending.error), ending.error.exit_code)
