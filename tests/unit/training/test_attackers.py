"""Who attacks, and what attackers send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.aggregation import Arrival, Facts, Marked, build
from fedsim.config import GaussianAttack, RunConfig, ScaledAttack, SignFlip
from fedsim.engine.plan import plan
from fedsim.errors import ClientError, ConfigError
from fedsim.population.attackers import Poisoned, attackers
from fedsim.training import Payload
from fedsim.training.clients.attacking import attack_of, tampered
from fedsim.training.clients.methods import Received
from fedsim.types import TaskReport, Update

Make = Callable[..., Any]
EVERYBODY = np.arange(20)
ONE = np.array([1])
SIGN = {"kind": "sign-flip", "fraction": 0.3}


def test_a_fraction_is_a_fixed_number_of_clients(make_config: Make) -> None:
    config = make_config(attack=SIGN)
    found = attackers(config, EVERYBODY.size)
    assert found is not None and found.size == 6 and np.array_equal(found, np.unique(found))
    other = attackers(config.model_copy(update={"seed": 8}), EVERYBODY.size)
    assert other is not None and other.size == 6 and not np.array_equal(found, other)
    everybody = attackers(config, EVERYBODY.size, EVERYBODY)
    assert found is not None and everybody is not None and everybody.tolist() == found.tolist()
    some = attackers(config, EVERYBODY.size, EVERYBODY[::2])  # of those with data alone
    assert some is not None and some.size == 3 and set(some.tolist()) <= set(range(0, 20, 2))
    assert attackers(make_config(), 2**40) is None


def test_attackers_can_be_named(make_config: Make) -> None:
    found = attackers(make_config(attack={"kind": "scaled", "clients": [7, 3, 7]}), EVERYBODY.size)
    assert found is not None and found.tolist() == [3, 7]


def test_a_fraction_of_too_many_is_refused_before_memory_is_taken(make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"attack.fraction: a draw from 2,147,483,648 clients would take 85.9 GB"):
        attackers(make_config(attack=SIGN), 2**31)
    named = attackers(make_config(attack={"kind": "sign-flip", "clients": [2**30, 5]}), 2**31)
    assert named is not None and named.tolist() == [5, 2**30]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"kind": "sign-flip", "clients": [20]}, "client 20 is none of the 20 clients with data"),
        ({"kind": "sign-flip", "fraction": 0.01}, "0.01 of 20 clients with data is nobody"),
    ],
)
def test_nobody_is_refused(attack: dict[str, Any], words: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=words):
        attackers(make_config(attack=attack), EVERYBODY.size)


def test_refused_together(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of fraction and clients"):
        make_config(attack={"kind": "gaussian"})
    with pytest.raises(ValueError, match="exactly one of fraction and clients"):
        make_config(attack={"kind": "gaussian", "fraction": 0.5, "clients": [1]})
    with pytest.raises(ValueError, match="nothing is trained"):
        make_config(attack=SIGN, training={"path": "none"})
    (tmp_path / "t.csv").write_text("client,x,y\n" + "".join(f"{c},{i},{i}.5\n" for c in "ab" for i in range(4)))
    values = {"dataset": "csv", "path": "t.csv", "client": "client", "label": "y", "targets": "values"}
    config: RunConfig = make_config(data=values, attack={"kind": "label-flip", "fraction": 0.5})
    with pytest.raises(ConfigError, match=r"label-flip turns classes round; data\.dataset csv has values"):
        plan(config, tmp_path)


def test_turned_labels(make_population: Make, make_shard: Make) -> None:
    inner = make_population([make_shard(9, (3,), 4, c) for c in range(3)], 4, {1: make_shard(5, (3,), 4)})
    people = Poisoned(inner, np.array([1]))
    assert np.array_equal(people.shard(1).y, 3 - inner.shard(1).y)
    assert np.array_equal(people.shard(1).x, inner.shard(1).x)
    assert np.array_equal(people.shard(0).y, inner.shard(0).y)
    assert np.array_equal(people.test_shard(1).y, inner.test_shard(1).y)


def test_what_is_sent(make_config: Make, make_task: Make) -> None:
    task = make_task(make_config(), 0, 8)
    update = np.array([1.0, -2.0, 0.0], np.float32)
    assert tampered(update, SignFlip(kind="sign-flip", fraction=1.0), 0, task).tolist() == [-1.0, 2.0, 0.0]
    assert tampered(update, ScaledAttack(kind="scaled", fraction=1.0), 0, task).tolist() == [10.0, -20.0, 0.0]
    noise = GaussianAttack(kind="gaussian", fraction=1.0, std=3.0)
    drawn = tampered(np.zeros(40_000, np.float32), noise, 0, task)
    assert drawn.dtype == np.float32 and abs(drawn.mean()) < 0.1 and abs(drawn.std() - 3.0) < 0.1
    again = tampered(np.ones(40_000, np.float32), noise, 0, task)
    assert np.array_equal(drawn, again)  # of seed, client and task alone
    for other in (task._replace(task=12), task._replace(client=1)):
        assert not np.array_equal(drawn, tampered(np.zeros(40_000, np.float32), noise, 0, other))


@pytest.mark.parametrize("payload", ["delta", "model"])
def test_what_attackers_trained_is_replaced(payload: Payload, make_config: Make, make_task: Make) -> None:
    base, delta = np.array([1.0, 1.0], np.float32), np.array([3.0, 4.0], np.float32)
    shift = np.zeros(2, np.float32) if payload == "delta" else base
    (method,) = attack_of(make_config(attack={"kind": "sign-flip", "clients": [1], "scale": 2.0}), ONE, payload)
    for client, sent in ((0, [3.0, 4.0]), (1, [-6.0, -8.0])):
        out = delta + shift
        received = Received(make_task(make_config(), client, 8), base, np.zeros((0, 2), np.float32), None)
        assert method.finish(received, base, out) is None
        assert (out - shift).tolist() == sent
    assert attack_of(make_config(), None, payload) == ()
    assert attack_of(make_config(attack={"kind": "label-flip", "clients": [1]}), ONE, payload) == ()


def test_what_overflows_is_the_clients_error(make_config: Make, make_task: Make) -> None:
    (method,) = attack_of(make_config(attack={"kind": "scaled", "clients": [1], "factor": 1e38}), ONE, "delta")
    received = Received(make_task(make_config(), 1, 8), np.zeros(1, np.float32), np.zeros((0, 1), np.float32), None)
    with pytest.raises(ClientError, match="what the attack scaled sends is inf"):
        method.finish(received, received.weights_P, np.array([1e30], np.float32))


def test_marks_change_nothing(make_config: Make, make_task: Make) -> None:
    config = make_config(aggregation={"rule": "norm-bound", "bound": 1.0})
    plain, marked = (build(config.aggregation, Facts()) for _ in range(2))
    marked = Marked(marked, np.array([1]))
    assert marked.scalar_names == ("shortened", "attacked")
    states = [rule.init(np.zeros(2, np.float32)) for rule in (plain, marked)]
    for client in (0, 1):
        task = make_task(config, client, 8)
        update = Update(TaskReport(0, 0, 8, 1, 0.0, 0.0, 0.0, 0.0), np.array([3.0, 4.0], np.float32))
        states[0], said = plain.accumulate(states[0], update, Arrival(0, task))
        states[1], also = marked.accumulate(states[1], update, Arrival(0, task))
        assert also.scalars == (*said.scalars, float(client)) and also.weight == said.weight
    assert np.array_equal(plain.commit(states[0]).weights_P, marked.commit(states[1]).weights_P)


@pytest.mark.parametrize("kind", ["label-flip", "sign-flip", "gaussian", "scaled"])
def test_the_record_says_who_attacked(kind: str, make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        attack={"kind": kind, "clients": [1, 2]},
        schedule={"policy": "async", "concurrency": 3},
        aggregation={"rule": "fedasync"},
        devices={"loss_probability": 0.3},
        stop={"updates": 12},
    )
    run = fedsim.run(config, tmp_path / "run")
    honest = fedsim.run(config.model_copy(update={"attack": None}), tmp_path / "honest")
    assert run is not None and honest is not None
    assert run.attributes["n_attackers"] == 2 and json.loads(str(run.attributes["attackers"])) == [1, 2]
    tasks = run.tasks
    applied = tasks[tasks.outcome == 0]
    assert (applied.attacked == applied.client.isin([1, 2])).all() and applied.attacked.nunique() == 2
    assert tasks[tasks.outcome != 0].attacked.isna().all()
    assert "attacked" not in honest.tasks
    assert run.summary()["history_sha256"] != "" and run.summary()["model_sha256"] != honest.summary()["model_sha256"]
