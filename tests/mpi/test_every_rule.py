"""Every rule with its policy, every selection, client states: the same bits on 1, 2 and 4 ranks, and after a replay.

One rank trains inline, without a message; all runs on one number of ranks share a start of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from fedsim import config
from fedsim.schedule.selection import SelectionKind

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).with_name("all_rules.py"))
RULES = [get_args(rule.model_fields["rule"].annotation)[0] for rule in get_args(get_args(config.AggregationConfig)[0])]
ROUNDS = (
    *("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fednova", "q-fedavg", "scaffold", "feddyn", "cyclic"),
    *("median", "trimmed-mean", "norm-bound", "krum", "multi-krum"),
)
CHOSEN = set(get_args(SelectionKind)) | {
    get_args(each.model_fields["kind"].annotation)[0] for each in get_args(get_args(config.SelectionConfig)[0])
}
PERSONAL = ("ditto", "ditto-late", "fine-tune", "local", "fedbn", "buffers")
SELECTIONS = (
    *("size", "availability", "pisces", "oort", "oort-away", "oort-buffered", "tifl-away"),
    *("power-of-choice", "power-of-choice-async"),
)
NAMES = sorted(
    [path.stem for path in (ROOT / "configs" / "async-zoo").glob("*.yaml")]
    + [f"robust-{name}" for name in ("buffered-mean", "buffered-median", "k-async-multi-krum", "k-async-trimmed-mean")]
    + [f"rounds-{rule}" for rule in ROUNDS]
    + [f"personal-{what}" for what in PERSONAL]
    + [f"selection-{what}" for what in SELECTIONS]
)
N_UPDATES = "45"

Facts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(start_program: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Facts]:
    """What all configurations came to, by the number of ranks: each is a single start of ranks."""
    found: dict[int, Facts] = {}
    for n in (1, 2, 4):
        folder = str(tmp_path_factory.mktemp(f"ranks-{n}"))
        done = start_program(n, sys.executable, PROGRAM, folder, N_UPDATES, *(["--replay"] if n == 1 else []))
        assert done.returncode == 0, f"{n} ranks: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found[n] = {line.pop("name"): line for line in lines}
    return found


def test_all_configurations_ran(ran: Mapping[int, Facts]) -> None:
    assert all(sorted(ran[n]) == NAMES for n in (1, 2, 4))


def test_no_rule_is_forgotten(ran: Mapping[int, Facts]) -> None:
    """A new rule has a configuration in configs/async-zoo, or an entry in `all_rules.ROUNDS`."""
    assert {facts["rule"] for facts in ran[1].values()} == set(RULES) - {"user"}  # tests/mpi/test_own_code.py


def test_no_selection_is_forgotten(ran: Mapping[int, Facts]) -> None:
    """A new selection has a configuration in configs/async-zoo, or an entry in `all_rules.SELECTIONS`."""
    assert {facts["selection"] for facts in ran[1].values()} == CHOSEN - {"user"}  # tests/mpi/test_own_code.py


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_on_several_ranks(name: str, n: int, ran: Mapping[int, Facts]) -> None:
    alone = {key: value for key, value in ran[1][name].items() if key != "replayed"}
    assert alone["status"] == "done" and alone["updates"] == int(N_UPDATES)
    assert ran[n][name] == alone


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_in_a_replay(name: str, ran: Mapping[int, Facts]) -> None:
    alone = dict(ran[1][name])
    assert alone.pop("replayed") == alone


def test_rules_differ(ran: Mapping[int, Facts]) -> None:
    """Each makes a model of its own: none does nothing, and none is another one's twin.

    But for second models, which leave the federation alone.
    """
    models = {name: facts["model_sha256"] for name, facts in ran[1].items()}
    for second, twin in (("ditto", "scaffold"), ("fine-tune", "fedavgm")):
        assert models.pop(f"personal-{second}") == models[f"rounds-{twin}"]
    assert len(set(models.values())) == len(models)


def test_second_models_are_scored_and_others_are_not(ran: Mapping[int, Facts]) -> None:
    """They are better on their own test sets than the version is on average."""
    with_second = {name for name, facts in ran[1].items() if facts["personal"] is not None}
    assert with_second == {"personal-ditto", "personal-ditto-late", "personal-fine-tune"}
    for name in with_second:
        facts = ran[1][name]
        assert facts["personal"]["loss"] < facts["metrics"]["loss"] and len(facts["personal"]["clients"]) == 9
