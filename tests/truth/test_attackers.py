"""Attackers on a small federation: what breaks the mean, and what holds. Configurations: configs/robust."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim

ROBUST = Path(__file__).parents[2] / "configs" / "robust"


def accuracy(name: str, folder: Path) -> float:
    """The accuracy of the last version; five of the twenty clients attack."""
    run = fedsim.run(ROBUST / f"{name}.yaml", folder / "run")
    assert run is not None and run.attributes["n_attackers"] == 5
    return float(run.summary()["metrics"]["accuracy"])


@pytest.mark.parametrize("name", ["fedavg", "buffered-mean"])
def test_attackers_break_the_mean(name: str, tmp_path: Path) -> None:
    """A quarter of the clients: the model knows no more than ten classes drawn at random."""
    assert accuracy(name, tmp_path) < 0.25


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("median", 0.6),
        ("trimmed-mean", 0.6),
        ("krum", 0.6),
        ("multi-krum", 0.85),
        ("buffered-median", 0.8),
        ("k-async-trimmed-mean", 0.85),
        ("k-async-multi-krum", 0.8),
    ],
)
def test_robust_rules_hold(name: str, least: float, tmp_path: Path) -> None:
    """Bounds below the worst of seeds 7 and 42 to 46."""
    assert accuracy(name, tmp_path) > least
