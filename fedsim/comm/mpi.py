"""The transport over MPI: rank zero's end; a worker's is `fedsim.comm.working`.

Every protocol has a communicator of its own. Rank zero keeps one receive posted a worker for the fixed-size headers, so
that a fault belongs to one worker; receives of rows are posted when their header is in, which it is only if there is
room for them (`fedsim.engine.supply` grants it). Nobody blocks inside MPI: both ends test and sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from fedsim.comm import wire
from fedsim.comm.channels import LONGEST_SLEEP_S, LONGEST_WAIT_S, Channels, Outbox, bundles, isend
from fedsim.comm.commons import PRIVATE, Commons, Versions
from fedsim.comm.losses import Abandoned, is_death
from fedsim.comm.nodes import Ledger
from fedsim.comm.pieces import ALONE_BYTES, Incoming, Receiving, parts
from fedsim.comm.transport import (
    Backoff,
    Collected,
    Command,
    Counters,
    Delivered,
    Evaluated,
    Lengths,
    Lost,
    Message,
    Summed,
    Trained,
    empty_rows,
)
from fedsim.errors import StalledError
from fedsim.recycled import Recycled
from fedsim.tables import ReportTable
from fedsim.types import Float32, Row, TaskReport

_MOST_QUIET = 4  # doublings of the longest sleep to the longest wait
_LOOKS = 2  # short waits after a ring: a header above MPI's eager limit may need another exchange to be here


class _Pending(NamedTuple):
    """Rows on their way: complete when every piece is; `finish` turns the buffer into a message.

    Where they are updates, `tasks` says whose, and `reports` what was said of them, if that came with them.
    """

    worker: int
    receiving: Receiving
    buffer: Any
    finish: Callable[[Any], Message]
    tasks: Sequence[int] = ()
    reports: Sequence[TaskReport] = ()

    def incoming(self, task: int) -> Incoming:
        """The update of one of its tasks."""
        index, size = self.tasks.index(task), self.buffer[0].size
        report = self.reports[index] if self.reports else None
        return Incoming(report, self.buffer[index], lambda: min(max(self.receiving.n_here - index * size, 0), size))


class MpiTransport:
    """Rank zero's end: workers are ranks 1 to size-1, indices one less."""

    def __init__(
        self,
        channels: Channels,
        lengths: Lengths,
        metric_names: Sequence[str],
        ledger: Ledger | None = None,
        commons: Commons | None = None,
    ) -> None:
        self._channels = channels
        self._ledger = ledger or Ledger([None] * (channels.commands.size - 1))
        self._commons = commons
        self._orphans: dict[int, list[tuple[int, int]]] = {}
        self.n_workers = channels.commands.size - 1
        self._lengths = lengths
        self._metric_names = metric_names
        self._headers = [np.empty(wire.REPLY_BYTES, np.uint8) for _ in range(self.n_workers)]
        self._receives: list[MPI.Request | None] = [self._post_header(w) for w in range(self.n_workers)]
        self._pending: list[_Pending] = []
        self._recycled = Recycled()  # large updates
        self._counters = [Counters() for _ in range(self.n_workers)]
        self._outboxes = [Outbox() for _ in range(self.n_workers)]  # one each: a slow worker keeps its own memory only
        self._dead: set[int] = set()
        self._abandoned = Abandoned()
        self._n_looks = self._n_quiet = 0  # short waits to come, and waits since we heard anything
        self._all_ring = self._do_all_ring()

    def rank(self, worker: int) -> int:
        return worker + 1

    def send(self, worker: int, command: Command, versions: Sequence[Row], states_nS: Float32 | None = None) -> None:
        if worker in self._dead:
            return
        if self._commons is not None and self._commons.has_versions(worker):
            command, versions = self._in_common(self._commons.versions, worker, command, versions)
        elif self._ledger.shares(worker):
            command, versions = self._placed(worker, command, versions)
        try:
            self._send(worker, wire.encode_command(command), versions, states_nS)
        except MPI.Exception as error:  # the next poll finds the worker dead, and says so
            if not is_death(error):
                raise

    def _placed(self, worker: int, command: Command, versions: Sequence[Row]) -> tuple[Command, Sequence[Row]]:
        """The command with the places of the versions that are coming, and those of them that travel to this worker."""
        self._ledger.forget(worker, command.forget)
        places = [self._ledger.place(worker, version) for version in command.coming]
        travelling = [vector for vector, place in zip(versions, places, strict=True) if place % 2]  # as is PRIVATE
        return command._replace(places=places), travelling

    @staticmethod
    def _in_common(
        common: Versions, worker: int, command: Command, versions: Sequence[Row]
    ) -> tuple[Command, Sequence[Row]]:
        """The same, where what rank zero makes lies in memory that this worker maps."""
        common.forget(worker, command.forget)
        if not versions:
            return command, versions
        slots = [common.place(worker, *both) for both in zip(command.coming, versions, strict=True)]
        travelling = [vector for vector, slot in zip(versions, slots, strict=True) if slot == PRIVATE]
        return command._replace(places=slots), travelling

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return self._orphans.pop(worker, ())

    def _send(self, worker: int, data: wire.Bytes, versions: Sequence[Row], states_nS: Float32 | None) -> None:
        rank, outbox = worker + 1, self._outboxes[worker]
        outbox.put([self._channels.commands.Isend(data, dest=rank)], data)
        start = 0
        for n in bundles(len(versions), self._lengths.version):
            flat = versions[start] if n == 1 else np.concatenate(versions[start : start + n])
            outbox.put(isend(self._channels.versions, flat, rank, self._channels.piece), flat)
            start += n
        if states_nS is not None:
            outbox.put(isend(self._channels.versions, states_nS.reshape(-1), rank, self._channels.piece), states_nS)
        self._channels.bell.ring(rank)
        outbox.advance()  # what is short has left by now

    @property
    def rung_s(self) -> float:
        if self._pending or not self._all_ring:
            return 0.0
        return LONGEST_WAIT_S if self.is_quiet else min(LONGEST_SLEEP_S * 2.0**self._n_quiet, LONGEST_WAIT_S)

    @property
    def is_quiet(self) -> bool:
        return self._all_ring and not self._pending and not self._n_looks and self._all_sent()

    def wait(self, seconds: float) -> None:
        is_rung = self._channels.bell.wait(seconds)
        self._n_looks = _LOOKS if is_rung else max(self._n_looks - 1, 0)
        self._n_quiet = 0 if is_rung else min(self._n_quiet + 1, _MOST_QUIET)

    def poll(self) -> Sequence[Message]:
        messages: list[Message] = []
        for worker, request in enumerate(self._receives):
            try:
                self._outboxes[worker].advance()
                while request is not None and request.Test():
                    request = self._open(worker, messages)
            except MPI.Exception as error:
                messages.append(self._bury(worker, error))
        if self._pending:
            messages += self._completed()
        if messages:
            self._n_looks = self._n_quiet = 0
        return messages

    def counters(self, worker: int) -> Counters:
        return self._counters[worker]

    def incoming(self, worker: int, task: int) -> Incoming | None:
        for entry in self._pending:
            if entry.worker == worker and task in entry.tasks and entry.receiving.is_in_pieces:
                return entry.incoming(task)
        return None

    def close(self, timeout_s: float | None = None, shows_stack: bool = False, comes_again: bool = False) -> None:
        for worker in range(self.n_workers):
            self.send(worker, Command(stop=True, shows_stack=shows_stack, comes_again=comes_again), ())
        backoff, start_s = Backoff(), time.monotonic()
        while any(request is not None for request in self._receives) or self._pending or not self._all_sent():
            if not self.poll():
                backoff.sleep()
            if timeout_s is not None and time.monotonic() - start_s > timeout_s:
                left = [str(w + 1) for w, request in enumerate(self._receives) if request is not None]
                raise StalledError(f"stalled: ranks {', '.join(left)} did not stop within {timeout_s:.0f} s")

    def _expect(self, worker: int, header: MPI.Request | None) -> None:
        """A worker's next header comes with this request; None: there is none to come."""
        self._receives[worker] = header
        if header is None:
            self._all_ring = self._do_all_ring()

    def _do_all_ring(self) -> bool:
        """Whether every worker that may still send something rings when it has."""
        return self._channels.bell.reaches(w + 1 for w, request in enumerate(self._receives) if request is not None)

    def _all_sent(self) -> bool:
        return not any(self._outboxes)

    def _bury(self, worker: int, error: MPI.Exception) -> Lost:
        """What is said of a worker that died, once nothing is expected from it or sent to it any more."""
        if not is_death(error):
            raise error
        self._dead.add(worker)
        self._orphans[worker] = self._ledger.lose(worker)
        if self._commons is not None:
            self._commons.versions.lose(worker)
        self._expect(worker, None)
        self._outboxes[worker].abandon(self._abandoned)
        for entry in self._pending:
            if entry.worker == worker:
                self._abandoned.take(entry.receiving.requests, entry.buffer)
        self._pending = [entry for entry in self._pending if entry.worker != worker]
        return Lost(worker, f"rank {worker + 1} died ({error.Get_error_string()})")

    def _post_header(self, worker: int) -> MPI.Request:
        return self._channels.replies.Irecv(self._headers[worker], source=worker + 1)

    def _open(self, worker: int, messages: list[Message]) -> MPI.Request | None:
        """Handles a header that is in, and returns the receive posted for the next one (None after the last)."""
        kind, n, version, counters, body = wire.decode_header(self._headers[worker])
        self._counters[worker] = counters
        request = None if kind == wire.STOPPED else self._post_header(worker)
        self._expect(worker, request)
        if kind == wire.TRAINED:
            self._await_trained(worker, body, messages)
        elif kind == wire.DELIVERED:
            tasks = body.view("<i8").tolist()
            self._await_updates(worker, tasks, (), lambda rows: Delivered(worker, tasks, rows))
        elif kind == wire.COLLECTED:
            clients, is_last = body.view("<i8").tolist(), bool(version)
            states = empty_rows(n, self._lengths.state)
            self._await_rows(worker, states, lambda rows: Collected(worker, clients, rows, is_last))
        elif kind == wire.SUMMED:
            self._await_sum(worker)
        elif kind == wire.EVALUATED:
            self._await_evaluation(worker, n, version)
        elif kind == wire.FAILED:
            messages.append(wire.decode_failed(worker, body))
        return request

    def _await_trained(self, worker: int, body: wire.Bytes, messages: list[Message]) -> None:
        reports, sent, places = wire.decode_trained(worker + 1, body)
        if places:
            assert self._commons is not None
            rows = self._commons.rows[worker].received(places)
            messages.append(Trained(worker, reports, sent, rows))
        elif any(sent):
            coming = ReportTable(reports.rows[sent], reports.rank)
            tasks = coming.rows["task"].tolist()
            self._await_updates(worker, tasks, coming, lambda rows: Trained(worker, reports, sent, rows))
        else:
            messages.append(Trained(worker, reports, sent, empty_rows(0, self._lengths.update)))

    def _await_updates(
        self, worker: int, tasks: Sequence[int], reports: Sequence[TaskReport], finish: Callable[[Any], Message]
    ) -> None:
        size, kind = self._lengths.update, np.dtype(self._lengths.update_type)
        rows: Any
        if size * kind.itemsize < ALONE_BYTES:
            rows = empty_rows(len(tasks), size, kind)
        else:
            rows = [self._recycled.empty(size, kind) for _ in tasks]
        self._pending.append(_Pending(worker, self._receiving(worker, parts(rows)), rows, finish, tasks, reports))

    def _await_rows(self, worker: int, rows: Any, finish: Callable[[Any], Message]) -> None:
        self._pending.append(_Pending(worker, self._receiving(worker, [rows.reshape(-1)]), rows, finish))

    def _receiving(self, worker: int, flats: Sequence[Any]) -> Receiving:
        receive = partial(self._channels.rows.Irecv, source=worker + 1)
        return Receiving(flats, receive, self._channels.piece)

    def _await_sum(self, worker: int) -> None:
        total_P = np.empty(self._lengths.update, dtype=np.int64)
        self._await_rows(worker, total_P, lambda total_P: Summed(worker, total_P))

    def _await_evaluation(self, worker: int, n: int, version: int) -> None:
        table = np.empty((n, 4 + len(self._metric_names)), dtype=np.float64)

        def finish(table: Any) -> Message:
            return Evaluated(worker, version, wire.evaluation_rows(table, self._metric_names))

        self._await_rows(worker, table, finish)

    def _completed(self) -> list[Message]:
        messages: list[Message] = []
        still: list[_Pending] = []
        dying: list[tuple[_Pending, MPI.Exception]] = []
        posting: set[int] = set()  # workers of whose rows some have no receive yet: no later ones may get theirs
        for entry in self._pending:
            try:
                if entry.worker in posting or not entry.receiving.advance():
                    still.append(entry)
                    if not entry.receiving.is_posted:
                        posting.add(entry.worker)
                else:
                    messages.append(entry.finish(entry.buffer))
            except MPI.Exception as failure:
                dying.append((entry, failure))
        self._pending = still
        for entry, error in dying:
            self._abandoned.take(entry.receiving.requests, entry.buffer)
            if entry.worker not in self._dead:
                messages.append(self._bury(entry.worker, error))
        return messages
