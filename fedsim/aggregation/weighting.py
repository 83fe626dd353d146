"""How much an update counts: by its staleness and by its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fedsim.config import ConstantStaleness, HingeStaleness, PolynomialStaleness, StalenessConfig
from fedsim.types import TaskReport


def staleness_function(config: StalenessConfig) -> Callable[[int], float]:
    """s(tau), 1 at tau = 0 and never growing, of a staleness counted in versions.

    constant: 1. polynomial: (1 + tau)^-a. hinge: 1 for tau <= b, else 1 / (a (tau - b) + 1).
    Reference: Xie et al., "Asynchronous federated optimization" (FedAsync), 2019, arXiv:1903.03934,
    adaptive mixing. There the hinge reads 1 / (a (t - tau - b) + 1), in which t - tau is the staleness.
    """
    match config:
        case ConstantStaleness():
            return lambda tau: 1.0
        case PolynomialStaleness(a=a):
            return lambda tau: float((1.0 + tau) ** -a)
        case HingeStaleness(a=a, b=b):
            return lambda tau: 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


def sample_weight(weighting: Literal["samples", "uniform"], report: TaskReport) -> float:
    """The weight of an update before staleness: its client's number of samples, or 1."""
    return float(report.n_samples) if weighting == "samples" else 1.0


def is_too_stale(staleness: int, max_staleness: int | None) -> bool:
    """Whether an update is left out for its staleness: it gets weight 0 and does not count as accumulated."""
    return max_staleness is not None and staleness > max_staleness
