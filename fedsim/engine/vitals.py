"""The `workers` table: what each rank has done so far, a row an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.comm.transport import Counters, Transport
from fedsim.engine.evaluations import Recorder
from fedsim.engine.supply import Supply
from fedsim.engine.worker import process_usage

if TYPE_CHECKING:
    from fedsim.engine.roles import Pulse


class Vitals:
    """A watcher that writes a row for every rank once in `interval_s`; rank zero counts as worker 0."""

    def __init__(self, transport: Transport, supply: Supply, recorder: Recorder, interval_s: float) -> None:
        self._transport = transport
        self._supply = supply
        self._recorder = recorder
        self._interval_s = interval_s
        self._next_s = interval_s

    def __call__(self, pulse: Pulse) -> None:
        if pulse.wall_s >= self._next_s:
            self._next_s = pulse.wall_s + self._interval_s
            self.write(pulse.wall_s)

    def write(self, now_s: float) -> None:
        """Appends the rows of this moment."""
        ranks = {self._transport.rank(worker): worker for worker in range(self._transport.n_workers)}
        if 0 not in ranks:
            self._append(now_s, 0, self._own(now_s))
        for rank, worker in ranks.items():
            self._append(now_s, rank, self._transport.counters(worker))

    def _own(self, now_s: float) -> Counters:
        waiting_s = self._supply.waiting_s
        cpu_s, rss_bytes = process_usage()
        return Counters(busy_s=now_s - waiting_s, waiting_s=waiting_s, cpu_s=cpu_s, rss_bytes=rss_bytes)

    def _append(self, now_s: float, rank: int, counters: Counters) -> None:
        values = [getattr(counters, name) for name in Counters.__slots__]
        n_tasks, n_groups, *times, sent, received, cpu_s, rss = values
        row = (int(n_tasks), int(n_groups), *times, int(sent), int(received), cpu_s, int(rss))
        self._recorder.append("workers", (now_s, rank, *row))
