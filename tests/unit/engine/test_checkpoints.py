"""When checkpoints are written: what a kill at any moment would lose, by the clock."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import CheckpointConfig
from fedsim.engine.checkpoints import Checkpoints
from fedsim.engine.server import Pulse
from fedsim.engine.versions import VersionStore
from fedsim.record import checkpoint


class Recorder:
    def rows(self) -> dict[str, int]:
        return {"tasks": 0, "versions": 0}

    def sync(self) -> None:
        """Nothing is buffered."""


@pytest.mark.parametrize(("every_s", "writing_s"), [(5.0, 0.2), (5.0, 3.0), (1.0, 4.0)])
def test_a_kill_loses_the_interval_and_twice_the_writing_at_most(
    every_s: float, writing_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of our own: a checkpoint is whole `writing_s` after it was begun; looked at 20 times a second."""
    may_end = threading.Event()
    first = checkpoint.write

    def write(*words: Any) -> Path:
        may_end.wait(30.0)
        return first(*words)

    monkeypatch.setattr(checkpoint, "write", write)
    versions = VersionStore(4, 1000)
    versions.add(0, np.zeros(4, np.float32))
    config = CheckpointConfig(every_s=every_s)
    keeper: Any = Checkpoints(tmp_path, config, {}, Recorder(), {}, versions, versions.release)  # type: ignore[arg-type]
    begun_s, whole_s, most_lost_s = None, 0.0, 0.0
    for look in range(1000):
        now_s = look * 0.05
        if begun_s is not None and now_s >= begun_s + writing_s:
            may_end.set()
            while keeper._writing.is_alive():
                time.sleep(0.001)
            may_end.clear()
            whole_s, begun_s = begun_s, None
        if keeper.is_due(Pulse(wall_s=now_s)):
            begun_s = now_s
            keeper.keep({}, [0])
        most_lost_s = max(most_lost_s, now_s - whole_s)
    may_end.set()
    keeper.finish()
    assert keeper.n_written > 3
    assert every_s < most_lost_s <= every_s + 2 * writing_s
