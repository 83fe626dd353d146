"""Runs every configuration of configs/async-zoo in one set of ranks: `python all_rules.py FOLDER UPDATES [--replay]`.

Starting ranks takes longer than such a run. On several ranks it is started by mpirun; prints a line of JSON a run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fedsim
from fedsim.engine.launching import find_world
from fedsim.engine.run import Caller, replay_run

ZOO = Path(__file__).parents[2] / "configs" / "async-zoo"


def facts_of(run: fedsim.Run) -> dict[str, object]:
    """What has to be the same on any number of ranks."""
    summary = run.summary()
    return {key: summary[key] for key in ("status", "model_sha256", "history_sha256", "versions", "updates", "metrics")}


def main(folder: Path, n_updates: int, replays: bool) -> None:
    """One run after the other, on the same ranks."""
    world = find_world(os.environ)
    for path in sorted(ZOO.glob("*.yaml")):
        out = folder / path.stem
        overrides = [f"stop.updates={n_updates}", "devices.compute.slowness.sigma=0.2"]  # so that all of them report
        run = fedsim.run(path, out, overrides=overrides, world=world)
        if run is None:  # a worker
            continue
        found = {"name": path.stem, **facts_of(run)}
        if replays:
            again = replay_run(out, None, Caller(world))
            assert again is not None and again.error is None
            found["replayed"] = facts_of(fedsim.open_run(again.folder))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--replay" in sys.argv)
