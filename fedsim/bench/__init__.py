"""`fedsim bench`: what fedsim does on this machine, beside the figures that it is meant to reach.

Every benchmark runs simulations as a user would, in processes of their own, and measures them by their records. What it
compares it runs in turn (A B A B ...) and judges by the ratios of neighbours, because a machine's speed wanders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsim.errors import EXIT_DONE

if TYPE_CHECKING:
    from fedsim.bench.figures import Report
    from fedsim.bench.launch import Launcher


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark can be told."""

    as_json: bool
    repeat: int
    updates: int
    overrides: tuple[str, ...]
    keep: Path | None

    def report(self, measure: Callable[[Launcher], Report]) -> int:
        """The exit code: measures, in a temporary folder or one to keep, and prints. A missed target is no error."""
        from fedsim.bench.launch import launcher_in, run_folder

        with run_folder(self.keep) as folder:
            report = measure(launcher_in(folder, self.overrides, lambda text: click.echo(text, err=True)))
        click.echo(report.json() if self.as_json else report.text())
        return EXIT_DONE


def _count(name: str, default: int, least: int, text: str) -> Callable[..., Any]:
    return click.option(name, type=click.IntRange(least), default=default, show_default=True, metavar="N", help=text)


def _shared(updates: int, repeat: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The options that every benchmark has, with its own defaults; its function gets them as `Options`, first."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
        _count("--repeat", repeat, 1, "How often to measure; the median counts."),
        _count("--updates", updates, 20, "Length of each run."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change a value of the configuration that is run; repeatable.",
        ),
        click.option(
            "--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the runs, in this new folder."
        ),
    )

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def packed(
            as_json: bool, repeat: int, updates: int, overrides: tuple[str, ...], keep: Path | None, **own: Any
        ) -> int:
            return command(Options(as_json, repeat, updates, overrides, keep), **own)

        for option in reversed(options):
            packed = option(packed)
        return packed

    return decorate


TRAINED = ("tiny", "narrow", "mlp", "wide", "cnn", "wide-cnn", "residual")
PATHS = ("loop", "fused", "stacked")
STEPS = ("sgd", "momentum", "adam")

workers_option = _count("--workers", 2, 1, "Workers beside rank zero.")


@click.group(short_help="Measure fedsim on this machine.")
def bench() -> None:
    """Measure fedsim on this machine, and set the results beside the figures that it is meant to reach.

    The runs need an mpirun: that of FEDSIM_MPIRUN, else the one beside this Python, else the one in PATH.
    """


@bench.command("parallel", short_help="One worker against several, and rank zero's load.")
@_shared(updates=2000, repeat=5)
@workers_option
def _parallel(options: Options, workers: int) -> int:
    """Compare one worker with several, with FedAsync and a convolutional network.

    Measures how much of its time each worker trains, how many more updates a second several workers give, and what
    share of a core rank zero takes.
    """
    from fedsim.bench.parallel import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, workers))


@bench.command("memory", short_help="Resident memory of every rank over a long run.")
@_shared(updates=20_000, repeat=1)
@workers_option
def _memory(options: Options, workers: int) -> int:
    """Follow the resident memory of every rank over a long run of a tiny model: it should not grow."""
    from fedsim.bench.memory import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, workers))


@bench.command("checkpoint", short_help="What checkpoints cost a run.")
@_shared(updates=2000, repeat=5)
@workers_option
def _checkpoint(options: Options, workers: int) -> int:
    """Compare runs that write many checkpoints with runs that write none: what each one adds to the run."""
    from fedsim.bench.checkpoint import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, workers))


@bench.command("population", short_help="A thousand clients against a million.")
@_shared(updates=2000, repeat=3)
@_count("--clients", 10**6, 1000, "Clients of the large population.")
def _population(options: Options, clients: int) -> int:
    """Compare a thousand clients with a million: time of an update, time of `fedsim check`, rank zero's memory."""
    from fedsim.bench.population import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, clients))


@bench.command("schedule", short_help="The schedule without training, from 10^4 to 10^7 clients.")
@_shared(updates=3_000_000, repeat=3)
@_count("--concurrency", 256, 1, "Tasks in flight.")
def _schedule(options: Options, concurrency: int) -> int:
    """Run schedules without training (`training: none`): tasks a second, record included, and the process's memory."""
    from fedsim.bench.schedule import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, concurrency))


