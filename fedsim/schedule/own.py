"""A selection from a file of the user's own."""

from __future__ import annotations

import operator
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fedsim.schedule.guided import GuidedSelection
from fedsim.schedule.selection import Availability, Domain
from fedsim.types import Feedback

if TYPE_CHECKING:
    from fedsim.userfiles import UserFunction


class Seen(NamedTuple):
    """What is known of a client's last update that was applied, and how many there were."""

    n_updates: int
    n_samples: int
    loss_before: float
    loss_after: float
    staleness: int
    duration_s: float


class Moment(NamedTuple):
    """The task that is about to start: its number, the run's time, and a uniform number in [0, 1) of its own."""

    task: int
    time_s: float
    u: float


class OwnChoice(GuidedSelection):
    """The client that the user's function returns, of those idle and available; it is told of what was applied.

    f(clients, seen, now): clients, int64 (C,), ascending; seen, `Seen` by client; now, a `Moment`. It looks at every
    idle client for each draw: for federations of up to some ten thousand clients.
    """

    _kept = ("seen",)

    def __init__(self, function: UserFunction, seed: int, devices: Availability) -> None:
        super().__init__(seed, devices)
        self._function = function
        self._seen: dict[int, list[float]] = {}

    def learned(self, feedback: Feedback) -> None:
        """See `fedsim.schedule.learning.Learner`."""
        client, report = feedback.task.client, feedback.report
        n = self._seen[client][0] if client in self._seen else 0.0
        duration_s = feedback.arrival_s - feedback.task.dispatch_s
        self._seen[client] = [
            n + 1.0,
            float(report.n_samples),
            report.loss_before,
            report.loss_after,
            float(feedback.staleness),
            duration_s,
        ]

    def choose(self, domain: Domain, task: int, time_s: float) -> int | None:
        positions = self._candidates(domain, time_s)
        if not positions.size:
            return None
        clients = domain.clients(positions)
        seen = MappingProxyType({client: _seen(values) for client, values in self._seen.items()})
        chosen = self._function(clients.copy(), seen, Moment(task, time_s, self._two_uniforms(task)[0]))
        try:
            client = operator.index(chosen)
        except TypeError:
            client = -1
        where = clients.searchsorted(client)
        if where == clients.size or clients[where] != client:
            raise self._function.refuse(f"a selection returns one of the clients that it is given; got {chosen!r:.60}")
        return int(positions[where])


def _seen(values: list[float]) -> Seen:
    n, n_samples, before, after, staleness, duration_s = values
    return Seen(int(n), int(n_samples), before, after, int(staleness), duration_s)
