"""Runs every rule and selection in one set of ranks: `python all_rules.py FOLDER UPDATES [--replay]`.

These are the configurations of configs/async-zoo, some of configs/robust (with attackers), the rules of rounds
(`ROUNDS`), models of the clients' own (`PERSONAL`), and what else chooses clients (`SELECTIONS`). Starting ranks takes
longer than such a run. On several ranks it is started by mpirun; prints a line of JSON a run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fedsim
from fedsim.engine import run as engine
from fedsim.engine.launching import find_world
from fedsim.engine.run import Caller, replay_run

CONFIGS = Path(__file__).parents[2] / "configs"
SAME = ("status", "rule", "model_sha256", "history_sha256", "versions", "updates", "metrics", "personal")
_ONE_BY_ONE = {"schedule": {"policy": "sync", "cohort": 1, "selection": "cyclic"}}
_OF_FIVE = {"schedule": {"policy": "sync", "cohort": 5}}
_ROUND: dict[str, Any] = {
    "seed": 5,
    "data": {
        "dataset": "synthetic-leaf",
        "clients": 9,
        "features": 9,
        "classes": 3,
        "min_samples": 20,
        "max_samples": 90,
    },
    "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}, "loss_probability": 0.1},
    "model": {"kind": "logistic"},
    "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 8, "epochs": 1},
    "schedule": {"policy": "sync", "cohort": 3, "over_selection": 1.4},
    "evaluation": {"every_versions": 5},
}
ROUNDS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {},
    "fedadam": {},
    "fedyogi": {},
    "fedadagrad": {},
    "fednova": {},
    "q-fedavg": {"record": {"losses": "full"}},
    "scaffold": {},
    "feddyn": {},
    "cyclic": _ONE_BY_ONE,
    "median": _OF_FIVE,
    "trimmed-mean": _OF_FIVE,
    "norm-bound": {"aggregation": {"bound": 0.05}},
    "krum": _OF_FIVE,
    "multi-krum": _OF_FIVE,
}
"""The sections in which each rule that may have rounds differs from `_ROUND`."""
ATTACKED = {
    "buffered-median": "gaussian",
    "k-async-trimmed-mean": "label-flip",
    "k-async-multi-krum": "sign-flip",
    "buffered-mean": "scaled",
}
"""Configurations of configs/robust, and the attack that each has here."""


_BATCH_NORM = {"data": _ROUND["data"] | {"min_samples": 50, "max_samples": 50}}
_ASYNC = {"schedule": {"policy": "async", "concurrency": 4}}
PERSONAL: dict[str, dict[str, Any]] = {
    "ditto": {"personalization": {"kind": "ditto"}, "aggregation": {"rule": "scaffold"}},
    "ditto-late": {**_ASYNC, "personalization": {"kind": "ditto"}, "aggregation": {"rule": "fedasync"}},
    "fine-tune": {"personalization": {"kind": "fine-tune", "steps": 3}, "aggregation": {"rule": "fedavgm"}},
    "local": {"personalization": {"kind": "local"}},
    "fedbn": {
        **_BATCH_NORM,
        "model": {"kind": "mlp", "hidden": [6], "norm": "batch"},
        "personalization": {"kind": "fedbn"},
    },
    "buffers": {
        **_BATCH_NORM,
        **_ASYNC,
        "model": {"kind": "mlp", "hidden": [6], "norm": "batch", "buffers": "average"},
        "aggregation": {"rule": "aso-fed"},
        "training": _ROUND["training"] | {"objective": {"kind": "aso-fed"}},
    },
}
"""Models of the clients' own, and what clients keep besides; the rule is FedAvg where none is said."""

_AWAY = {"devices": _ROUND["devices"] | {"availability": {"kind": "periodic", "period_s": 7.0, "on_fraction": 0.6}}}
_SELDOM = {"devices": _AWAY["devices"] | {"availability": {"kind": "periodic", "period_s": 7.0, "on_fraction": 0.2}}}
_TIFL = {"kind": "tifl", "tiers": 3, "every_rounds": 3}  # often nobody of a tier is there
_OORT = {"kind": "oort", "explore": 0.5, "window": 2}  # a window that ends within the run: the pacer has its say


def _choosing(selection: Any, **policy: Any) -> dict[str, Any]:
    """Sections with that selection: in rounds of three or four, or under the policy whose settings are given."""
    return {"schedule": (policy or _ROUND["schedule"]) | {"selection": selection}}


SELECTIONS: dict[str, dict[str, Any]] = {
    "size": _choosing("size"),
    "availability": {**_AWAY, **_choosing("availability", policy="async", concurrency=4)},
    "pisces": _choosing({"kind": "pisces"}),
    "oort": _choosing(_OORT),
    "oort-away": {**_AWAY, **_choosing(_OORT)},
    "oort-buffered": _choosing(_OORT, policy="buffered", concurrency=5, buffer=3),
    "tifl-away": {**_SELDOM, **_choosing(_TIFL, policy="sync", cohort=2)},
    "power-of-choice": _choosing({"kind": "power-of-choice", "candidates": 6}),
    "power-of-choice-async": _choosing({"kind": "power-of-choice", "candidates": 3}, policy="async", concurrency=4),
}
"""Who is chosen where it is neither everybody alike nor one of the others' selections; the rule is FedAvg."""


def facts_of(run: fedsim.Run) -> dict[str, object]:
    """What has to be the same on any number of ranks."""
    summary, chosen = run.summary(), run.config_values["schedule"].get("selection", "uniform")
    kind = chosen["kind"] if isinstance(chosen, dict) else chosen
    return {"selection": kind, **{key: summary[key] for key in SAME}}


def runs(folder: Path, n_updates: int, world: Any) -> Iterator[tuple[str, fedsim.Run | None]]:
    """The runs one after the other, by name; None on a worker."""
    for path in sorted(CONFIGS.glob("async-zoo/*.yaml")):
        overrides = [f"stop.updates={n_updates}", "devices.compute.slowness.sigma=0.2"]  # so that all of them report
        yield path.stem, fedsim.run(path, folder / path.stem, overrides=overrides, world=world)
    for name, attack in ATTACKED.items():
        overrides = [f"stop.updates={n_updates}", f"attack={{kind: {attack}, fraction: 0.25}}"]
        path = CONFIGS / "robust" / f"{name}.yaml"
        yield f"robust-{name}", fedsim.run(path, folder / f"robust-{name}", overrides=overrides, world=world)
    named = [(f"rounds-{rule}", rule, sections) for rule, sections in ROUNDS.items()]
    named += [(f"personal-{what}", "fedavg", sections) for what, sections in PERSONAL.items()]
    named += [(f"selection-{what}", "fedavg", sections) for what, sections in SELECTIONS.items()]
    for name, rule, sections in named:
        config = {**_ROUND, **sections, "name": name, "stop": {"updates": n_updates}}
        config["aggregation"] = {"rule": rule, **sections.get("aggregation", {})}
        yield name, fedsim.run(config, folder / name, world=world)


def main(folder: Path, n_updates: int, replays: bool) -> None:
    """One run after the other, on the same ranks; their records stay as they were written, which saves 40 % of it."""
    engine.join = lambda folder: folder
    world = find_world(os.environ)
    for name, run in runs(folder, n_updates, world):
        if run is None:  # a worker
            continue
        found = {"name": name, **facts_of(run)}
        if replays:
            again = replay_run(folder / name, None, Caller(world))
            assert again is not None and again.error is None
            found["replayed"] = facts_of(fedsim.open_run(again.folder))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--replay" in sys.argv)