@bench.command("cohort", short_help="10,000 clients a version, summed by the workers.")
@_shared(updates=30_000, repeat=1)
@_count("--cohort", 10_000, 10, "Clients a version.")
def _cohort(options: Options, cohort: int) -> int:
    """Run rounds of a tiny model on 2, 3 and 5 ranks: the same bits, and how many bytes reach rank zero a version."""
    from fedsim.bench.cohort import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, cohort))


@bench.command("twin", short_help="A model of the engine beside the engine, and its forecast.")
@click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Rounds; medians count."
)
@click.option(
    "--points",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep each run there, and go on with what a former call kept.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=6.0, show_default=True, metavar="S", help="Length of a run."
)
@click.option(
    "--forecast", type=click.Path(path_type=Path), metavar="DIR", help="Write forecast.md and forecast.png there."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def _twin(repeat: int, points: Path | None, seconds: float, forecast: Path | None, as_json: bool) -> int:
    """Fit a model of the engine to runs of 2 and 4 ranks, and compare its predictions with other runs.

    The tasks of these runs sleep, so that there may be more ranks than cores. With --forecast the model is then asked
    about 64 to 65,536 ranks. With --points the runs can be made in several calls: each goes on where the last one was
    stopped.
    """
    from fedsim.bench.twin.measure import measure

    options = Options(as_json, repeat, 0, (), None)
    return options.report(lambda launcher: measure(launcher, repeat, seconds, forecast, points))


@bench.command("node", short_help="Whether a host holds its data once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@_count("--repeat", 1, 1, "How often to measure; the median counts.")
@_count("--megabytes", 1000, 1, "Size of the data set.")
@_count("--ranks", 8, 2, "Ranks on this host.")
def _node(as_json: bool, repeat: int, megabytes: int, ranks: int) -> int:
    """Sum the proportional memory of many ranks on this host, with a data set and without; beside that of one rank."""
    from fedsim.bench.node import measure

    options = Options(as_json, repeat, 0, (), None)
    return options.report(lambda launcher: measure(launcher, repeat, megabytes, ranks))


@bench.command("engine", short_help="Whole jobs against trainers alone, and rank zero's time an update.")
@_shared(updates=60_000, repeat=3)
@workers_option
@click.option(
    "--cases",
    default="cnn,mlp,tiny-sync,tiny-buffered,tiny-fedasync",
    show_default=True,
    metavar="LIST",
    help="Kinds of jobs, with commas.",
)
def _engine(options: Options, workers: int, cases: str) -> int:
    """Compare whole jobs with as many trainers alone, which train the same groups and talk to nobody.

    A job of `cnn` has a fourteenth of --updates, one of `mlp` half, one of `tiny` four times as many (FedAsync: twice).
    """
    from fedsim.bench.engine import CASES, measure

    names = cases.split(",")
    for name in names:
        if name not in CASES:
            raise click.BadParameter(f"{name!r}; allowed: {', '.join(CASES)}", param_hint="--cases")
    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, workers, names))


@bench.command("chaos", short_help="Kills at random moments: whether anything is lost.")
@_count("--workers", 100, 0, "Workers that are killed.")
@_count("--jobs", 30, 0, "Whole jobs that are killed.")
@_count("--seed", 0, 0, "Draws the moments.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the runs, in this new folder.")
def _chaos(workers: int, jobs: int, seed: int, as_json: bool, keep: Path | None) -> int:
    """Kill workers and whole jobs at random moments, and compare what comes out with the runs that nobody disturbed.

    A third of the kills each on the virtual clock, on the wall clock, and where clients keep a state. Other seeds are
    other kills: many can be made in parts. Needs Open MPI 5 or later.
    """
    from fedsim.bench.chaos import measure

    options = Options(as_json, 1, 0, (), keep)
    return options.report(lambda launcher: measure(launcher, workers, jobs, seed))


