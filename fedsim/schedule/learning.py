"""What the schedule learns of consumed updates, and who decides by it: selections, policies and paces.

A learner is told of each update when it is consumed, in that order, and decides at dispatch alone. So every decision
is a function of what was applied by then, on any number of ranks. A replay decides nothing, and tells nobody.
A checkpoint holds what learners and paces keep: their attributes are plain values (`fedsim.states`), or they offer
`snapshot()` and `restore(snapshot)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fedsim.types import Feedback


class Learner(Protocol):
    """Whoever wants to know what was applied."""

    def learned(self, feedback: Feedback) -> None:
        """An update was consumed; the next dispatch comes later."""


class Pace(Protocol):
    """How many local steps a task gets, where that is no matter of the configuration alone."""

    def n_steps(self, client: int, planned: int, now_s: float) -> int:
        """Steps, above 0, of the client's task that starts now; `planned` is what the configuration gives."""


@dataclass
class ToldPace:
    """The steps that the rule last asked for, for each client that it asked for (`Feedback.next_steps`)."""

    steps_of: dict[int, int] = field(default_factory=dict)

    def learned(self, feedback: Feedback) -> None:
        if feedback.next_steps > 0:
            self.steps_of[feedback.task.client] = feedback.next_steps

    def n_steps(self, client: int, planned: int, now_s: float) -> int:
        return self.steps_of.get(client, planned)
