# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, never run: where a private Slurm cluster lies, and how to get inside.
#
# FEDSIM_CLUSTER   the cluster's folder; otherwise .cluster in the project's folder

set -euo pipefail

SCRIPT="slurm/cluster/$(basename -- "$0")"
HERE="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
CLUSTER="${FEDSIM_CLUSTER:-$(cd -- "$HERE/../.." && pwd -P)/.cluster}"
NODES=(n1 n2)
HEAD='head'
NET=10.77.0 # inside the cluster's own network: nothing of the machine's is there

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$SCRIPT: $*"
    exit 1
}

# Runs a command until it succeeds, for so many seconds at most.
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# Prints the first child of a process, once it has one (the file's size is always 0).
child_of() { # PID
    local file="/proc/$1/task/$1/children"
    wait_for 10 grep -q . "$file" && cut -d' ' -f1 "$file"
}

mode() { cat -- "$CLUSTER/mode" 2>/dev/null || true; }

init_pid() { cat -- "$CLUSTER/init.pid" 2>/dev/null || true; }

is_up() { [ -n "$(init_pid)" ] && kill -0 "$(init_pid)" 2>/dev/null; }

# Runs a command on the cluster's login node, in the current folder: `inside sinfo`.
inside() {
    if [ "$(mode)" = ports ]; then
        SLURM_CONF="$CLUSTER/slurm.conf" "$@"
        return
    fi
    local user=()
    [ "$(id -u)" = 0 ] || user=(--user --preserve-credentials)
    # A mount namespace is entered at its root: the current folder has to be looked for again.
    # shellcheck disable=SC2016
    nsenter --target "$(init_pid)" "${user[@]}" --mount --uts --net --pid \
        env SLURM_CONF="$CLUSTER/slurm.conf" bash -c 'cd -- "$1" && shift && exec "$@"' inside "$PWD" "$@"
}

# Mounts in this mount namespace only: mount(2) itself, since mount(8) would not do it for anybody but root.
mount_here() { # SOURCE TARGET TYPE FLAGS
    python3 -c 'import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
source, target, kind = map(os.fsencode, sys.argv[1:4])
sys.exit(libc.mount(source, target, kind, int(sys.argv[4]), None) and os.strerror(ctypes.get_errno()))' "$@"
}

# A file over another.
bind() { mount_here "$1" "$2" none 4096; } # FILE OVER; MS_BIND

own_shared_memory() { mount_here tmpfs /dev/shm tmpfs 6; } # MS_NOSUID, MS_NODEV

# The ends of all logs, for whoever has to find out why it does not work.
show_logs() {
    local log
    for log in "$CLUSTER"/log/*; do
        [ -s "$log" ] || continue
        say "--- the end of $log"
        tail -n 15 -- "$log" >&2
    done
}