@bench.command("apply", short_help="Rank zero's receive and apply of an update.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@_count("--repeat", 3, 1, "How often to measure; the median counts.")
@click.option(
    "--sizes",
    default="100000,1000000,10000000,100000000",
    show_default=True,
    metavar="LIST",
    help="Numbers of parameters, with commas; the largest takes 5 GB.",
)
def _apply(as_json: bool, repeat: int, sizes: str) -> int:
    """Time receiving and applying an update on rank zero, against reading and writing each array once."""
    from fedsim.bench.apply import measure

    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise click.BadParameter(f"{sizes!r}; allowed: whole numbers with commas", param_hint="--sizes") from None
    options = Options(as_json, repeat, 0, (), None)
    return options.report(lambda launcher: measure(launcher, repeat, numbers))


@bench.command("large", short_help="Rank zero's memory with a large model.")
@_shared(updates=20, repeat=1)
@_count("--parameters", 100_000_000, 1000, "Parameters of the model; 10^8 take 12 GB in both ranks together.")
def _large(options: Options, parameters: int) -> int:
    """Run a large model asynchronously, and set rank zero's peak memory against the bound stated beforehand."""
    from fedsim.bench.large import measure

    return options.report(lambda launcher: measure(launcher, options.repeat, options.updates, parameters))


@bench.command("training", short_help="Local training alone, beside a plain PyTorch loop.")
@click.option("--model", type=click.Choice(TRAINED), default="tiny", show_default=True, help="What is trained.")
@click.option(
    "--paths", default="loop,stacked,fused", show_default=True, metavar="LIST", help="Paths to compare, with commas."
)
@click.option(
    "--group-size", type=click.IntRange(1), metavar="N", help="Clients a group, instead of the rule's number."
)
@click.option(
    "--ranks", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Processes side by side."
)
@click.option(
    "--repeat", type=click.IntRange(1), default=7, show_default=True, metavar="N", help="Rounds; medians count."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def _training(model: str, paths: str, group_size: int | None, ranks: int, repeat: int, as_json: bool) -> int:
    """Compare the training paths with a plain PyTorch loop and with the machine's product rate, on one core.

    With --ranks, as many processes do the same at the same time, without messages; what they reach together counts.
    """
    from fedsim.bench.training import measure

    report = measure(model, _listed(paths, PATHS, "--paths"), repeat, group_size, ranks)
    click.echo(report.json() if as_json else report.text())
    return EXIT_DONE


@bench.command("groups", short_help="The rule's group size against all others.")
@click.option(
    "--models", default="tiny,narrow,mlp,wide,cnn", show_default=True, metavar="LIST", help="Models, with commas."
)
@click.option("--paths", default="fused", show_default=True, metavar="LIST", help="Paths: fused, stacked.")
@click.option("--optimizers", default="sgd,momentum", show_default=True, metavar="LIST", help="With commas; or adam.")
@click.option(
    "--repeat", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Rounds; medians count."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def _groups(models: str, paths: str, optimizers: str, repeat: int, as_json: bool) -> int:
    """Train in groups of 1 to 64 clients, and compare the size that the rule chooses with the best of them."""
    from fedsim.bench.groups import measure

    chosen = _variants(optimizers)
    report = measure(_listed(models, TRAINED, "--models"), _listed(paths, PATHS[1:], "--paths"), chosen, repeat)
    click.echo(report.json() if as_json else report.text())
    return EXIT_DONE


@bench.command("footprint", short_help="Memory that training takes, against the formula.")
@click.option("--models", default="tiny,mlp,wide,cnn", show_default=True, metavar="LIST", help="Models, with commas.")
@click.option("--paths", default="fused,stacked,loop", show_default=True, metavar="LIST", help="Paths, with commas.")
@click.option("--optimizers", default="sgd,adam", show_default=True, metavar="LIST", help="With commas; or momentum.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="How often.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def _footprint(models: str, paths: str, optimizers: str, repeat: int, as_json: bool) -> int:
    """Train groups in fresh processes, and compare their peak memory with the formula that `fedsim check` uses."""
    from fedsim.bench.footprint import measure

    chosen = _variants(optimizers)
    report = measure(_listed(models, TRAINED, "--models"), _listed(paths, PATHS, "--paths"), chosen, repeat)
    click.echo(report.json() if as_json else report.text())
    return EXIT_DONE


def _variants(optimizers: str) -> list[str]:
    """The workload's names for optimisers."""
    from fedsim.bench.workload import OPTIMIZERS

    variants = dict(zip(STEPS, OPTIMIZERS, strict=True))
    return [variants[name] for name in _listed(optimizers, STEPS, "--optimizers")]


def _listed(text: str, allowed: Sequence[str], option: str) -> list[str]:
    """The names of a list with commas."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}' is not one of {', '.join(allowed)}", param_hint=option)
    return names
