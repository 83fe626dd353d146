"""Selections that weigh what a client's data still have to teach: Oort, power-of-choice.

As the others that learn (`fedsim.schedule.guided`) they look at every idle client for each draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsim.config import OortSelection, PowerOfChoiceSelection
from fedsim.schedule.guided import GuidedSelection
from fedsim.schedule.selection import Availability, Domain
from fedsim.seeding import Purpose, uniforms
from fedsim.types import Feedback, Float64, Int64


class PowerOfChoice(GuidedSelection):
    """Of d candidates, drawn by their shares of the samples without replacement, those of the greatest loss.

    A client's loss is what its last update reported before training; one that never reported comes first.
    Reference: Cho, Wang and Joshi, "Towards understanding biased client selection in federated learning", AISTATS 2022
    (arXiv:2010.01243), section 4; rpow-d, the variant in which nobody is asked for a loss.
    Deviations: the first batch's loss (or the shard's, with `record.losses: full`) for the mean over the local steps.
    An opening, a round of m tasks or a single slot, has d candidates, and gets the best of them one after the other.
    """

    _kept = ("losses",)

    def __init__(self, config: PowerOfChoiceSelection, seed: int, devices: Availability, sizes: Int64) -> None:
        super().__init__(seed, devices)
        self._n_candidates = config.candidates
        self._samples = sizes
        self._losses: dict[int, float] = {}
        self._first = 0

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        self._losses[feedback.task.client] = feedback.report.loss_before

    def begin(self, first_task: int) -> None:
        """An opening is about to be filled, with tasks from this number on: it has candidates of its own."""
        self._first = first_task

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        positions = self._candidates(domain, time_s)
        clients = domain.clients(positions)
        positions, clients = positions[self._samples[clients] > 0], clients[self._samples[clients] > 0]
        if not positions.size:
            return None
        order = np.argsort(self._race(clients), kind="stable")
        asked = order[: max(1, self._n_candidates - (task - self._first))]  # those chosen already were among them
        losses = [self._losses.get(client, math.inf) for client in clients[asked].tolist()]
        return int(positions[asked[int(np.argmax(losses))]])

    def _race(self, clients: Int64) -> Float64:
        """Exponential times of rate n_k: the first d to arrive are a draw by shares without replacement."""
        u = uniforms(self._seed, Purpose.CANDIDATES, clients, self._first, 1)[:, 0]
        times: Float64 = -np.log1p(-u) / self._samples[clients]
        return times


class OortChoice(GuidedSelection):
    """Clients of much loss and enough speed, drawn by utility; a fading share of slots explores.

        Util(i) = (U(i) + sqrt(.1 ln R / L(i))) (T / t_i)^alpha where t_i > T, U(i) = n_i |loss_i| cut at a percentile

    R counts versions, L(i) is the one that i's last update went into, t_i the time that it took. T is the `preferred`
    quantile of the known times; where the last W versions' updates had less U than the W before, it is raised (pacer).
    Of an opening's slots a share eps (.9 x .98^R, at least .2) goes to clients never chosen, alike; the others to
    clients of at least c (.95) times the utility of the last one that would be in by rank, drawn by utility.
    Reference: Lai, Zhu, Madhyastha and Chowdhury, "Oort: efficient federated learning via guided participant
    selection", OSDI 2021, algorithm 1 and equation 1.
    Deviations: the loss of the first batch (or of the shard, with `record.losses: full`) for the root mean square of
    the samples' losses; T is a quantile, as in the released code, for seconds; the pacer looks every W versions, as
    there; clients never chosen are not drawn by speed, which nobody knows; under an asynchronous schedule an opening is
    one slot, which explores with probability eps. A client whose first update is still to be applied has the mean
    utility of those known. `most_tasks` is the paper's removal of clients that were picked too often.
    """

    _kept = ("utilities", "durations", "last_version", "chosen", "sums", "now", "quantile")

    def __init__(self, config: OortSelection, seed: int, devices: Availability, n_slots: int) -> None:
        super().__init__(seed, devices)
        self._config = config
        self._n_slots = n_slots  # of an opening
        self._utilities: dict[int, float] = {}
        self._durations: dict[int, float] = {}
        self._last_version: dict[int, int] = {}
        self._chosen: dict[int, int] = {}
        self._sums: list[float] = [0.0]  # U of the updates of the last versions, the newest last
        self._now = 0
        self._quantile = config.preferred
        self._first = 0
        self._cut: float | None = None

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        client, met = feedback.task.client, feedback.task.base_version + feedback.staleness
        for _ in range(met - self._now):
            self._pace()
        self._now = max(self._now, met)
        self._utilities[client] = feedback.report.n_samples * abs(feedback.report.loss_before)
        self._durations[client] = feedback.arrival_s - feedback.task.dispatch_s
        self._last_version[client] = met + 1
        self._sums[-1] += self._utilities[client]

    def begin(self, first_task: int) -> None:
        """An opening is about to be filled, with tasks from this number on."""
        self._first, self._cut = first_task, None

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        positions = self._candidates(domain, time_s)
        clients = domain.clients(positions).tolist()
        most = math.inf if self._config.most_tasks is None else self._config.most_tasks
        allowed = [i for i, client in enumerate(clients) if self._chosen.get(client, 0) < most]
        allowed = allowed or list(range(len(clients)))  # all were picked too often: alike again
        if not allowed:
            return None
        fresh = [i for i in allowed if clients[i] not in self._chosen]
        v = self._two_uniforms(task)[1]
        if fresh and (self._explores(task) or len(fresh) == len(allowed)):
            index = fresh[int(v * len(fresh))]
        else:
            known = [i for i in allowed if clients[i] in self._chosen]
            index = known[self._by_utility([clients[i] for i in known], v)]
        self._chosen[clients[index]] = self._chosen.get(clients[index], 0) + 1
        return int(positions[index])

    def _share(self) -> float:
        return max(self._config.explore_min, self._config.explore * self._config.decay**self._now)

    def _explores(self, task: int) -> bool:
        """Whether a slot explores: of an opening's slots the share eps, one more or less by a draw of the opening's."""
        share, slot, start = self._share(), task - self._first, self._two_uniforms(self._first)[0]
        return math.floor((slot + 1) * share + start) > math.floor(slot * share + start)

    def _by_utility(self, clients: Sequence[int], u: float) -> int:
        """The index of a client drawn by utility among those above the cut-off, which is the same for an opening."""
        utilities = self._all_utilities(clients)
        if self._cut is None:
            n = max(1, round((1.0 - self._share()) * self._n_slots))
            self._cut = self._config.cutoff * float(np.sort(utilities)[::-1][min(n, utilities.size) - 1])
        admitted = np.where(utilities >= self._cut, utilities, 0.0)
        if not admitted.any():  # the best are taken, or nothing has any utility
            admitted = (utilities == utilities.max()).astype(np.float64)
        cumulative = np.cumsum(admitted)
        return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(clients) - 1)

    def _all_utilities(self, clients: Sequence[int]) -> Float64:
        """Util of each of the clients."""
        if not self._utilities:
            return np.ones(len(clients))
        cap = _quantile(list(self._utilities.values()), self._config.clip)
        preferred_s = _quantile(list(self._durations.values()), self._quantile)
        known = {client: self._utility(client, cap, preferred_s) for client in self._utilities}
        mean = math.fsum(known.values()) / len(known)
        return np.array([known.get(client, mean) for client in clients])

    def _utility(self, client: int, cap: float, preferred_s: float) -> float:
        uncertain = math.sqrt(0.1 * math.log(self._now + 1) / self._last_version[client])
        utility, took_s = min(self._utilities[client], cap) + uncertain, self._durations[client]
        return utility * (preferred_s / took_s) ** self._config.alpha if took_s > preferred_s else utility

    def _pace(self) -> None:
        """A version ended: raises T where the updates of the last W versions had less to teach than the W before."""
        W = self._config.window
        if len(self._sums) == 2 * W:
            if math.fsum(self._sums[:W]) > math.fsum(self._sums[W:]):
                self._quantile = min(1.0, self._quantile + self._config.pacer_step)
            del self._sums[:W]
        self._sums.append(0.0)


def _quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]
