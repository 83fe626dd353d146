"""`fedsim submit`: the batch file's text, what is refused, and what is handed to sbatch."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedsim import configfile
from fedsim.cli import cli, exit_code_of
from fedsim.errors import ConfigError, LaunchError
from fedsim.jobs.batch import Job, text
from fedsim.jobs.machine import OPTIONS, Machine, load

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
EVIL = "name=a\n#SBATCH --uid=0"
SITE = """\
name: alps
account: fed-1
partition: gpu
nodes: 2
ranks_per_node: 5
cpus_per_rank: 4
time: 1-12:00:00
warn_s: 300
launcher: srun
mpi: pmi2
setup: ["module purge", "module load cray-mpich/8.1"]
environment: {CUDA_DEVICE_ORDER: PCI_BUS_ID, NOTE: two words}
sbatch: {gpus-per-node: 4, exclusive: true, mem: "0", comment: "two words", hold: false}
"""


def job(nodes: int, ranks: int) -> Job:
    return Job(
        name="heart-async",
        command=("fedsim", "submit", "configs/heart-async.yaml", "--set", "seed=3"),
        python="/opt/env/bin/python",
        mpirun="/opt/env/bin/mpirun",
        config="configs/heart-async.yaml",
        overrides=("seed=3", "stop={versions: 5}"),
        run="runs/heart async",
        log="runs/heart-async-%j.out",
        nodes=nodes,
        ranks=ranks,
    )


@pytest.mark.parametrize("name", ["generic", "alps"])
def test_the_text_is_the_golden_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "alps.yaml").write_text(SITE)
    machine = load(str(tmp_path / "alps.yaml")) if name == "alps" else load(None)
    made = text(job(2, 10), machine)
    golden = GOLDEN / f"submit_{name}.sbatch"
    if os.environ.get("FEDSIM_WRITE_GOLDEN"):
        golden.write_text(made)
    assert made == golden.read_text()
    assert subprocess.run(["bash", "-n"], input=made, text=True, capture_output=True, timeout=20).returncode == 0


def test_the_shipped_generic_machine_is_what_holds_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load("generic") == Machine()
    assert load("private-cluster").nodes == 2


def test_a_value_of_several_lines_adds_no_line_for_sbatch() -> None:
    made = text(replace(job(1, 2), command=("fedsim", EVIL), overrides=(EVIL,)), Machine())
    lines = made.splitlines()
    before_the_body = lines[: next(i for i, line in enumerate(lines) if line and line[0] != "#")]
    assert not any("--uid" in line for line in before_the_body if line.startswith("#SBATCH"))
    assert subprocess.run(["bash", "-n"], input=made, text=True, capture_output=True, timeout=20).returncode == 0


@pytest.mark.parametrize("name", ["account", "partition"])
def test_the_command_line_wins_over_the_file_s_own_options(name: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(f"sbatch: {{{name}: b, qos: long}}\n")
    site = str(tmp_path / "site.yaml")
    assert f"#SBATCH --{name}=a\n#SBATCH" in text(job(1, 2), load(site, ["comment=x"], {name: "a"}))
    assert f"#SBATCH --{name}=b\n" not in text(job(1, 2), load(site, [], {name: "a"}))
    assert f"#SBATCH --{name}=b\n" in text(job(1, 2), load(site, [], {name: None}))
    assert "#SBATCH --qos=long\n" in text(job(1, 2), load(site, [], {name: "a"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wanted": "nowhere"}, "--machine nowhere: no such machine: configs/machines/ has generic, private-cluster"),
        ({"sbatch": ["qqos=x"]}, "no option 'qqos' of sbatch can be set; did you mean 'qos'?"),
        ({"sbatch": ["zzz"]}, f"allowed: {', '.join(sorted(OPTIONS))}"),
        ({"sbatch": ["ntasks=3"]}, "ntasks is set by --ranks"),
        ({"changes": {"time": "tomorrow"}}, "--time: time: got 'tomorrow'; allowed: minutes"),
        ({"changes": {"time": "1:00\n#SBATCH --uid=0"}}, "--time"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(
    given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((ConfigError, LaunchError)) as error:
        load(**{"wanted": None, **given})  # type: ignore[arg-type]
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lancher: srun", "site.yaml:1: lancher: unknown key; did you mean 'launcher'?"),
        ("launcher: ssh", "site.yaml:1: launcher: unknown value 'ssh'; allowed: mpirun, srun"),
        ("sbatch: {uid: 0}", "site.yaml:1: sbatch: no option 'uid' of sbatch can be set"),
        ('setup: ["a\\nb"]', "site.yaml:1: setup: "),
        ('sbatch: {comment: "a\\nb"}', "characters that cannot be printed"),
        ('environment: {"a b": c}', "is no variable"),
        ('account: "a\\nb"', "account"),
    ],
)
def test_a_machine_file_is_strict(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(line + "\n")
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / "site.yaml"))
    assert said in str(error.value) and "\n" not in str(error.value)


# --------------------------------------------------------------------------------------- the file at work

SAYS = '#!/bin/bash\nprintf "%s|" "$@" "$FEDSIM_MPIRUN" >"$NOTE"\nexit "${CODE:-0}"\n'  # what it was called with


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., list[str]]:
    """`job_of(lines, **variables)`: the words with which a batch file starts ranks; nothing of them is real."""
    for name in ("python", "srun"):
        (tmp_path / name).write_text(SAYS)
        (tmp_path / name).chmod(0o755)

    def runner(lines: str, **variables: str) -> list[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FEDSIM_")}
        environ |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(tmp_path / "note")}
        slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}
        script = ["bash", "-c", lines]
        done = subprocess.run(script, cwd=tmp_path, env={**environ, **slurm, **variables}, timeout=30)
        assert done.returncode == int(variables.get("CODE", "0"))
        return (tmp_path / "note").read_text().split("|")

    return runner


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_a_job_goes_on_where_there_is_a_record_and_begins_where_there_is_none(
    launcher: str, tmp_path: Path, job_of: Callable[..., list[str]]
) -> None:
    made = text(replace(job(1, 2), python=str(tmp_path / "python")), Machine(launcher=launcher))  # type: ignore[arg-type]
    run, begins = "runs/heart async", ["configs/heart-async.yaml", "--out", "runs/heart async"]
    assert any(job_of(made)[i : i + 3] == begins for i in range(9))
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "config.yaml").touch()  # killed before it had a record
    assert any(job_of(made)[i : i + 3] == begins for i in range(9))
    (tmp_path / run / "record-000.h5").touch()
    words = job_of(made)
    assert run in words and "--out" not in words and ("resume" in words) == (launcher == "srun")


@pytest.mark.parametrize("launch", ["", "srun --mpi=pmi2"])
def test_the_shipped_files_do_so_too(launch: str, tmp_path: Path, job_of: Callable[..., list[str]]) -> None:
    lines = f"set -euo pipefail; source {ROOT}/slurm/ranks.sh; run_or_resume 'a run' c.yaml --set seed=3"
    variables = {"FEDSIM_LAUNCH": launch} if launch else {}
    begins = ["c.yaml", "--set", "seed=3", "--out", "a run", "--quiet"]
    assert job_of(lines, **variables)[-8:-2] == begins
    (tmp_path / "a run").mkdir()
    assert job_of(lines, **variables)[-8:-2] == begins
    (tmp_path / "a run" / "record-000.h5").touch()
    words = job_of(lines, **variables)
    assert words[-4:-2] == ["a run", "--quiet"] and ("resume" in words) == bool(launch)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_shipped_files_find_the_mpirun_beside_python_whatever_its_path(locale: str, tmp_path: Path) -> None:
    beside = tmp_path / "my project" / "ü'x"
    beside.mkdir(parents=True)
    for name in ("python", "mpirun"):
        (beside / name).symlink_to("/bin/true")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEDSIM_")}
    environ |= {"PATH": f"{beside}:{os.environ['PATH']}", "LC_ALL": locale}
    script = ["bash", "-c", f'set -euo pipefail; source {ROOT}/slurm/ranks.sh; printf %s "$FEDSIM_MPIRUN"']
    done = subprocess.run(script, cwd=tmp_path, env=environ, capture_output=True, encoding="utf-8", timeout=30)
    assert shlex.split(done.stdout) == [str(beside / "mpirun"), "--bind-to", "none"]


ENDS = """#!/bin/bash
trap 'exit "$CODE"' USR2
touch "$NOTE"
for _ in {1..300}; do [ -z "$WAITS" ] || sleep 0.1; done
exit "$CODE"
"""


@pytest.mark.parametrize("shipped", [False, True])
@pytest.mark.parametrize(
    ("asked", "code", "requeues"),
    [(True, 75, True), (True, 143, True), (True, 70, False), (False, 143, False)],
)
def test_a_job_that_was_asked_to_stop_is_requeued_whatever_srun_killed_last(
    shipped: bool, asked: bool, code: int, requeues: bool, tmp_path: Path
) -> None:
    """srun's own code is the highest of its ranks', and it kills those that are still leaving."""
    programs = {
        "srun": ENDS,
        "squeue": "#!/bin/bash\necho RUNNING\n",
        "scontrol": f'#!/bin/bash\necho "$@" >{tmp_path}/said\n',
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    lines = text(job(1, 2), Machine(launcher="srun"))
    if shipped:
        lines = f"set -euo pipefail; source {ROOT}/slurm/ranks.sh; run_or_resume 'a run' c.yaml"
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1", "FEDSIM_LAUNCH": "srun"}
    path = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTE": str(tmp_path / "up"),
        "CODE": str(code),
        "WAITS": "yes" * asked,
    }
    process = subprocess.Popen(["bash", "-c", lines], cwd=tmp_path, env={**os.environ, **slurm, **path})
    give_up_s = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    if asked:
        process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == (75 if requeues else code)
    assert (tmp_path / "said").exists() == requeues


# --------------------------------------------------------------------------------------- the command

SBATCH = """#!/bin/bash
echo "$@" >"$(dirname "$0")/called"
[ ! -e "$(dirname "$0")/refuse" ] || { echo "sbatch: error: invalid partition specified: moon" >&2; exit 1; }
echo "17;cluster"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configurations, and an `sbatch` in PATH that notes what it was given."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*words: str) -> tuple[int, str]:
    runner = CliRunner()
    result = runner.invoke(cli, ["submit", *words], standalone_mode=False)
    if result.exception is None:
        return result.return_value, result.output

    def again() -> None:
        raise result.exception  # type: ignore[misc]

    return exit_code_of(again), str(result.exception)


