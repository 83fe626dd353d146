"""The batch file of a job: text in, text out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.jobs.machine import Machine
from fedsim.record.pieces import attempt_name

_SUPERVISED = """
# The supervisor starts again what died, on the nodes that are left. mpirun is not in this script's process group: USR2
# reaches every rank through the supervisor; they write a checkpoint, and all ends with 75.
export FEDSIM_MPIRUN={mpirun}
{python} -m fedsim.supervisor -n {ranks} "${{words[@]}}" --quiet{code} &"""
_ELEMENT = """
# One point of the sweep, which is frozen in the folder; one that is done is skipped. USR2 reaches every rank; they
# write a checkpoint, and all ends with 75.
export FEDSIM_MPIRUN={mpirun}
{python} -m fedsim sweep {run} --point "$SLURM_ARRAY_TASK_ID" --ranks {ranks}{code} &"""
_BARE = """
# A group of its own: what Slurm sends this script is not for srun. USR2 is passed on by it to every rank; rank zero
# writes a checkpoint and ends with 75, the others with 0.
setsid {launch} "${{words[@]}}" --quiet{code} &"""
_WAITS = """
ranks=$! asked=
trap 'asked=yes; kill -USR2 "$ranks" 2>/dev/null || true' USR2 TERM INT
while kill -0 "$ranks" 2>/dev/null; do # the sleep is what a signal interrupts: nothing is lost by it
    sleep 1 &
    wait $! || true
done
wait "$ranks" && code=0 || code=$?
# Once rank zero has left with 75, srun kills ranks that are still leaving, and returns 128 and that signal's number.
if [ -n "$asked" ] && [ "$code" -gt 128 ]; then code=75; fi
# A job that ends by itself counts as completed: Slurm has to be asked. Not if it was cancelled; and an element's
# SLURM_JOB_ID may be that of its whole array.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"
if [ "$code" = 75 ] && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
    scontrol requeue "$job"
fi
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """What one job runs. `command` is said in the file's head; `run` is the record's folder.

    With `n_points` it is an array over the points of the sweep that is frozen in that folder.
    """

    name: str
    command: Sequence[str]
    python: str
    mpirun: str
    config: str
    overrides: Sequence[str]
    run: str
    log: str
    nodes: int
    ranks: int
    n_points: int = 0
    allow_code: bool = False


def text(job: Job, machine: Machine) -> str:
    """The batch file, which can be submitted again and again: it goes on with what is there."""
    parts = [
        "#!/bin/bash",
        f"# {_printable(shlex.join(job.command))}",
        f"# for machine {machine.name}. Submitted again, or requeued, it goes on where the record ends.",
        *(f"#SBATCH --{option}" for option in _options(job, machine)),
        *machine.setup,
        "set -euo pipefail",  # after the site's own lines: modules' shell code is seldom written for it
        *_environment(machine),
        *([] if job.n_points else ["", *_words(job, machine)]),
    ]
    return "\n".join(parts) + _launch(job, machine) + _WAITS


def _printable(words: str) -> str:
    """On one line, whatever a value has in it."""
    return words if words.isprintable() else repr(words)


def _options(job: Job, machine: Machine) -> list[str]:
    """Options of sbatch, quoted where the line needs it."""
    own: dict[str, object] = {"job-name": job.name}
    own |= {"account": machine.account, "partition": machine.partition}
    own |= {"nodes": job.nodes, "ntasks": job.ranks, "cpus-per-task": machine.cpus_per_rank, "time": machine.time}
    own |= {"no-kill": machine.launcher == "mpirun" and job.nodes > 1}  # a lost node is the supervisor's business
    own |= machine.sbatch
    own |= {"array": f"0-{job.n_points - 1}" if job.n_points else None}
    own |= {"signal": f"B:USR2@{machine.warn_s}", "requeue": True, "open-mode": "append", "output": job.log}
    kept = {name: value for name, value in own.items() if value is not None and value is not False}
    return [name if value is True else f"{name}={shlex.quote(str(value))}" for name, value in kept.items()]


def _environment(machine: Machine) -> list[str]:
    variables = {"OMP_NUM_THREADS": "1", **machine.environment}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # Since 22.05 srun does not take it over from the job.
    return [*lines, 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"']


def _words(job: Job, machine: Machine) -> list[str]:
    """Shell lines that set `words`: what is to be run, or gone on with. Without a record it is run, into its folder."""
    run, record = shlex.quote(job.run), shlex.quote(f"{job.run}/{attempt_name(0)}")
    first = [job.config, "--out", job.run, *(word for value in job.overrides for word in ("--set", value))]
    begin, go_on = ("run ", "resume ") if machine.launcher == "srun" else ("", "")  # the supervisor tells by itself
    return [
        f"if [ -e {record} ]; then",
        f"    words=({go_on}{run})",
        "else",
        f"    words=({begin}{shlex.join(first)})",
        "fi",
    ]


def _launch(job: Job, machine: Machine) -> str:
    code = " --allow-code" if job.allow_code else ""
    if machine.launcher == "srun":
        words = ["srun", f"--mpi={machine.mpi}", "--kill-on-bad-exit=1", job.python, "-m", "fedsim"]
        return _BARE.format(launch=shlex.join(words), code=code)
    mpirun = shlex.quote(shlex.join([job.mpirun, *machine.launcher_options]))
    template = _ELEMENT if job.n_points else _SUPERVISED
    python, run = shlex.quote(job.python), shlex.quote(job.run)
    return template.format(mpirun=mpirun, python=python, ranks=job.ranks, run=run, code=code)
