"""K-async and K-batch-async: the mean of K updates, whatever their staleness."""

from __future__ import annotations

from fedsim.aggregation.mean import MeanRule
from fedsim.aggregation.weighting import sample_weight
from fedsim.config import KAsyncRule
from fedsim.types import TaskReport


class KAsync(MeanRule):
    """w <- w + eta (1/K) sum(D_k) over the K updates that arrived first, or their mean by samples.

    Reference: Dutta et al., "Slow and stale gradients can win the race", AISTATS 2018, whose learners send one
    gradient g_k each; here D_k is what local training changed, -lr g_k for a single step. Whether the K finishers
    wait (K-async) or restart at once (K-batch-async) is the schedule's affair.
    Deviations: several local steps a task; the server learning rate eta; K is the number that counted; `weighting:
    samples` has n_k / sum(n) in place of 1/K.
    """

    name = "k-async"

    def __init__(self, config: KAsyncRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
        self._weighting = config.weighting

    def share(self, report: TaskReport) -> float:
        return sample_weight(self._weighting, report)
