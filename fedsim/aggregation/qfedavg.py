"""Fair averaging: clients with a higher loss count for more."""

from __future__ import annotations

from fedsim.aggregation.accumulate import Diagnostics, Kernels, ServerState
from fedsim.aggregation.rule import ALONE, Arrival, BaseRule, Facts
from fedsim.aggregation.vectors import norm
from fedsim.config import QFedAvgRule
from fedsim.types import Update


class QFedAvg(BaseRule):
    """w <- w + sum(F_k^q L D_k) / sum(h_k), h_k = q F_k^(q-1) ||L D_k||^2 + L F_k^q, L = 1 / client learning rate.

    F_k is the loss of the version on all of the client's samples, so `record.losses` must be full. q = 0 is the
    uniform mean.
    Reference: Li, Sanjabi, Beirami and Smith, "Fair resource allocation in federated learning", ICLR 2020,
    algorithm 2 (q-FedAvg), where L (w - w_k) stands for the gradient. Deviation: clients are selected by the schedule,
    uniformly or by size, and not only in proportion to p_k. The norm is that of what is merged: the client's own
    figure, or where something else may arrive than it trained (`Facts.as_trained`), the server's.
    """

    name = "q-fedavg"
    scalar_names: tuple[str, ...] = ("step_bound",)

    def __init__(self, config: QFedAvgRule, facts: Facts = ALONE) -> None:
        self._q = config.q
        self._as_trained = facts.as_trained
        self._kernels = Kernels()

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        report, q, lipschitz = update.report, self._q, 1.0 / arrival.task.learning_rate
        loss = max(report.loss_before, 1e-10)  # 0 to a negative power
        weight = loss**q * lipschitz
        length = report.update_norm if self._as_trained else norm(update.vector_P)
        bound = q * loss ** (q - 1.0) * (lipschitz * length) ** 2 + weight
        self._kernels.add(state, update.vector_P, weight)
        state.weight_sum += bound
        state.n_accumulated += 1
        return state, Diagnostics(weight, (bound,))

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            self._kernels.merge(state, keep=1.0, scale=1.0 / state.weight_sum)
        return state
