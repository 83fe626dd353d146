"""How the command line ends: one line on stderr and the exit code of what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import fedsim
from fedsim.cli import cli, exit_code_of, main
from fedsim.errors import ClientError, ConfigError, FedsimError, LostError, RecordError, StalledError, WorkerError

FEDSIM = (sys.executable, "-m", "fedsim")


def fedsim_says(*words: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="fedsim")


def raising(error: BaseException) -> int:
    def call() -> None:
        raise error

    return exit_code_of(call)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.yaml:3: seed: got x"), 2),
        (RecordError("no record"), 2),
        (ClientError("client 1"), 2),
        (WorkerError("### worker 1"), 70),
        (StalledError("nothing left"), 76),
        (LostError("the last worker"), 77),
    ],
)
def test_expected_errors_are_one_line(error: FedsimError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error) == code
    captured = capsys.readouterr()
    assert captured.err == f"fedsim: {error}\n" and not captured.out


def test_what_nobody_expected_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("by zero")) == 70
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text and "ZeroDivisionError: by zero" in text
    assert text.endswith("fedsim: this is a bug of fedsim\n")


def test_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(click.Abort()) == 130
    assert capsys.readouterr().err == "fedsim: interrupted\n"


def test_only_one_task_of_many_complains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "3")
    assert raising(ConfigError("wrong")) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PMI_RANK", "0")
    assert raising(ConfigError("wrong")) == 2
    assert capsys.readouterr().err == "fedsim: wrong\n"


def test_what_a_command_returns_is_the_code() -> None:
    assert exit_code_of(lambda: 76) == 76
    assert exit_code_of(lambda: None) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn", "x"], "fedsim: no command 'runn': did you mean 'run'? (see: fedsim --help)\n"),
        (["run"], "fedsim: Missing argument 'CONFIG'. (see: fedsim run --help)\n"),
        (["compare", "a"], "fedsim: compare needs two runs or more, got 1 (see: fedsim compare --help)\n"),
        (["run", "absent.yaml"], "fedsim: absent.yaml: no such file\n"),
        (["check", "absent.yaml"], "fedsim: absent.yaml: no such file\n"),
        (["show", "absent"], "fedsim: absent: no such run folder or record\n"),
        (["watch", "absent"], "fedsim: absent: no such run folder or record\n"),
        (["replay", "absent"], "fedsim: absent: no such run folder or record\n"),
        (["compare", "absent", "other"], "fedsim: absent: no such run folder or record\n"),
    ],
)
def test_wrong_words_get_one_line_and_two(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fedsim_says(*words)
    assert (result.exit_code, result.stderr, result.stdout) == (2, said, "")


@pytest.mark.parametrize("words", [["show", "x", "--jsno"], ["watch", "x", "--interval", "0"], ["list", "nonsense"]])
def test_wrong_options_get_one_line_and_two(words: list[str]) -> None:
    result = fedsim_says(*words)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("fedsim: ") and result.stderr.count("\n") == 1


def test_no_command_gets_the_help() -> None:
    result = fedsim_says()
    assert result.exit_code == 2 and result.stdout == "" and "Commands:" in result.stderr


def test_version_and_help() -> None:
    assert fedsim_says("--version").stdout == f"fedsim {fedsim.__version__}\n"
    for words in (["--help"], ["-h"], ["run", "--help"]):
        result = fedsim_says(*words)
        assert result.exit_code == 0 and result.stdout.startswith("Usage: fedsim")
    assert "Exit codes:" in fedsim_says("--help").stdout


def test_main_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["list", "rules"])
    assert caught.value.code == 0 and "fedbuff" in capsys.readouterr().out


def test_a_bug_in_a_command_ends_with_seventy(tmp_path: Path) -> None:
    code = (
        "import sys, fedsim.engine.plan\n"
        "def broken(*args): raise KeyError('x')\n"
        "fedsim.engine.plan.plan = broken\n"
        "from fedsim.cli import main\n"
        "main(['check', sys.argv[1]])"
    )
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG)
    done = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 70 and "KeyError: 'x'" in done.stderr


CONFIG = """\
name: tiny
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.01}, batch_size: 4, steps: 2}
schedule: {policy: async, concurrency: 2}
aggregation: {rule: fedasync}
stop: {versions: 3}
"""


@pytest.mark.parametrize("words", [["list"], ["--help"], ["run", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    """As in `fedsim list | true`: the reading end is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*FEDSIM, *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_launcher_without_mpi_is_refused_once(tmp_path: Path) -> None:
    """Four tasks that MPI cannot see: all end with 2, and the first one says why."""
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG)
    said = []
    for rank in ("0", "1"):
        environ = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_NTASKS": "4"}
        done = subprocess.run(
            [*FEDSIM, "run", str(config)], env=environ, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 2 and done.stdout == ""
        said.append(done.stderr)
    assert said[0].startswith("fedsim: the launcher announces 4 tasks (SLURM_NTASKS=4), but ")
    assert said[0].count("\n") == 1 and said[1] == ""
    assert not (tmp_path / "runs").exists()
