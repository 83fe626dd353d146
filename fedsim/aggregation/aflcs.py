"""AFL-CS and its predecessor FedComp: each layer mixed by how well the update agrees with where the model went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.aggregation.accumulate import Diagnostics, ServerState
from fedsim.aggregation.rule import Arrival, BaseRule, Facts
from fedsim.aggregation.vectors import cosine
from fedsim.aggregation.weighting import is_too_stale
from fedsim.config import AflCsRule
from fedsim.types import Float32, Update


@dataclass(slots=True)
class AcceptedState(ServerState):
    """`accepted` counts the updates taken from each client, `sizes` are the samples of those seen."""

    accepted: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)


def compensation(lag: float) -> float:
    """What a client behind the others gains: its lag, growing to 1, and falling again as 1/lag; 0 for one ahead."""
    if lag >= 1.0:
        return 1.0 / lag
    return max(lag, 0.0)


def mixing(share: float, similarity: float, comp: float) -> float:
    """alpha = max(p, (1 + sgn(s) s^2) p) (1 + comp), not yet clamped."""
    signed = similarity * abs(similarity)
    return max(share, (1.0 + signed) * share) * (1.0 + comp)


def predecessor_mixing(base: float, similarity: float, ahead: float) -> float:
    """FedComp's alpha: alpha0 |s| (1 - cw) for s < 0, else alpha0 s (1 + cw); cw = c e^-c for c = t/N - u above 0."""
    weight = ahead * float(np.exp(-ahead)) if ahead > 0.0 else 0.0
    if similarity < 0.0:
        return base * -similarity * (1.0 - weight)
    return base * similarity * (1.0 + weight)


class AflCs(BaseRule):
    """Layer by layer: w_l <- (1 - alpha_l) w_l + alpha_l w_k,l at each arrival; layers are the model's tensors.

        lag_k = (t/N - u_k) / R ; comp_k = 1/lag_k if lag_k >= 1, lag_k if 0 <= lag_k < 1, else 0
        alpha_l = max(p_k, (1 + sgn(s_l) s_l^2) p_k) (1 + comp_k)

    u_k counts the updates accepted from client k before, R the planned ones (`planned_updates`), p_k = n_k / sum n.
    `directions`: s_l = cos(w_k - w_base, w_t - w_base); p_k over all registered clients; alpha clamped to [0, 1].
    `released`: s_l = cos(w_t, w_k); p_k over the clients seen so far, this one included (the first alpha is about 2);
    no clamp. `fedcomp`: the predecessor: alpha0 = 1/(N_seen + 1), N_seen with this client; s_l as for `directions`,
    but 1 where the model did not move; alpha = alpha0 |s| (1 - cw) if s < 0 else alpha0 s (1 + cw), cw = c e^-c for
    c = t/N - u_k > 0.
    Reference: Yan, Jiang, Chen, Gao, Liu, "AFL-CS", ICPADS 2023, and its released code; FedComp is the predecessor.
    Reconstructed: the paper speaks of the direction in which the model moved while the client was away, the released
    code compares the weights themselves; `directions` is the former by the paper's formula of alpha.
    Deviations: `max_staleness`. A cosine with a zero vector counts as 0.
    """

    name = "afl-cs"
    payload: Literal["delta", "model"] = "model"
    scalar_names: tuple[str, ...] = ("alpha_min", "alpha_max", "compensation")

    def __init__(self, config: AflCsRule, facts: Facts) -> None:
        self._config = config
        self._facts = facts
        self._n_samples = facts.count_samples()
        self.needs_base = config.mode != "released"

    def init(self, weights_P: Float32) -> AcceptedState:
        return AcceptedState(weights_P.astype(np.float64), np.zeros(weights_P.size))

    def accumulate(self, state: ServerState, update: Update, arrival: Arrival) -> tuple[ServerState, Diagnostics]:
        assert isinstance(state, AcceptedState)
        if is_too_stale(arrival.staleness, self._config.max_staleness):
            return state, Diagnostics(0.0, (0.0, 0.0, 0.0))
        if not state.n_accumulated:
            state.accumulator_P.fill(0.0)
        client, size = arrival.task.client, update.report.n_samples
        seen = state.accepted.get(client, 0)
        state.sizes[client] = size
        ahead = arrival.version / self._facts.n_clients - seen
        comp = compensation(ahead / self._config.planned_updates)
        share = self._share(state, size)
        alphas = self._mix(state, update.vector_P, arrival.base_P, lambda s: self._alpha(share, s, ahead, comp))
        state.accepted[client] = seen + 1
        state.n_accumulated += 1
        return state, Diagnostics(sum(alphas) / len(alphas), (min(alphas), max(alphas), comp))

    def _mix(
        self, state: AcceptedState, model_P: Float32, base_P: Float32 | None, alpha_of: Callable[[float], float]
    ) -> list[float]:
        """Adds alpha_l (w_k,l - w_l) to the accumulator for each layer; the alphas."""
        alphas = []
        for layer in self._facts.layers:
            now, theirs = state.weights_P[layer], model_P[layer]
            if self._config.mode == "released":
                similarity = cosine(now.astype(np.float32), theirs)
            else:
                assert base_P is not None
                similarity = self._agreement(now.astype(np.float32), theirs, base_P[layer])
            alphas.append(alpha_of(similarity))
            state.accumulator_P[layer] += alphas[-1] * (theirs - now)
        return alphas

    def _agreement(self, now: Float32, theirs: Float32, base: Float32) -> float:
        """The cosine between where the client went and where the server went since, in one layer."""
        client, server = np.subtract(theirs, base, dtype=np.float64), np.subtract(now, base, dtype=np.float64)
        if self._config.mode == "fedcomp" and not server.any():
            return 1.0
        return cosine(client, server)

    def _share(self, state: AcceptedState, size: int) -> float:
        """p_k, or alpha0; `sizes` has the client already."""
        if self._config.mode == "fedcomp":
            return 1.0 / (len(state.sizes) + 1)
        total = sum(state.sizes.values()) if self._config.mode == "released" else self._n_samples
        return size / total

    def _alpha(self, share: float, similarity: float, ahead: float, comp: float) -> float:
        if self._config.mode == "fedcomp":
            return predecessor_mixing(share, similarity, ahead)
        alpha = mixing(share, similarity, comp)
        return alpha if self._config.mode == "released" else max(0.0, min(1.0, alpha))

    def commit(self, state: ServerState) -> ServerState:
        if state.n_accumulated:
            state.weights_P += state.accumulator_P
            state.n_accumulated = 0
        return state
