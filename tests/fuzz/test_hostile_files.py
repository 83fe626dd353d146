"""A tenth of what `tests/fuzz/sweep.py` is to be run with: 20,000 configurations and 5,000 files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_mutants_are_accepted_or_refused_in_one_line() -> None:
    """In a process of its own: a file that crashes it must not take the tests along."""
    sweep = Path(__file__).with_name("sweep.py")
    done = subprocess.run([sys.executable, str(sweep), "2000", "500", "1"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.count("accepted") == 2 and done.stdout.count("refused") == 2
