"""The launch scripts, as far as nothing is installed: which Python, which MPI, which folder, when to install again."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIMS = ("bash", "dirname", "basename", "id", "cat", "env", "sort", "tail", "rm")

Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with a space in its name, holding what the scripts read."""
    folder = tmp_path / "my project"
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def bash(project: Path, tmp_path: Path) -> Bash:
    """Runs lines after sourcing common.sh from another folder, without the caller's own FEDSIM_ choices."""

    def run(lines: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDSIM_")}
        environment |= {"FEDSIM_PYTHON": sys.executable} | variables
        if path is not None:
            environment["PATH"] = str(path)
        script = f"source '{project}/launch/common.sh'\n{lines}"
        shell = shutil.which("bash") or "bash"
        return subprocess.run([shell, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)

    return run


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the plain tools alone, to put fake programs into."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in SHIMS:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def put(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_the_next_free_folder(bash: Bash, project: Path) -> None:
    assert bash("free_folder runs/quickstart").stdout == "runs/quickstart\n"
    (project / "runs" / "quickstart").mkdir(parents=True)
    (project / "runs" / "quickstart-2").symlink_to("nowhere")
    assert bash("free_folder runs/quickstart").stdout == "runs/quickstart-3\n"


def test_an_old_python_is_named_with_its_version(bash: Bash, bare_path: Path) -> None:
    put(bare_path, "python3", 'case "$2" in *version_info*) exit 1 ;; *) echo 3.9.2 ;; esac')
    done = bash("find_python", path=bare_path, FEDSIM_PYTHON="")
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13 (found python3: 3.9.2, python3.13: none" in done.stderr


def test_a_python_without_venv_is_refused(bash: Bash, bare_path: Path) -> None:
    put(bare_path, "python3", 'case "$2" in *venv*) exit 1 ;; *) exit 0 ;; esac')
    done = bash("find_python", path=bare_path, FEDSIM_PYTHON="")
    assert done.returncode == 1 and "python3 has no venv module with pip" in done.stderr


def test_the_first_python_that_serves_is_taken(bash: Bash, bare_path: Path) -> None:
    put(bare_path, "python3", "exit 1")
    put(bare_path, "python3.12", "exit 0")
    put(bare_path, "python3.11", "exit 0")
    done = bash('find_python; echo "$PYTHON"', path=bare_path, FEDSIM_PYTHON="", PYTHONPATH="/elsewhere")
    assert done.stdout == f"{bare_path}/python3.12\n"


def test_mpi_choices(bash: Bash, bare_path: Path) -> None:
    assert bash("choose_mpi; echo $MPI ${MPI4PY_LIBMPI:-unset}", MPI4PY_LIBMPI="/x").stdout == "openmpi unset\n"
    wrong = bash("choose_mpi", FEDSIM_MPI="lam")
    assert wrong.returncode == 1 and "FEDSIM_MPI is 'lam'; allowed: openmpi, mpich, system" in wrong.stderr
    none = bash("choose_mpi", path=bare_path, FEDSIM_MPI="system")
    assert none.returncode == 1 and "no mpirun or mpiexec in PATH" in none.stderr
    put(bare_path, "mpiexec", "echo HYDRA build details")
    kept = bash(
        "choose_mpi; find_mpirun; echo ${MPIRUN[@]} $MPI4PY_LIBMPI",
        path=bare_path,
        FEDSIM_MPI="system",
        MPI4PY_LIBMPI="/x",
    )
    assert kept.stdout == f"{bare_path}/mpiexec /x\n"


def test_the_site_s_launcher_is_not_one_of_our_own_environments(bash: Bash, project: Path, bare_path: Path) -> None:
    ours = project / ".venv" / "bin"
    ours.mkdir(parents=True)
    put(ours, "mpirun", "exit 0")
    put(bare_path, "mpirun", "echo 'mpirun (Open MPI) 5.0.11'")
    both = Path(f"{ours}:{bare_path}")
    done = bash(
        "choose_mpi; find_mpirun; echo ${MPIRUN[@]} $OMP_NUM_THREADS",
        path=both,
        FEDSIM_MPI="system",
        OMP_NUM_THREADS="1",
    )
    assert done.stdout == f"{bare_path}/mpirun --bind-to none --map-by :OVERSUBSCRIBE 1\n"


def test_the_fingerprint_follows_what_is_installed(bash: Bash, project: Path) -> None:
    first = bash("find_python; fingerprint openmpi").stdout
    assert len(first) == 65
    assert bash("find_python; fingerprint openmpi").stdout == first
    assert bash("find_python; fingerprint system").stdout != first
    with (project / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert bash("find_python; fingerprint openmpi").stdout != first


def test_run_starts_the_supervisor_where_it_was_called(bash: Bash, project: Path, tmp_path: Path) -> None:
    ours = project / ".venv" / "bin"
    ours.mkdir(parents=True)
    put(ours, "python", 'echo "$PWD | $FEDSIM_MPIRUN | $*"')
    put(ours, "mpirun", "echo 'mpirun (Open MPI) 5.0.11'")
    stamp = bash("find_python; fingerprint openmpi").stdout.strip()
    (project / ".venv" / "installed").write_text(f"{stamp} base\n")
    done = bash(f"cd '{tmp_path}'; '{project}/launch/run' -n 3 'my config.yaml' --dry-run")
    where, launcher, words = done.stdout.strip().split(" | ")
    assert where == str(tmp_path), done.stderr
    options = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    assert shlex.split(launcher) == [f"{project}/.venv/bin/mpirun", *options]  # as the supervisor splits it
    assert words == "-m fedsim.supervisor -n 3 my config.yaml --dry-run"


def test_a_launcher_s_path_survives_whatever_is_in_it(bash: Bash, project: Path) -> None:
    """In a locale without the path's letters, too, where bash's own quotes are not Python's."""
    (line,) = [line for line in (ROOT / "launch" / "run").read_text().splitlines() if line.startswith("FEDSIM_MPIRUN=")]
    words = ["/my project/ü'x\\/mpirun", "--bind-to", "none"]
    done = bash(f'MPIRUN=({shlex.join(words)}); {line}; printf %s "$FEDSIM_MPIRUN"', LC_ALL="C")
    assert shlex.split(done.stdout) == words


def test_a_failing_command_shows_the_end_of_its_log(bash: Bash) -> None:
    done = bash("logged 'the log' bash -c 'seq 100; exit 3'; echo went on")
    assert done.returncode == 1 and done.stdout == ""
    assert "\n100\n" in done.stderr and "\n75\n" not in done.stderr
    assert done.stderr.strip().endswith("my project/the log")


def test_a_command_is_stopped_when_its_time_is_over(bash: Bash) -> None:
    assert bash("PYTHON=python3; within 0.3 sleep 20; echo went on").stdout == ""
    assert bash("within 20 echo done").stdout == "done\n"
