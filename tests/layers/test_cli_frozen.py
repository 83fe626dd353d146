"""The command line's words are a promise: a command or option that is added, renamed or dropped changes this list."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import click
import pytest

from fedsim.cli import COMMANDS, cli

HELP = ("-h", "--help")
FROZEN = {
    "run": ["CONFIG", ("--set",), ("--out",), ("--quiet",), ("--allow-code",), HELP],
    "resume": ["RUN", ("--allow-mixed",), ("--quiet",), ("--allow-code",), HELP],
    "check": ["CONFIG", ("--set",), ("--allow-code",), HELP],
    "show": ["RUN", ("--json",), ("--plot",), ("--join",), HELP],
    "watch": ["RUN", ("--interval",), HELP],
    "compare": ["RUN RUN...", ("--json",), HELP],
    "replay": ["RUN", ("--out",), ("--quiet",), ("--allow-code",), HELP],
    "sweep": [
        "CONFIG",
        ("--vary",),
        ("--set",),
        ("--out",),
        ("--ranks",),
        ("--point",),
        ("--freeze",),
        ("--quiet",),
        ("--allow-code",),
        HELP,
    ],
    "submit": [
        "CONFIG",
        ("--vary",),
        ("--set",),
        ("--out",),
        ("--machine",),
        ("--nodes",),
        ("--ranks",),
        ("--time",),
        ("--account",),
        ("--partition",),
        ("--sbatch",),
        ("--dry-run",),
        ("--allow-code",),
        HELP,
    ],
    "scale": [
        "CONFIG",
        ("--set",),
        ("--workers",),
        ("--nodes",),
        ("--weak",),
        ("--repeat",),
        ("--out",),
        ("--json",),
        HELP,
    ],
    "list": ["[WHAT]", HELP],
    "bench": [HELP],  # a group: its commands' words are in tests/unit/test_bench.py
}
# Importing any of these costs more than the whole help may take, or initialises MPI.
HEAVY = ("torch", "mpi4py", "h5py", "pandas", "sklearn", "matplotlib", "numpy", "pydantic", "rich", "yaml")


def words(command: click.Command) -> list[object]:
    context = click.Context(command, **command.context_settings, parent=click.Context(cli, **cli.context_settings))
    found: list[object] = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            assert not parameter.secondary_opts
            found.append(tuple(parameter.opts))
        else:
            found.append(parameter.make_metavar(context))
    return found


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_commands_are_these() -> None:
    assert cli.list_commands(click.Context(cli)) == list(FROZEN)
    assert words(cli) == [("--version",), HELP]


@pytest.mark.parametrize("name", FROZEN)
def test_options_are_these(name: str) -> None:
    assert words(command(name)) == FROZEN[name]


@pytest.mark.parametrize("name", FROZEN)
def test_every_word_is_explained(name: str) -> None:
    one = command(name)
    assert one.help and one.help.strip().endswith(".")
    assert len(one.get_short_help_str(limit=70)) <= 70 and not one.get_short_help_str(limit=70).endswith("...")
    for parameter in one.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith("."), parameter.name


def test_every_command_can_be_loaded() -> None:
    assert all(isinstance(command(name), click.Command) for name in COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedsim.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert all(name in done.stdout for name in FROZEN)


def test_help_is_quick() -> None:
    """Under 0.4 s of processor time (wall time on a machine that is busy with other things says nothing)."""
    command = [sys.executable, "-m", "fedsim", "--help"]
    spent = []
    for _ in range(3):
        before = os.times()
        start_s = time.perf_counter()
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        after = os.times()
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        spent.append(min(cpu_s, time.perf_counter() - start_s))
    assert min(spent) < 0.4
