"""Federated averaging."""

from __future__ import annotations

from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.weighting import sample_weight
from fedsim.config import FedAvgRule
from fedsim.types import TaskReport


class FedAvg(MeanRule):
    """w <- w + eta sum(p_k D_k) / sum(p_k), with p_k = n_k, or 1 if the weighting is uniform.

    Reference: McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017, algorithm 1, which averages local models: the same, for eta = 1 and one common base. Differences also
    make sense when bases differ, as under an asynchronous schedule, which the paper does not have.
    Deviations: the server learning rate eta (Reddi et al. 2021); the divisor is the sum over the updates that arrived.
    """

    name = "fedavg"

    def __init__(self, config: FedAvgRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._weighting = config.weighting

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._weighting, report)
