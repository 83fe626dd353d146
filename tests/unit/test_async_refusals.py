"""Rules and selections that need something their schedule does not give are refused, with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim import configfile
from fedsim.engine.plan import plan
from fedsim.errors import ConfigError

ZOO = Path(__file__).parents[2] / "configs" / "async-zoo"


def refused(name: str, *overrides: str) -> str:
    """The line that a configuration of the zoo gets with these changes."""
    with pytest.raises(ConfigError) as caught:
        plan(configfile.load(ZOO / f"{name}.yaml", list(overrides)), ZOO)
    return str(caught.value)


@pytest.mark.parametrize(
    "rule",
    ["async-fed-ed", "fedfa", "ace", "aced", "dc-asgd", "aso-fed", "afl-cs"],
)
def test_rules_of_every_arrival_need_an_asynchronous_schedule(rule: str) -> None:
    line = refused("fedbuff", f"aggregation={{rule: {rule}}}")
    assert f"{rule} makes a version of every arrival: schedule.policy must be async, got buffered" in line


@pytest.mark.parametrize("rule", ["wkafl", "port", "kafl", "pisces", "ca2fl", "fadas"])
def test_rules_of_a_buffer_need_one(rule: str) -> None:
    line = refused("fedasync", f"aggregation={{rule: {rule}}}")
    assert f"{rule} needs a buffer: schedule.policy buffered (or k-async, window, pisces, tiers), got async" in line


def test_rules_with_a_policy_of_their_own() -> None:
    assert "schedule.policy must be tiers, got async" in refused("fedasync", "aggregation={rule: fedat}")
    assert "schedule.policy must be safa, got async" in refused("fedasync", "aggregation={rule: safa}")
    assert "schedule.policy compass (or async" in refused("fedat", "aggregation={rule: fedcompass}")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fedasync", ["schedule.selection={kind: tifl}"], "schedule.policy must be sync, got async"),
        ("pisces", ["record.losses=none"], "record.losses must be running or full, got none"),
        ("tifl", ["schedule.selection.tiers=6"], "6 tiers of 20 clients with data are smaller than a round's 4 tasks"),
        ("safa", ["schedule.quota=21"], "schedule.quota is 21, above the 20 clients"),
        (
            "fedbuff",
            ["aggregation={rule: fedcompass}", "schedule.buffer=21"],
            "schedule.buffer is 21, above the 20 clients",
        ),
        ("fedcompass", ["schedule.min_steps=30"], "min_steps is 30, above max_steps (20)"),
        ("async-fed-ed", ["training=none"], "this schedule reads results"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be(name: str, changes: list[Any], said: str) -> None:
    assert said in refused(name, *changes)


def test_fedcompass_takes_a_buffer_of_as_many_as_there_are_clients() -> None:
    """It is refused above that only; other rules share a buffer out among its updates, and take any."""
    for rule, n in (("fedcompass", 20), ("fedbuff", 21)):
        of = [f"aggregation={{rule: {rule}}}", f"schedule.buffer={n}"]
        assert plan(configfile.load(ZOO / "fedbuff.yaml", of), ZOO).n_merge == n


@pytest.mark.parametrize("policy", ["pisces", "fedcompass", "safa"])
def test_policies_of_simulated_times_have_no_wall_clock(policy: str) -> None:
    text = (ZOO / f"{policy}.yaml").read_text(encoding="utf-8")
    schedule = text[text.index("schedule:") : text.index("aggregation:")]
    line = refused(policy, "clock=wall", "devices={}")
    assert "needs clock: virtual, got wall" in line and schedule
