"""What a model's outputs for a set of samples come to: the loss and the metrics that belong to each task loss.

A tally takes the batches of a set one by one, and other sets' tallies, for sets that are pooled. Shapes: `N` samples,
`B` batch, `K` outputs of the model for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.types import Float64

_PAIRS = 512  # samples whose pairs are counted at once; more are split


class Tally(Protocol):
    """The samples of one or several sets so far."""

    n_samples: int

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Takes a batch: outputs (B, K) and targets as the loss takes them."""

    def merge(self, others: Sequence[Tally]) -> None:
        """Takes the samples of other tallies of the same loss, in order."""

    def values(self) -> tuple[float, ...]:
        """The loss, then the metrics in the order of the loss's `metric_names`; NaN where there are no samples."""


class Means:
    """Means over samples: `parts` gives of a batch the (B,) numbers of each value, the loss first."""

    def __init__(self, parts: Callable[[Tensor, Tensor], tuple[Tensor, ...]], device: torch.device) -> None:
        self.n_samples = 0
        self._parts = parts
        self._zero = torch.zeros((), dtype=torch.float64, device=device)
        self._on_device: list[Tensor] = []
        self._merged: list[float] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        parts = self._parts(outputs, targets)
        sums = self._on_device or [self._zero] * len(parts)
        self._on_device = [s + part.sum(dtype=torch.float64) for s, part in zip(sums, parts, strict=True)]
        self.n_samples += outputs.shape[0]

    def merge(self, others: Sequence[Tally]) -> None:
        for other in others:
            assert isinstance(other, Means)
            sums = other.sums()
            self._merged = [a + b for a, b in zip(self._merged or [0.0] * len(sums), sums, strict=True)]
            self.n_samples += other.n_samples

    def sums(self) -> list[float]:
        """The sums over all samples, in float64; none if nothing was added."""
        own = [s.item() for s in self._on_device]
        return [a + b for a, b in zip(own, self._merged, strict=True)] if own and self._merged else own or self._merged

    def values(self) -> tuple[float, ...]:
        return tuple(s / (self.n_samples or math.nan) for s in self.sums())


class Survival:
    """Cox's partial likelihood and the concordance index, which need all samples of a set at once."""

    def __init__(self) -> None:
        self.n_samples = 0
        self._risks: list[Float64] = []
        self._targets: list[Float64] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._risks.append(outputs.squeeze(1).cpu().numpy().astype(np.float64))
        self._targets.append(targets.cpu().numpy().astype(np.float64))
        self.n_samples += outputs.shape[0]

    def merge(self, others: Sequence[Tally]) -> None:
        for other in others:
            assert isinstance(other, Survival)
            self._risks += other._risks
            self._targets += other._targets
            self.n_samples += other.n_samples

    def values(self) -> tuple[float, ...]:
        if not self.n_samples:
            return math.nan, math.nan
        risk_N, (time_N, event_N) = np.concatenate(self._risks), np.concatenate(self._targets).T
        return partial_likelihood(risk_N, time_N, event_N), concordance(risk_N, time_N, event_N)


def partial_likelihood(risk_N: Float64, time_N: Float64, event_N: Float64) -> float:
    """Cox's negative log partial likelihood of a set, divided by its samples: see `objectives.Cox`.

    >>> round(partial_likelihood(np.zeros(3), np.array([1.0, 2.0, 3.0]), np.ones(3)), 4)  # (log 3 + log 2 + log 1) / 3
    0.5973
    """
    order = np.argsort(-time_N, kind="stable")
    risk_N, time_N, event_N = risk_N[order], time_N[order], event_N[order]
    last_N = np.searchsorted(-time_N, -time_N, side="right") - 1  # the last whose time is as long, or longer
    log_sum_N = np.logaddexp.accumulate(risk_N)[last_N]
    return float((event_N * (log_sum_N - risk_N)).mean())


def concordance(risk_N: Float64, time_N: Float64, event_N: Float64) -> float:
    """The concordance index: of pairs with T_i < T_j and an event at i, the share in which i has the higher risk.

    Equal risks count one half; NaN where no pair can be compared, or where a risk is NaN.
    Reference: Harrell et al., "Evaluating the yield of medical tests", JAMA 247 (1982).

    >>> concordance(np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0]))
    0.8333333333333334
    """
    if np.isnan(risk_N).any():
        return math.nan
    order = np.argsort(time_N, kind="stable")
    n_pairs, score = _concordant(risk_N[order], time_N[order], event_N[order] > 0)
    return score / n_pairs if n_pairs else math.nan


def _concordant(risk_N: Float64, time_N: Float64, has_event_N: NDArray[np.bool_]) -> tuple[int, float]:
    """How many pairs can be compared, and how many of them are in order; samples by ascending time."""
    n = risk_N.size
    if n <= _PAIRS:
        is_pair = has_event_N[:, None] & (time_N[:, None] < time_N)
        right = (risk_N[:, None] > risk_N) + 0.5 * (risk_N[:, None] == risk_N)
        return int(is_pair.sum()), float((is_pair * right).sum())
    middle = int(np.searchsorted(time_N, time_N[n // 2]))
    if middle == 0:  # the first half has one time
        middle = int(np.searchsorted(time_N, time_N[0], side="right"))
    if middle == n:
        return 0, 0.0
    halves = [_concordant(risk_N[part], time_N[part], has_event_N[part]) for part in (slice(middle), slice(middle, n))]
    early, late = risk_N[:middle][has_event_N[:middle]], np.sort(risk_N[middle:])
    below, not_above = (np.searchsorted(late, early, side=side) for side in ("left", "right"))
    score = float(below.sum()) + 0.5 * float((not_above - below).sum())
    return halves[0][0] + halves[1][0] + early.size * late.size, halves[0][1] + halves[1][1] + score
