"""Buffered asynchronous aggregation."""

from __future__ import annotations

from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.weighting import sample_weight, staleness_function
from fedsim.config import FedBuffRule
from fedsim.types import TaskReport


class FedBuff(MeanRule):
    """w <- w + eta (1/K) sum(s(tau_k) D_k) over the K updates in the buffer.

    Reference: Nguyen et al., "Federated learning with buffered asynchronous aggregation", AISTATS 2022,
    algorithm 1; s(tau) = 1/sqrt(1 + tau) is the paper's choice. As there, K divides, not the sum of the
    s(tau): a buffer of stale updates makes a smaller step.
    Deviations: K is the number of updates that counted (a window or a tier has no fixed one); with weighting by samples
    the share of an update is n_k / sum(n) in place of 1/K; no secure aggregation, no privacy.
    """

    name = "fedbuff"

    def __init__(self, config: FedBuffRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._weighting = config.weighting
        self._staleness = staleness_function(config.staleness)

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._weighting, report)

    def discount(self, staleness: int) -> float:
        return self._staleness(staleness)
