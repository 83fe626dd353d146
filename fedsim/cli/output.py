"""Tables on standard output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE_WIDTH = 120


def show_table(table: RenderableType) -> None:
    """Prints what rich can render: as wide as the terminal, or `FILE_WIDTH` and without colours in a file or pipe.

    Under a launcher it is always the latter: some give a rank a pseudo terminal for output that goes to a file.
    """
    from rich.console import Console

    from fedsim.engine.launching import announced

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Leaves a reader that went away to the command line; rich would exit."""
            raise

    is_terminal = sys.stdout.isatty() and announced(os.environ) is None
    width = None if is_terminal else FILE_WIDTH
    Output(file=sys.stdout, force_terminal=is_terminal, width=width, highlight=False).print(table)
