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

        lies.append(("plot", str(plot_run(opened, plot_path(run)))))
    if as_json:
        click.echo(json.dumps(opened.summary(), indent=2, allow_nan=False))
    else:
        from fedsim.analysis.tables import summary_table
        from fedsim.cli.output import show_table

        show_table(summary_table(opened, lies))
    return EXIT_DONE


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN RUN...")
def compare(runs: tuple[Path, ...]) -> int:
    """Compare runs side by side."""
    from fedsim.analysis.tables import compare as compare_runs
    from fedsim.analysis.tables import comparison_table
    from fedsim.cli.output import show_table
    from fedsim.record.reader import open_run

    if len(runs) < 2:
        raise click.UsageError(f"compare needs two runs or more, got {len(runs)}", click.get_current_context())
    show_table(comparison_table(compare_runs(open_run(path) for path in runs)))
    return EXIT_DONE


def plot_path(run: Path) -> Path:
    """Where the plot of a run folder or record file goes.

    >>> plot_path(Path("runs/a/record.h5")).as_posix()
    'runs/a/record.png'
    """
    return run / "plot.png" if run.is_dir() else run.with_suffix(".png")
