"""`fedsim submit`: a run as a Slurm job."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.running import code_option, out_option, set_option
from fedsim.cli.sweeping import checked, vary_option
from fedsim.errors import EXIT_DONE, ConfigError, LaunchError, RecordError

if TYPE_CHECKING:
    from fedsim.engine.plan import Plan
    from fedsim.jobs.machine import Machine
    from fedsim.jobs.sweep import Sweep

_SBATCH_TIMEOUT_S = 120.0


@click.command(short_help="Check a configuration and submit its run as a Slurm job.")
@click.argument("config", type=click.Path(path_type=Path))
@vary_option
@set_option
@out_option
@click.option("--machine", metavar="NAME", help="Site settings: a name in configs/machines, or a YAML file.")
@click.option("--nodes", type=click.IntRange(1, 100_000), metavar="N", help="Nodes; the machine's if not given.")
@click.option("--ranks", type=click.IntRange(2, 10_000_000), metavar="N", help="Ranks in all, the server's included.")
@click.option("--time", "time_limit", metavar="LIMIT", help="Time limit, as 90 or 12:00:00.")
@click.option("--account", metavar="NAME", help="The account to charge.")
@click.option("--partition", metavar="NAME", help="The partition.")
@click.option("--sbatch", multiple=True, metavar="OPTION[=VALUE]", help="Another option of sbatch; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the batch file; write and submit nothing.")
@code_option
def submit(
    config: Path,
    vary: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    machine: str | None,
    nodes: int | None,
    ranks: int | None,
    time_limit: str | None,
    account: str | None,
    partition: str | None,
    sbatch: tuple[str, ...],
    dry_run: bool,
    allow_code: bool,
) -> int:
    """Check the configuration file CONFIG and submit its run as a Slurm job.

    The configuration is checked as by `fedsim check`, then the batch file is written beside the run's folder, as
    runs/NAME.sbatch, and submitted. The job checkpoints before its time limit and when it is pre-empted, and asks to be
    requeued; then, or if it is submitted again, it goes on where its record ends.

    With --vary it is a sweep: the points are frozen in DIR/manifest.json, and a job array runs them, an element each.
    What is done is skipped when the array is submitted again.

    What a site needs (partition, account, modules, how ranks are launched) stands in one file: see configs/machines.
    """
    from fedsim.jobs import batch
    from fedsim.jobs import machine as machines

    asked = {"nodes": nodes, "time": time_limit, "account": account, "partition": partition}
    site, planned = machines.load(machine, sbatch, asked), _planned(config, overrides, allow_code)
    n_ranks = ranks or site.nodes * site.ranks_per_node
    _check(planned, site, n_ranks, bool(vary))
    run = _folder(out, planned.config.name + "-sweep" * bool(vary))
    swept = checked(config, vary, overrides, run, n_ranks, allow_code) if vary else None
    job = batch.Job(
        name=planned.config.name,
        command=("fedsim", *sys.argv[1:]),
        python=sys.executable,
        mpirun=_mpirun(),
        config=str(config),
        overrides=overrides,
        run=str(run),
        log=f"{run}-%A_%a.out" if vary else f"{run}-%j.out",
        nodes=site.nodes,
        ranks=n_ranks,
        allow_code=allow_code,
        n_points=0 if swept is None else len(swept.points),
    )
    text = batch.text(job, site)
    if dry_run:
        click.echo(text, nl=False)
        return EXIT_DONE
    _claim(run, planned, swept)
    _note_idle(planned, n_ranks)
    _send(run.with_name(f"{run.name}.sbatch"), text)
    return EXIT_DONE


def _folder(out: Path | None, name: str) -> Path:
    """The run's folder; its name stands in a line of the batch file that sbatch reads."""
    if not str(out or "").isprintable():
        raise ConfigError(f"--out: {str(out)!r:.80} has characters that cannot be printed; allowed: one line")
    return out or Path("runs") / name


def _check(planned: Plan, site: Machine, n_ranks: int, is_sweep: bool) -> None:
    """Refuses what could not run on so many ranks; a sweep's points are checked one by one."""
    from fedsim.engine import launching

    if n_ranks < max(2, site.nodes):
        raise ConfigError(f"--ranks is {n_ranks}; allowed: 2 or more, and one or more for each of {site.nodes} nodes")
    if not is_sweep:
        launching.check_size(planned.training_path, n_ranks)
    elif site.launcher != "mpirun":
        raise ConfigError(
            f"--vary: the elements of an array are started by mpirun, the machine's launcher is {site.launcher}"
        )


def _mpirun() -> str:
    """The launcher: the one beside this Python if pip's MPI is installed there, else what the job has in its PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def _planned(config: Path, overrides: tuple[str, ...], allow_code: bool) -> Plan:
    from fedsim import configfile
    from fedsim.engine.plan import plan

    return plan(configfile.load(config, overrides), config.resolve().parent, allow_code)


def _claim(run: Path, planned: Plan, swept: Sweep | None) -> None:
    """Writes a sweep's points down. Raises RecordError where the folder is another run's, or another sweep's."""
    from fedsim.jobs import sweep as sweeps

    if swept is None:
        _refuse_another(run, planned)
    else:
        sweeps.freeze(swept)


def _refuse_another(run: Path, planned: Plan) -> None:
    """A job goes on with what is in its folder: that has to be this configuration's run."""
    from fedsim import configfile
    from fedsim.engine.folder import is_unbegun

    if not run.exists() or is_unbegun(run, planned.config):
        return
    try:
        found = configfile.load(run / "config.yaml")
    except ConfigError as error:
        raise RecordError(
            f"{run}: exists and is no run that could go on ({error}); give --out another folder"
        ) from None
    if found != planned.config:
        raise RecordError(
            f"{run}: exists with another configuration; give --out another folder, or another name with --set name=..."
        )


def _note_idle(planned: Plan, n_ranks: int) -> None:
    if n_ranks - 1 > planned.concurrency:
        click.echo(
            f"note: {n_ranks - 1} workers, but {planned.concurrency} tasks in flight at most: some will idle", err=True
        )


def _send(path: Path, text: str) -> None:
    """Writes the batch file, submits it, and says which job it is."""
    _write(path, text)
    click.echo(f"job {_submitted(path)}: {path}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from None


def _submitted(path: Path) -> str:
    """The number of the job that Slurm made of a batch file."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise LaunchError(f"no sbatch in PATH: submit {path} on a login node of the cluster, or see --dry-run")
    try:
        done = subprocess.run(
            [sbatch, "--parsable", str(path)],
            capture_output=True,
            text=True,
            timeout=_SBATCH_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"sbatch does not answer within {_SBATCH_TIMEOUT_S:.0f} s; {path} was not submitted"
        ) from None
    if done.returncode:
        said = " | ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise LaunchError(f"sbatch refuses {path}: {said or f'exit code {done.returncode}'}")
    return done.stdout.strip().split(";")[0]
