"""Where the task of a row that is not consumed stands (`fedsim.engine.rows`): plain numbers, for compiled code, too."""

from __future__ import annotations

from typing import Final

WAITING: Final = 0  # for its base version
READY: Final = 1
POSTED: Final = 2
HERE: Final = 3
