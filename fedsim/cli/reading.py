"""`fedsim show` and `fedsim compare`: what records say."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedsim.errors import EXIT_DONE


@click.command(short_help="Show how a run ended or stands.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--plot", is_flag=True, help="Draw the run's curves into its folder, as plot.png.")
@click.option("--join", "is_joined", is_flag=True, help="Write all attempts into one plain record.h5.")
def show(run: Path, as_json: bool, plot: bool, is_joined: bool) -> int:
    """Show how RUN, a run folder or record file, ended or stands."""
    from fedsim.record.reader import open_run

    lies = []
    if is_joined:
        from fedsim.record.join import join

        join(run)
    opened = open_run(run)
    if plot:
        from fedsim.analysis.plots import plot_run

        plot_path(run).unlink(missing_ok=True)  # in a folder from a stranger it can be a link to elsewhere
        lies.append(("plot", str(plot_run(opened, plot_path(run)))))
    if as_json:
        click.echo(json.dumps(opened.summary(), indent=2, allow_nan=False))
    else:
        from fedsim.analysis.tables import summary_table
        from fedsim.cli.output import show_table

        show_table(summary_table(opened, lies))
    return EXIT_DONE


@click.command(short_help="Compare runs: mean and spread over seeds.")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of a table.")
def compare(runs: tuple[Path, ...], as_json: bool) -> int:
    """Compare runs side by side: a line a configuration, with mean and standard deviation over its seeds.

    A RUN is a run folder, a record file, or the folder of a sweep, which stands for those of its runs that have begun.
    """
    from fedsim.analysis.tables import compare as compare_runs
    from fedsim.analysis.tables import comparison_json, comparison_table
    from fedsim.cli.output import show_table
    from fedsim.record.reader import open_run

    found = [run for path in runs for run in _runs_of(path)]
    if len(found) < 2:
        raise click.UsageError(f"compare needs two runs or more, got {len(found)}", click.get_current_context())
    rows = compare_runs(open_run(path) for path in found)
    if as_json:
        click.echo(json.dumps(comparison_json(rows), indent=2, allow_nan=False))
    else:
        show_table(comparison_table(rows))
    return EXIT_DONE


def _runs_of(path: Path) -> list[Path]:
    """The path itself, or the runs of a sweep that have begun."""
    from fedsim.jobs import sweep

    if not (path / sweep.MANIFEST).is_file():
        return [path]
    made = sweep.read(path)
    return [run for run in map(made.run_of, made.points) if any(run.glob("record*.h5"))]


def plot_path(run: Path) -> Path:
    """Where the plot of a run folder or record file goes.

    >>> plot_path(Path("runs/a/record.h5")).as_posix()
    'runs/a/record.png'
    """
    return run / "plot.png" if run.is_dir() else run.with_suffix(".png")
