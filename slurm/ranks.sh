# shellcheck shell=bash
# Sourced by the batch files beside it, in a job, from the project's folder: how ranks are started, and what signals do to them.
#
# FEDSIM_LAUNCH   the words that start ranks; otherwise mpirun of the MPI that mpi4py loads, with as many ranks as the job has tasks.
#                 For srun instead: FEDSIM_LAUNCH="srun --mpi=pmi2 --kill-on-bad-exit=1" (MPICH), --mpi=pmix (Open MPI)

export OMP_NUM_THREADS=1
# Slurm 22.05 and later does not hand the job's --cpus-per-task on to srun.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# shellcheck disable=SC1091
[ ! -e .venv/bin/activate ] || source .venv/bin/activate # what launch/quickstart installed
read -r -a LAUNCH <<<"${FEDSIM_LAUNCH:-mpirun --bind-to none -n $SLURM_NTASKS}"

# Runs a configuration into a folder, or goes on with what is in the folder; ends the job with its exit code.
run_or_resume() { # FOLDER CONFIG [--set KEY=VALUE]...
    local folder="$1" words
    shift
    if [ -e "$folder" ]; then
        words=(resume "$folder")
    else
        words=(run "$@" --out "$folder")
    fi
    # A group of its own: what Slurm sends this script is not for the launcher. USR2 is passed on by it to every rank; they write a
    # checkpoint and end with 75. The sleep is what a signal interrupts: nothing is lost by it.
    setsid "${LAUNCH[@]}" python -m fedsim "${words[@]}" --quiet &
    local ranks=$! code=0
    # shellcheck disable=SC2064
    trap "kill -USR2 $ranks 2>/dev/null || true" USR2 TERM INT
    while kill -0 "$ranks" 2>/dev/null; do
        sleep 1 &
        wait $! || true
    done
    wait "$ranks" || code=$?
    if [ "$code" = 75 ]; then # a job that ends by itself counts as completed: Slurm has to be asked
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
