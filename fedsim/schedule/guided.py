"""Selections that learn from what was applied: Pisces' utilities, TiFL's tiers.

Each looks at every idle client of the domain for each draw: for federations of up to some ten thousand clients. What
they keep are plain values; they are told of updates as `fedsim.schedule.learning.Learner` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim import states
from fedsim.config import PiscesSelection, TiflSelection
from fedsim.schedule.selection import Availability, Domain, Selection
from fedsim.seeding import Purpose, uniforms
from fedsim.snapshot import Snapshot
from fedsim.types import Feedback, Int64


class GuidedSelection(Selection):
    """What guided selections share: candidates, uniform numbers of a task, and the snapshot of what they `_kept`."""

    _kept: tuple[str, ...] = ()

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        raise NotImplementedError

    def __init__(self, seed: int, devices: Availability) -> None:
        super().__init__("uniform", seed, devices, None)

    def snapshot(self) -> Snapshot:
        """What was learned and drawn so far."""
        return states.of({name: getattr(self, f"_{name}") for name in self._kept})

    def restore(self, saved: Snapshot) -> None:
        """Takes over what another one of the same configuration had learned."""
        for name, value in states.restored(saved, {name: getattr(self, f"_{name}") for name in self._kept}).items():
            setattr(self, f"_{name}", value)

    def _candidates(self, domain: Domain, time_s: float) -> Int64:
        """Positions (C,) that can be chosen now, ascending."""
        positions = domain.idle()
        there: NDArray[np.bool_] = self._devices.available(domain.clients(positions), time_s)
        return positions[there]

    def _two_uniforms(self, task: int) -> tuple[float, float]:
        u, v = uniforms(self._seed, Purpose.GUIDED_SELECTION, 0, task, 2).tolist()
        return u, v


class PiscesChoice(GuidedSelection):
    """With probability max(.3, .9 x .98^t) a client never chosen, else the one of greatest utility; t counts versions.

    Utility: n_k x |loss_k| x (1 + mean of its last 5 tau)^-.5, loss_k what its last update reported before training.
    Reference: Jiang et al., "Pisces", SoCC 2022 (arXiv:2206.09264), equation 4 and algorithm 1.
    Deviations: the loss of the first batch (or of the shard, with `record.losses: full`) for the root mean square of
    the samples' losses; corrupted clients are not looked for. A client that was chosen, and whose first update is
    still to be applied, has the mean utility of those known. Ties go to the lowest number.
    """

    _kept = ("n_samples", "losses", "lags", "chosen", "version")

    def __init__(self, config: PiscesSelection, seed: int, devices: Availability) -> None:
        super().__init__(seed, devices)
        self._config = config
        self._n_samples: dict[int, int] = {}
        self._losses: dict[int, float] = {}
        self._lags: dict[int, list[float]] = {}
        self._chosen: dict[int, int] = {}
        self._version = 0

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        client = feedback.task.client
        self._n_samples[client] = feedback.report.n_samples
        self._losses[client] = abs(feedback.report.loss_before)
        lags = [*self._lags.get(client, []), float(feedback.staleness)]
        self._lags[client] = lags[-self._config.window :]
        self._version = feedback.task.base_version + feedback.staleness + 1

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        positions = self._candidates(domain, time_s)
        if not positions.size:
            return None
        clients = domain.clients(positions).tolist()
        fresh = [i for i, client in enumerate(clients) if client not in self._chosen]
        u, v = self._two_uniforms(task)
        explore = max(self._config.explore_min, self._config.explore * self._config.decay**self._version)
        if fresh and (u < explore or len(fresh) == len(clients)):
            index = fresh[int(v * len(fresh))]
        else:
            index = self._best(clients)
        self._chosen[clients[index]] = 1
        return int(positions[index])

    def _best(self, clients: Sequence[int]) -> int:
        """The index of the client of greatest utility among those chosen before."""
        known = [self._utility(client) for client in self._losses]
        mean = math.fsum(known) / len(known) if known else 0.0
        utilities = [
            -math.inf if c not in self._chosen else self._utility(c) if c in self._losses else mean for c in clients
        ]
        return int(np.argmax(utilities))

    def _utility(self, client: int) -> float:
        lag = math.fsum(self._lags[client]) / len(self._lags[client])
        return float(self._n_samples[client] * self._losses[client] * (1.0 + lag) ** -self._config.power)


class TiflChoice(GuidedSelection):
    """Each round from one tier, drawn by probabilities that follow the tiers' losses, with credits.

    Every `every_rounds` rounds, if the current tier's loss did not fall in the meantime, the tiers with credits left
    are ranked by loss and the one of rank i of n, the greatest loss first, gets (n - i + 1) / (n (n + 1) / 2). At
    first all are alike. A drawn tier pays a credit.
    Reference: Chai et al., "TiFL: a tier-based federated learning system", HPDC 2020 (arXiv:2001.09249), algorithm 2.
    Reconstructed: ranks of accuracies are in the paper (ChangeProbs); its divisor n (n - 1) / 2 gives the best tier no
    chance at all, which a federation of one tier could not stand; here it keeps the smallest.
    Deviations: a tier's loss, the mean of what its clients last reported before training, in place of the accuracy on
    test sets of its own: it costs no evaluation. With no credits left anywhere, all tiers get theirs anew.
    The paper's clients are always there. Where nobody of the drawn tier is, the round waits for the tier's next
    client: a tier that is seldom there keeps its chance, and is not crowded out by those that are there more often.
    Where nobody of it ever comes, the round goes to another tier, drawn in the same way, and the first pays nothing.
    """

    _kept = ("probabilities", "credits", "losses", "earlier", "round", "current", "first")

    def __init__(self, config: TiflSelection, seed: int, devices: Availability, tiers: Sequence[Int64]) -> None:
        super().__init__(seed, devices)
        self._config = config
        self._tiers = [np.sort(tier) for tier in tiers]
        self._tier_of = {client: tier for tier, clients in enumerate(self._tiers) for client in clients.tolist()}
        self._probabilities = [1.0 / len(tiers)] * len(tiers)
        self._credits = [math.inf if config.credits is None else float(config.credits)] * len(tiers)
        self._losses: dict[int, float] = {}
        self._earlier: list[float] = []  # the tiers' losses when they were last looked at
        self._round = 0
        self._current = 0
        self._first = -1  # the first task of the round whose tier was drawn last

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        self._losses[feedback.task.client] = feedback.report.loss_before

    def begin(self, first_task: int) -> None:
        """A round's opening is about to be filled, with tasks from this number on: draws its tier.

        An opening that nobody was there for comes again with the same number; its round has been drawn.
        """
        if first_task == self._first:
            return
        self._first = first_task
        if self._round % self._config.every_rounds == 0:
            losses = self._tier_losses()
            if self._earlier and not losses[self._current] < self._earlier[self._current]:
                self._rank(losses)
            self._earlier = losses
        self._round += 1
        self._turn_to_one_of([True] * len(self._tiers), self._two_uniforms(first_task)[0])

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        positions = self._candidates(domain, time_s)
        there = domain.clients(positions)
        if task == self._first and not np.isin(there, self._tiers[self._current]).any():
            self._leave_the_gone(domain, time_s)
        positions = positions[np.isin(there, self._tiers[self._current])]
        return int(positions[int(self._uniform(task) * positions.size)]) if positions.size else None

    def next_available_s(self, domain: Domain, time_s: float) -> float:
        """When the next idle client of the round's tier becomes available; infinite if never."""
        return self._next_s(domain, time_s)[self._current]

    def _next_s(self, domain: Domain, time_s: float) -> list[float]:
        """When the next idle client of each tier becomes available."""
        clients = domain.clients(domain.idle())
        next_s = self._devices.next_available_s(clients, time_s)
        return [float(next_s[np.isin(clients, tier)].min(initial=np.inf)) for tier in self._tiers]

    def _leave_the_gone(self, domain: Domain, time_s: float) -> None:
        """Draws the round's tier again where nobody of it ever comes, but somebody of another one does."""
        comes = [next_s < math.inf for next_s in self._next_s(domain, time_s)]
        if any(comes) and not comes[self._current]:
            self._credits[self._current] += 1.0
            self._turn_to_one_of(comes, self._two_uniforms(self._first)[1])

    def _turn_to_one_of(self, comes: Sequence[bool], u: float) -> None:
        """The round goes to a tier of those that somebody comes of, which pays a credit."""
        if not any(credit > 0.0 for credit, some in zip(self._credits, comes, strict=True) if some):
            assert self._config.credits is not None
            self._credits = [float(self._config.credits)] * len(self._tiers)
        self._current = self._draw(u, comes)
        self._credits[self._current] -= 1.0

    def _tier_losses(self) -> list[float]:
        """The mean loss of each tier's clients that reported; infinite for a tier that nothing is known of."""
        known: list[list[float]] = [[] for _ in self._tiers]
        for client in sorted(self._losses):
            known[self._tier_of[client]].append(self._losses[client])
        return [math.fsum(losses) / len(losses) if losses else math.inf for losses in known]

    def _rank(self, losses: list[float]) -> None:
        order = [t for t in sorted(range(len(losses)), key=lambda t: -losses[t]) if self._credits[t] > 0.0]
        n = len(order)
        self._probabilities = [0.0] * len(losses)
        for rank, tier in enumerate(order):
            self._probabilities[tier] = 2.0 * (n - rank) / (n * (n + 1))

    def _draw(self, u: float, comes: Sequence[bool]) -> int:
        """The tier where u falls, of those with credits left and clients to come, which share alike if none of them
        has a chance."""
        can = [credit > 0.0 and some for credit, some in zip(self._credits, comes, strict=True)]
        chances = [p if drawn else 0.0 for p, drawn in zip(self._probabilities, can, strict=True)]
        if not any(chances):
            chances = [float(drawn) for drawn in can]
        cumulative = np.cumsum(chances)
        return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
