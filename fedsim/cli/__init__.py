"""The command line. Each command lives in a module of its own and imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

import fedsim
from fedsim.errors import EXIT_BUG, EXIT_DONE, EXIT_USAGE, FedsimError, nearest

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE: nobody reads what we print
_HEARD_S = 2.0  # for the rank that speaks: once one has ended with an error, the launcher kills the others

# Where each command is, in the order in which they are listed.
COMMANDS = {
    "run": "fedsim.cli.running:run",
    "resume": "fedsim.cli.running:resume",
    "check": "fedsim.cli.planning:check",
    "show": "fedsim.cli.reading:show",
    "watch": "fedsim.cli.watching:watch",
    "compare": "fedsim.cli.reading:compare",
    "replay": "fedsim.cli.running:replay",
    "sweep": "fedsim.cli.sweeping:sweep",
    "submit": "fedsim.cli.submitting:submit",
    "scale": "fedsim.bench.scale:scale",
    "list": "fedsim.cli.planning:list_names",
    "bench": "fedsim.bench:bench",
}

_HELP = """Simulates federated learning, asynchronous first, on one process or on many MPI ranks.

\b
    fedsim run CONFIG.yaml                    in this process
    mpirun -n 4 fedsim run CONFIG.yaml        rank zero is the server, the others train
"""

_EPILOG = """Exit codes: 0 done; 2 usage, configuration or data; 70 a bug, or a run that failed; 75 stopped by a signal,
with a checkpoint (fedsim resume goes on); 76 stalled; 77 lost more than it could bear."""


class Commands(click.Group):
    """A group whose commands are imported when they are called, and whose errors become one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in their order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of that name; a usage error if there is none."""
        if cmd_name not in COMMANDS:
            raise click.UsageError(f"no command '{cmd_name}': {nearest(cmd_name, COMMANDS)}", ctx)
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The parsed command line; prints the help or the version where they are asked for."""
        with _quiet_pipe():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """The command's exit code."""
        with _quiet_pipe():
            code = super().invoke(ctx)
            sys.stdout.flush()
            return code

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line and exits with its code; without `standalone_mode`, returns what the command returned."""

        def call() -> Any:
            return super(Commands, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return call()
        sys.exit(exit_code_of(call))


def exit_code_of(call: Callable[[], Any]) -> int:
    """What the process should end with: the call's own code, or that of what went wrong, which is printed."""
    try:
        code = call()
    except FedsimError as error:
        return say(str(error), error.exit_code)
    except click.UsageError as error:
        see = f" (see: {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return say(" ".join(error.format_message().split()) + see, EXIT_USAGE)
    except click.ClickException as error:
        return say(error.format_message(), EXIT_USAGE)
    except click.Abort:
        return say("interrupted", EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return say("this is a bug of fedsim", EXIT_BUG)
    return code if isinstance(code, int) else EXIT_DONE


def say(text: str, code: int) -> int:
    """Prints a line on stderr, on one rank of many, and returns the code."""
    from fedsim.engine.launching import speaks

    if speaks(os.environ):
        click.echo(f"fedsim: {text}", err=True)
    elif "mpi4py.MPI" not in sys.modules:  # ranks that have met leave together
        time.sleep(_HEARD_S)
    return code


@contextmanager
def _quiet_pipe() -> Iterator[None]:
    """Ends with `EXIT_PIPE` and without a word if the reader of standard output went away.

    What is still buffered goes nowhere, so that the interpreter's own flush at its end does not complain.
    """
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise click.exceptions.Exit(EXIT_PIPE) from None


@click.group(
    cls=Commands,
    help=_HELP,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(fedsim.__version__, prog_name="fedsim", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """The group that all commands belong to; by itself it says what there is, which is not what was asked for."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
    return EXIT_USAGE


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The program: reads the command line (or `args`), does what it says, exits."""
    cli.main(args, prog_name="fedsim")
    raise AssertionError("click exits")
