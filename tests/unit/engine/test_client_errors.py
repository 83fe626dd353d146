"""Clients whose training fails: the run ends, or goes on without the update, or tries again elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.engine.replay import History
from fedsim.errors import ClientError, WorkerError
from fedsim.types import Outcome

POLICIES: dict[str, tuple[dict[str, Any], str]] = {
    "async": ({"policy": "async", "concurrency": 5}, "fedavg"),
    "buffered": ({"policy": "buffered", "concurrency": 6, "buffer": 3}, "fedbuff"),
    "sync": ({"policy": "sync", "cohort": 3, "over_selection": 2.0}, "fedavg"),
    "window": ({"policy": "window", "concurrency": 5, "window_s": 1.0}, "fedavg"),
    "tiers": ({"policy": "tiers", "tiers": 3, "cohort": 2}, "fedavg"),
}


def of(config: Any, policy: str, **sections: Any) -> Any:
    schedule, rule = POLICIES[policy]
    aggregation = {"rule": rule} | ({"weighting": "uniform"} if rule == "fedavg" else {})
    return config(schedule=schedule, aggregation=aggregation, on_client_error="drop", **sections)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("inject", ["client:3", "nan:3;client:5;nan:1"])
def test_what_is_dropped_does_not_depend_on_who_trains_it(policy: str, inject: str, bench: Any, config: Any) -> None:
    asked = of(config, policy, stop={"versions": 25})
    alone = bench(inject=inject).run(asked)
    outcomes = alone.rows.column("tasks", "outcome")
    bad = np.isin(alone.rows.column("tasks", "client"), [int(part[-1]) for part in inject.split(";")])
    assert alone.status == "done" and alone.pulse.version == 25
    assert (outcomes == Outcome.FAILED).any() and not (outcomes[bad] == Outcome.APPLIED).any()
    assert not (outcomes[~bad] == Outcome.FAILED).any()
    for n_workers, seed in ((2, 1), (3, 2), (4, 3)):
        many = bench(n_workers=n_workers, seed=seed, inject=inject, placement="dynamic").run(asked)
        assert many.rows.history() == alone.rows.history()
        assert np.array_equal(many.weights_P, alone.weights_P)


def test_a_round_takes_the_next_update_in_the_place_of_one_that_failed(bench: Any, config: Any) -> None:
    result = bench(inject="client:3").run(of(config, "sync", stop={"versions": 25}))
    assert set(result.rows.column("versions", "n_updates")) == {3}


def test_versions_of_tiers_whose_clients_all_fail_are_not_made(bench: Any, config: Any) -> None:
    inject = ";".join(f"client:{client}" for client in range(11))
    result = bench(inject=inject).run(of(config, "tiers", stop={"versions": 5}))
    assert result.pulse.n_updates == 5 and (result.rows.column("versions", "n_updates") == 1).all()


@pytest.mark.parametrize("n", [7, 20, 31])
@pytest.mark.parametrize("inject", ["client:3", "client:3;client:5;client:8"])
def test_a_stop_after_updates_is_exact_where_some_of_a_round_failed(
    n: int, inject: str, bench: Any, config: Any
) -> None:
    asked = of(config, "tiers", stop={"updates": n})
    alone = bench(inject=inject).run(asked)
    assert (alone.status, alone.pulse.n_updates) == ("done", n)
    assert (alone.rows.column("tasks", "outcome") == Outcome.APPLIED).sum() == n
    many = bench(n_workers=3, seed=2, inject=inject, placement="dynamic").run(asked)
    assert many.rows.history() == alone.rows.history() and np.array_equal(many.weights_P, alone.weights_P)


def test_a_client_that_would_leave_is_a_client_that_failed(bench: Any, config: Any, monkeypatch: Any) -> None:
    made = bench(inject="client:3")
    monkeypatch.setattr("fedsim.comm.faults.RuntimeError", SystemExit, raising=False)
    result = made.run(of(config, "async", stop={"versions": 25}))
    assert result.status == "done" and any("SystemExit" in text for *_, text in made.reports)


def test_each_dropped_update_is_reported(bench: Any, config: Any) -> None:
    made = bench(n_workers=2, seed=4, inject="client:3")
    result = made.run(of(config, "async"))
    failed = result.rows.column("tasks", "task")[result.rows.column("tasks", "outcome") == Outcome.FAILED]
    told = {task: (client, kind, text) for _, client, task, kind, text in made.reports}
    assert set(failed) <= set(told)
    for client, kind, text in told.values():
        assert (client, kind) == (3, "WorkerError")
        assert text.startswith("### worker ") and "Traceback" in text and "FEDSIM_INJECT asked" in text


def test_a_replay_trains_nothing_that_was_dropped(bench: Any, config: Any) -> None:
    asked = of(config, "buffered")
    first = bench(inject="client:3").run(asked)
    again = bench(n_workers=2, inject="client:3").replay(asked, History.of(first.rows))
    assert np.array_equal(again.weights_P, first.weights_P) and again.rows.history() == first.rows.history()


@pytest.mark.parametrize(("what", "kind"), [("client", WorkerError), ("nan", ClientError)])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_by_default_the_run_ends(what: str, kind: type[Exception], n_workers: int, bench: Any, config: Any) -> None:
    with pytest.raises(kind, match="client 3") as caught:
        bench(n_workers=n_workers, inject=f"{what}:3").run(config())
    rank, client, task = caught.value.where  # type: ignore[attr-defined]
    assert client == 3 and task >= 0 and (rank == 0) == (n_workers == 1)


def test_a_machine_s_failure_is_tried_again_elsewhere(bench: Any, config: Any) -> None:
    undisturbed = bench().run(config())
    made = bench(n_workers=3, seed=5, inject="client:3@1;client:4@2")
    result = made.run(config(on_client_error="retry"))
    assert result.rows.history() == undisturbed.rows.history()
    assert np.array_equal(result.weights_P, undisturbed.weights_P)
    assert made.reports


@pytest.mark.parametrize("then", ["fail", "drop"])
def test_what_fails_everywhere_is_given_up(then: str, bench: Any, config: Any) -> None:
    made = bench(n_workers=3, seed=5, inject="client:3")
    asked = config(on_client_error="retry", retry={"times": 3, "then": then})
    if then == "drop":
        dropped = bench(inject="client:3").run(config(on_client_error="drop"))
        assert made.run(asked).rows.history() == dropped.rows.history()
    else:
        with pytest.raises(WorkerError, match="client 3"):
            made.run(asked)
        assert len({worker for worker, *_ in made.reports}) > 1, "each time at another worker"


def test_a_group_that_fails_as_such_is_trained_task_by_task(bench: Any, config: Any) -> None:
    schedule = {"policy": "async", "concurrency": 12}
    undisturbed = bench().run(config(schedule=schedule))
    made = bench(inject="raise:1")
    assert made.run(config(schedule=schedule, on_client_error="drop")).rows.history() == undisturbed.rows.history()
    assert [(client, task) for _, client, task, *_ in made.reports] == [(-1, -1)]
    with pytest.raises(WorkerError, match="FEDSIM_INJECT asked"):
        bench(inject="raise:1").run(config(schedule=schedule))


def test_on_the_wall_clock_what_fails_ends_when_it_is_known(bench: Any, config: Any) -> None:
    asked = config(clock="wall", on_client_error="drop", stop={"versions": 20})
    result = bench(n_workers=3, seed=2, inject="client:3;nan:7").run(asked)
    outcomes, clients = result.rows.column("tasks", "outcome"), result.rows.column("tasks", "client")
    assert result.status == "done"
    assert set(clients[outcomes == Outcome.FAILED]) == {3, 7}
