# shellcheck shell=bash
# Sourced by the batch files beside it, in a job, from the project's folder: how ranks are started, and what signals do to them.
#
# FEDSIM_MPIRUN   the mpirun, with options; otherwise the one beside Python or in PATH, with --bind-to none
# FEDSIM_LAUNCH   what starts ranks instead of a supervised mpirun: "srun --mpi=pmi2 --kill-on-bad-exit=1" for MPICH, --mpi=pmix for Open MPI

export OMP_NUM_THREADS=1
# Slurm 22.05 and later does not hand the job's --cpus-per-task on to srun.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# shellcheck disable=SC1091
[ ! -e .venv/bin/activate ] || source .venv/bin/activate # what launch/quickstart installed
MPIRUN="$(dirname -- "$(command -v python)")/mpirun"
[ -x "$MPIRUN" ] || MPIRUN=mpirun
# It is split into words again, by Python: which reads quotes as here, but not all that `printf %q` writes.
export FEDSIM_MPIRUN="${FEDSIM_MPIRUN:-"'${MPIRUN//\'/\'\\\'\'}' --bind-to none"}"

# Runs a configuration into a folder, or goes on with the record that is there; ends the job with its exit code. A start that was killed
# before there was a record left its configuration alone in the folder: there the run begins.
run_or_resume() { # FOLDER CONFIG [--set KEY=VALUE]...
    local folder="$1" verb=run words launch
    shift
    words=("$@" --out "$folder")
    if [ -e "$folder/record-000.h5" ]; then verb=resume words=("$folder"); fi
    if [ -n "${FEDSIM_LAUNCH:-}" ]; then
        read -r -a launch <<<"$FEDSIM_LAUNCH"
        # A group of its own: what Slurm sends this script is not for the launcher.
        launch=(setsid "${launch[@]}" python -m fedsim "$verb")
    else
        # It keeps mpirun out of this script's group, and starts again what died, on the nodes that are left.
        launch=(python -m fedsim.supervisor -n "$SLURM_NTASKS")
    fi
    ends_with "${launch[@]}" "${words[@]}" --quiet
}

# Runs a command to which USR2 is passed on; what it starts writes checkpoints, and all ends with 75. Ends the job with its exit code.
ends_with() { # COMMAND...
    "$@" &
    local ranks=$! code=0
    ASKED=
    # shellcheck disable=SC2064
    trap "ASKED=yes; kill -USR2 $ranks 2>/dev/null || true" USR2 TERM INT
    while kill -0 "$ranks" 2>/dev/null; do # the sleep is what a signal interrupts: nothing is lost by it
        sleep 1 &
        wait $! || true
    done
    wait "$ranks" || code=$?
    # Once rank zero has left with 75, srun kills ranks that are still leaving, and returns 128 and that signal's number.
    if [ -n "$ASKED" ] && [ "$code" -gt 128 ]; then code=75; fi
    # A job that ends by itself counts as completed: Slurm has to be asked. Not if it was cancelled; and an element's SLURM_JOB_ID may
    # be that of its whole array.
    local job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
    job="${job:-$SLURM_JOB_ID}"
    if [ "$code" = 75 ] && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
        scontrol requeue "$job"
    fi
    exit "$code"
}
