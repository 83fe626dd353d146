"""`fedsim scale`: how a configuration's speed grows with its workers."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.errors import EXIT_DONE, ConfigError


@click.command(short_help="Measure how a configuration's speed grows with workers.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value, as stop.updates=500; repeatable."
)
@click.option("--workers", default="1,2", show_default=True, metavar="LIST", help="Numbers of workers, with commas.")
@click.option("--nodes", default="", metavar="LIST", help="Numbers of nodes, in a Slurm job; each with all workers.")
@click.option("--weak", is_flag=True, help="Let clients, tasks in flight and updates grow with the workers.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Rounds in turn.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder; scale-NAME if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def scale(
    config: Path,
    overrides: tuple[str, ...],
    workers: str,
    nodes: str,
    weak: bool,
    repeat: int,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure how the speed of the configuration CONFIG grows with its workers.

    One worker, on one node, is always among them: efficiency is against it. All numbers of workers run in turn,
    --repeat times. The folder gets scale.json, scale.png, extrap.txt (the text format of Extra-P) and
    fedsim_scale_check.py (a ReFrame check with what was measured as its reference), beside the runs.

    Strong scaling, the default, gives the same run to more workers, which must end with the same bits; --weak lets the
    clients, the tasks in flight and the updates grow with the workers. Inside a Slurm job, best an exclusive one
    (slurm/scale.sbatch), --nodes spreads the ranks over so many of its nodes.
    """
    from fedsim import configfile
    from fedsim.bench.launch import launcher_in, run_folder
    from fedsim.bench.scale import files, measure
    from fedsim.engine import owncode

    counts = sorted({1, *numbers(workers, "--workers")})
    on_nodes = sorted(set(numbers(nodes, "--nodes"))) if nodes else [0]
    loaded = configfile.load(config, overrides)
    if owncode.sections_of(loaded):
        raise ConfigError("scale runs configurations in folders of its own, where code of your own is not loaded")
    folder = Path(f"scale-{loaded.name}") if out is None else out
    with run_folder(folder, "--out"):
        launcher = launcher_in(folder.resolve(), (), lambda text: click.echo(text, err=True))
        study = measure.Study(loaded, config.resolve().parent, counts, on_nodes, weak, repeat, overrides)
        report = measure.measure(launcher, study)
        files.write(folder, report, study, config)
    click.echo(report.json() if as_json else report.text())
    return EXIT_DONE


def numbers(text: str, option: str) -> list[int]:
    """The whole numbers from 1 to 100,000 of a list with commas.

    >>> numbers("1,2,8", "--workers")
    [1, 2, 8]
    """
    parts = [part.strip() for part in text.split(",")]
    good = all(part.isascii() and part.isdecimal() and 1 <= int(part[:7]) <= 100_000 for part in parts)
    if not good:
        raise ConfigError(f"{option}: got {text[:60]!r}, allowed: numbers from 1 to 100,000 with commas, as 1,2,4")
    return [int(part) for part in parts]
