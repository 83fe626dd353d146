"""K-async and K-batch-async: the mean of K updates, whatever their staleness."""

from __future__ import annotations

from fedsim.aggregation.mean import MeanRule
from fedsim.config import KAsyncRule


class KAsync(MeanRule):
    """w <- w + eta (1/K) sum(D_k) over the K updates that arrived first.

    Reference: Dutta et al., "Slow and stale gradients can win the race", AISTATS 2018, whose learners send one
    gradient g_k each; here D_k is what local training changed, -lr g_k for a single step. Whether the K finishers
    wait (K-async) or restart at once (K-batch-async) is the schedule's affair.
    Deviations: several local steps a task; the server learning rate eta; K is the number that counted.
    """

    name = "k-async"

    def __init__(self, config: KAsyncRule) -> None:
        super().__init__(config.server_learning_rate, config.max_staleness)
