"""An update that is applied while it comes in: a piece is used as soon as it is here, and the next one comes meanwhile.

For large models, with rules that go through an update once, from its beginning to its end. The state of such a rule
cannot be kept before the update is whole: nothing else is attended to until then. If the worker dies the update is
trained again elsewhere, to the same bits, and what is missing is taken from there. Shape: `P` parameters.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from fedsim.comm.pieces import Incoming
from fedsim.comm.transport import Transport
from fedsim.engine.items import AT_WORKER, Item
from fedsim.types import TaskReport, Update

if TYPE_CHECKING:
    from fedsim.engine.supply import Supply

_REST_S = 20e-6
_PATIENT = 500  # looks without news after which the usual rests, and the usual limit of silence, apply


class Begun(NamedTuple):
    """An update that has begun to come in: what its worker says of it, and what there is of its row."""

    item: Item
    report: TaskReport
    incoming: Incoming


def begun_of(item: Item, transport: Transport) -> Begun | None:
    """What has come in of a task's update, in pieces; None where nothing has."""
    incoming = transport.incoming(item.worker, item.task.task) if item.state in AT_WORKER else None
    if incoming is None:
        return None
    report = incoming.report or item.report  # of a fetched one it came earlier
    return None if report is None else Begun(item, report, incoming)


class Streaming:
    """Waits for the beginning of an update's row to be here."""

    def __init__(self, supply: Supply, begun: Begun) -> None:
        self._supply = supply
        self._begun = begun
        self._n_here = begun.incoming.n_here()

    def update(self) -> Update:
        """The update, whose vector may be read as far as its `ready` has returned for."""
        return Update(self._begun.report, self._begun.incoming.row_P, self.ready)

    def ready(self, n: int) -> None:
        """Returns when the first `n` values are here.

        Raises:
            LostError: no worker is left that could train it.
            SilentError: nothing comes any more.
        """
        n_looks = 0
        while self._n_here < n:
            self._supply.listen(wait=n_looks > _PATIENT)
            if self._begun.item.state not in AT_WORKER:
                self._take_over()
                return
            n_here = self._begun.incoming.n_here()
            n_looks = 0 if n_here > self._n_here else n_looks + 1
            self._n_here = n_here
            if n_looks:
                time.sleep(_REST_S)

    def _take_over(self) -> None:
        """It is here whole, or was lost: then it is trained again, and what is missing copied."""
        row_P, n = self._begun.incoming.row_P, self._n_here
        self._supply.bring(self._begun.item.task.task, self._supply.check_living)
        again_P = self._begun.item.row_P
        assert again_P is not None
        if again_P is not row_P:
            row_P[n:] = again_P[n:]
        self._n_here = row_P.size