def test_a_job_is_written_and_submitted(site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--nodes", "2", "--set", "stop.versions=3")
    assert (code, said.splitlines()[-1]) == (0, "job 17: runs/heart-async.sbatch")
    assert "note: 7 workers, but 3 tasks in flight at most" in said
    written = (site / "runs" / "heart-async.sbatch").read_text()
    assert "#SBATCH --ntasks=8\n" in written and "--set stop.versions=3)\n" in written
    assert (site / "bin" / "called").read_text() == "--parsable runs/heart-async.sbatch\n"


def test_a_dry_run_prints_and_does_nothing(site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--dry-run")
    assert code == 0 and said.startswith("#!/bin/bash\n") and said.endswith('exit "$code"\n')
    assert not (site / "runs").exists() and not (site / "bin" / "called").exists()


def test_the_configuration_is_checked_first(site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--set", "schedule.concurrency=0")
    assert code == 2 and "schedule.concurrency: must be at least 1, got 0" in said
    code, said = submit("configs/images-sync.yaml", "--set", "schedule.cohort=2000")
    assert code == 2 and "above the 1000 clients" in said
    assert not (site / "bin" / "called").exists()


def test_what_sbatch_says_is_passed_on(site: Path) -> None:
    (site / "bin" / "refuse").touch()
    code, said = submit("configs/heart-async.yaml", "--partition", "moon")
    assert code == 2
    assert said.endswith("sbatch refuses runs/heart-async.sbatch: sbatch: error: invalid partition specified: moon")


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_a_schedule_alone_is_refused_since_a_job_has_several_ranks(dry_run: tuple[str, ...], site: Path) -> None:
    line = (
        "training.path none runs the schedule alone, in one process: got 4 ranks; run it without an MPI launcher: "
        "fedsim run"
    )
    none = ("configs/heart-async.yaml", "--set", "training.path=none", *dry_run)
    assert submit(*none) == (2, line)
    assert submit(*none, "--vary", "seed=[1,2]") == (2, line)
    assert submit("configs/heart-async.yaml", "--vary", "training.path=[loop,none]", *dry_run) == (2, line)
    assert not (site / "runs").exists() and not (site / "bin" / "called").exists()


def test_a_folder_of_another_run_is_refused(site: Path) -> None:
    (site / "runs" / "heart-async").mkdir(parents=True)
    code, said = submit("configs/heart-async.yaml")
    assert code == 2 and "exists and is no run that could go on" in said
    (site / "runs" / "heart-async" / "config.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    code, said = submit("configs/heart-async.yaml")
    assert code == 2 and "exists with another configuration" in said
    (site / "runs" / "heart-async" / "config.yaml").write_text((ROOT / "configs" / "heart-async.yaml").read_text())
    assert submit("configs/heart-async.yaml")[0] == 0


def test_a_folder_without_a_record_is_begun_again(site: Path) -> None:
    """What a job leaves that is killed before its record is there, its configuration cut short or not."""
    left = site / "runs" / "heart-async"
    left.mkdir(parents=True)
    whole = configfile.resolved_text(configfile.load(ROOT / "configs" / "heart-async.yaml"))
    for written in (whole, whole[:30], ""):
        (left / "config.yaml").write_text(written)
        assert submit("configs/heart-async.yaml")[0] == 0


def test_fewer_ranks_than_nodes_are_refused(site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--nodes", "4", "--ranks", "3")
    assert (code, said) == (2, "--ranks is 3; allowed: 2 or more, and one or more for each of 4 nodes")


@pytest.mark.parametrize("vary", [(), ("--vary", "seed=[1]")])
def test_a_folder_of_several_lines_is_refused(vary: tuple[str, ...], site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--out", "runs/a\n#SBATCH --uid=0", *vary)
    assert (code, said) == (
        2,
        r"--out: 'runs/a\n#SBATCH --uid=0' has characters that cannot be printed; allowed: one line",
    )
    assert not (site / "runs").exists() and not (site / "bin" / "called").exists()


def test_without_sbatch_it_says_where_to_go(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    code, said = submit("configs/heart-async.yaml")
    assert code == 2 and said.startswith("no sbatch in PATH")


def test_a_sweep_is_an_array_over_a_frozen_manifest(site: Path) -> None:
    code, said = submit("configs/heart-async.yaml", "--vary", "seed=[1,2,3]", "--sbatch", "qos=x", "--dry-run")
    assert code == 0 and "#SBATCH --array=0-2\n" in said and not (site / "runs").exists()
    assert '-m fedsim sweep runs/heart-async-sweep --point "$SLURM_ARRAY_TASK_ID" --ranks 4 &\n' in said
    assert "#SBATCH --output=runs/heart-async-sweep-%A_%a.out\n" in said
    code, said = submit("configs/heart-async.yaml", "--vary", "seed=[1,2,3]")
    assert (code, said.splitlines()[-1]) == (0, "job 17: runs/heart-async-sweep.sbatch")
    assert (site / "runs" / "heart-async-sweep" / "manifest.json").exists()
    assert submit("configs/heart-async.yaml", "--vary", "seed=[1,2,3]")[0] == 0  # again: the same points
    code, said = submit("configs/heart-async.yaml", "--vary", "seed=[1,2]")
    assert code == 2 and "is there already, of another sweep" in said


def test_an_array_needs_mpirun(site: Path) -> None:
    (site / "site.yaml").write_text("launcher: srun\n")
    code, said = submit("configs/heart-async.yaml", "--vary", "seed=[1]", "--machine", "site.yaml")
    assert code == 2 and "started by mpirun, the machine's launcher is srun" in said
