"""The transport over MPI: rank zero's end and a worker's end.

Every protocol has a communicator of its own. Rank zero keeps one receive posted a worker for the fixed-size headers, so
that a fault belongs to one worker; receives of rows are posted when their header is in, which it is only if there is
room for them (`fedsim.engine.supply` grants it). Nobody blocks inside MPI: both ends test and sleep.
Buffers belong to MPI until their request completes, so every request is kept together with what it sends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from fedsim.comm import wire
from fedsim.comm.bell import Bell
from fedsim.comm.losses import Abandoned, Orphaned, is_death
from fedsim.comm.nodes import PRIVATE, Ledger, Shelf, Shown
from fedsim.comm.openmpi import stop_yielding
from fedsim.comm.pieces import ALONE_BYTES, PIECE, Incoming, Receiving, parts, spans
from fedsim.comm.sleeping import wake_in_time
from fedsim.comm.tables import ReportTable
from fedsim.comm.transport import (
    NO_VERSION,
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
    Watched,
    WorkerCore,
    empty_rows,
)
from fedsim.errors import FedsimError, LostError, StalledError
from fedsim.recycled import Recycled
from fedsim.types import Float32, Row, TaskReport

_LONGEST_SLEEP_S = 5e-4  # of a worker without work, whose core nobody else needs; while something is being sent
_LONGEST_WAIT_S = 5e-3  # of one that is rung
_MOST_QUIET = 4  # doublings of the first of these to the second
_LOOKS = 2  # short waits after a ring: a header above MPI's eager limit may need another exchange to be here
_BUNDLE = 2**18  # elements: versions below `ALONE_BYTES` travel together, as many as fit into 1 MiB


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


class _Coming(NamedTuple):
    """Rows on their way to a worker: versions by number, or states by client. `slot`: where a version is received that
    others of the node are shown; `is_others`: another worker receives it."""

    numbers: Sequence[int]
    requests: Sequence[MPI.Request | Shown]
    rows: Row
    is_state: bool
    slot: int = PRIVATE
    is_others: bool = False


class Channels(NamedTuple):
    """One communicator a protocol, all with the server as rank zero; `piece` elements travel in a message at most.

    Who has sent something rings the other's `bell`.
    """

    commands: MPI.Intracomm
    versions: MPI.Intracomm
    replies: MPI.Intracomm
    rows: MPI.Intracomm
    piece: int = PIECE
    bell: Bell = Bell()

    @classmethod
    def open(cls, comm: MPI.Intracomm, piece: int = PIECE) -> Channels:
        """Duplicates of `comm`; collective, and the last thing that waits inside MPI."""
        channels = cls(comm.Dup(), comm.Dup(), comm.Dup(), comm.Dup(), piece, Bell.open(comm))
        stop_yielding()
        wake_in_time()
        return channels


def bundles(n_versions: int, n_parameters: int) -> list[int]:
    """How many versions travel in each message: both ends count alike."""
    most = 1 if 4 * n_parameters >= ALONE_BYTES else _BUNDLE // n_parameters  # copies of large ones cost more
    full, rest = divmod(n_versions, most)
    return [most] * full + [rest] * (rest > 0)


def _isend(comm: MPI.Intracomm, flat: Any, rank: int, piece: int) -> list[MPI.Request]:
    return [comm.Isend(flat[start:stop], dest=rank) for start, stop in spans(flat.size, piece)]


def _irecv(comm: MPI.Intracomm, flat: Any, rank: int, piece: int) -> list[MPI.Request]:
    return [comm.Irecv(flat[start:stop], source=rank) for start, stop in spans(flat.size, piece)]


def _hurried(command: Command, evaluates: bool) -> Command:
    """What is left of a command once the run ends: what changes in what clients keep, and what is asked for."""
    return command._replace(tasks=(), send=(), evaluate=command.evaluate if evaluates else NO_VERSION)


class SentHome(BaseException):
    """The server said stop, or that the run ends, in the middle of a training."""


class Outbox:
    """Sends under way, oldest first, each with the memory it needs until it is done."""

    def __init__(self) -> None:
        self._sends: deque[tuple[MPI.Request, Any]] = deque()

    def put(self, requests: Sequence[MPI.Request], memory: Any) -> None:
        self._sends.extend((request, memory) for request in requests)

    def __len__(self) -> int:
        return len(self._sends)

    def advance(self) -> bool:
        """Forgets the sends that are done; true when none is left."""
        sends = self._sends
        while sends and sends[0][0].Test():
            sends.popleft()
        return not sends

    def abandon(self, abandoned: Abandoned) -> None:
        """Hands over what is still under way."""
        while self._sends:
            request, memory = self._sends.popleft()
            abandoned.take([request], memory)


class MpiTransport:
    """Rank zero's end: workers are ranks 1 to size-1, indices one less."""

    def __init__(
        self, channels: Channels, lengths: Lengths, metric_names: Sequence[str], ledger: Ledger | None = None
    ) -> None:
        self._channels = channels
        self._ledger = ledger or Ledger([None] * (channels.commands.size - 1))
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

    def rank(self, worker: int) -> int:
        return worker + 1

    def send(self, worker: int, command: Command, versions: Sequence[Row], states_nS: Float32 | None = None) -> None:
        if worker in self._dead:
            return
        if self._ledger.shares(worker):
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

    def orphans(self, worker: int) -> Sequence[tuple[int, int]]:
        return self._orphans.pop(worker, ())

    def _send(self, worker: int, data: wire.Bytes, versions: Sequence[Row], states_nS: Float32 | None) -> None:
        rank, outbox = worker + 1, self._outboxes[worker]
        outbox.put([self._channels.commands.Isend(data, dest=rank)], data)
        start = 0
        for n in bundles(len(versions), self._lengths.version):
            flat = versions[start] if n == 1 else np.concatenate(versions[start : start + n])
            outbox.put(_isend(self._channels.versions, flat, rank, self._channels.piece), flat)
            start += n
        if states_nS is not None:
            outbox.put(_isend(self._channels.versions, states_nS.reshape(-1), rank, self._channels.piece), states_nS)
        self._channels.bell.ring(rank)

    @property
    def rung_s(self) -> float:
        living = (worker + 1 for worker, request in enumerate(self._receives) if request is not None)
        if self._pending or not self._channels.bell.reaches(living):
            return 0.0
        if self._all_sent() and not self._n_looks:
            return _LONGEST_WAIT_S
        return min(_LONGEST_SLEEP_S * 2.0**self._n_quiet, _LONGEST_WAIT_S)

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

    def _all_sent(self) -> bool:
        return not any(outbox for outbox in self._outboxes)

    def _bury(self, worker: int, error: MPI.Exception) -> Lost:
        """What is said of a worker that died, once nothing is expected from it or sent to it any more."""
        if not is_death(error):
            raise error
        self._dead.add(worker)
        self._orphans[worker] = self._ledger.lose(worker)
        self._receives[worker] = None
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
        self._receives[worker] = request
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
        reports, sent = wire.decode_trained(worker + 1, body)
        if any(sent):
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


class WorkerChannel:
    """A worker's end: takes commands, runs them against its core, sends what comes of them."""

    def __init__(
        self,
        channels: Channels,
        core: WorkerCore,
        lengths: Lengths,
        clock: Callable[[], float],
        watch: Watched,
        shelf: Shelf | None = None,
    ) -> None:
        self._watch = watch
        self._shelf = shelf
        self._channels = channels
        self._core = core
        self._lengths = lengths
        self._clock = clock
        self._buffer = np.empty(wire.COMMAND_BYTES, np.uint8)
        self._receive = channels.commands.Irecv(self._buffer, source=0)
        self._coming: deque[_Coming] = deque()
        self._jobs: deque[Command] = deque()
        self._outbox = Outbox()
        self._stopped = self._comes_again = False
        self._hurries = False  # nothing is trained any more

    def serve(self) -> bool:
        """Works until the server says stop; returns when everything sent has left: whether to begin again with others.

        Raises:
            LostError: the server died.
        """
        try:
            self._serve()
            return self._comes_again
        except (Orphaned, MPI.Exception) as error:
            if isinstance(error, MPI.Exception) and not is_death(error):
                raise
            raise LostError("the server, rank 0, died") from error

    def _serve(self) -> None:
        backoff = Backoff(cap_s=_LONGEST_SLEEP_S, sleep=self._channels.bell.wait)
        while not self._stopped:
            self._progress()
            if self._jobs:
                self._work(self._jobs.popleft())
                backoff.reset()
            else:
                self._wait(backoff)
        self._reply(wire.encode_stopped(self._core.counters))
        while not self._outbox.advance() or not all(come.is_others for come in self._coming):
            self._learn_arrived()
            backoff.sleep()

    def _wait(self, backoff: Backoff) -> None:
        self._watch.beat()
        start_s = self._clock()
        if self._coming or not self._channels.bell.reaches((0,)):
            backoff.sleep()
        else:
            self._channels.bell.wait(_LONGEST_SLEEP_S if self._outbox else _LONGEST_WAIT_S)
        self._core.counters.waiting_s += self._clock() - start_s

    def _progress(self) -> None:
        """Takes what has come in and lets go of what has left; called between steps of training, too."""
        self._watch.beat()
        try:
            self._outbox.advance()
            while not self._stopped and self._receive.Test():
                self._take(wire.decode_command(self._buffer))
            self._learn_arrived()
        except MPI.Exception as error:
            if is_death(error):
                raise Orphaned from error
            raise

    def _progress_in_training(self) -> None:
        """`_progress`; leaves a training that nobody waits for any more."""
        self._progress()
        if self._stopped or self._hurries:
            raise SentHome

    def _take(self, command: Command) -> None:
        if command.stop:
            self._stopped, self._comes_again = True, command.comes_again
            if command.shows_stack:
                self._watch.dump()
            self._jobs.clear()
            return
        self._receive = self._channels.commands.Irecv(self._buffer, source=0)
        self._core.forget(command.forget)
        self._core.drop(command.drop)
        if command.add:
            self._core.add_up(command.add, command.weights)
        if command.total:
            self._reply(wire.encode_summed(self._core.counters), self._core.total().total_P)
        if command.coming:
            self._core.before_versions()
        if command.places:
            for version, place in zip(command.coming, command.places, strict=True):
                self._expect_at(version, place)
            command = command._replace(coming=())
        start = 0
        for n in bundles(len(command.coming), self._lengths.version):
            rows = empty_rows(n, self._lengths.version, self._lengths.version_type)
            self._expect(command.coming[start : start + n], rows, is_state=False)
            start += n
        if command.adopt:
            self._expect(command.adopt, empty_rows(len(command.adopt), self._lengths.state), is_state=True)
        if command.in_haste:
            self._hurries = True
            self._jobs = deque(_hurried(job, evaluates=not command.collect) for job in self._jobs)
        if command.fetch:
            self._jobs.appendleft(Command(fetch=command.fetch))
        if command.tasks or command.evaluate != NO_VERSION or command.settles or command.collect:
            self._jobs.append(command._replace(fetch=()))  # those go first

    def _expect_at(self, version: int, place: int) -> None:
        """A version comes to a place, see `Ledger.place`."""
        if place == PRIVATE:
            rows = empty_rows(1, self._lengths.version, self._lengths.version_type)
            self._expect([version], rows, is_state=False)
            return
        assert self._shelf is not None
        slot, is_mine = divmod(place, 2)
        if is_mine:
            self._expect([version], self._shelf.row(slot), is_state=False, slot=slot)
        else:
            shown = Shown(self._shelf, slot, version)
            self._coming.append(_Coming([version], [shown], self._shelf.read(slot), is_state=False, is_others=True))

    def _expect(self, numbers: Sequence[int], rows: Row, is_state: bool, slot: int = PRIVATE) -> None:
        requests = _irecv(self._channels.versions, rows.reshape(-1), 0, self._channels.piece)
        self._coming.append(_Coming(numbers, requests, rows, is_state, slot))
        self._core.counters.received_bytes += rows.nbytes

    def _learn_arrived(self) -> None:
        """Takes what is there whole, in any order: what another worker receives may be waiting for us."""
        if not self._coming:
            return
        learned: set[int] = set()
        still: list[_Coming] = []
        for come in self._coming:
            if not all(request.Test() for request in come.requests):
                still.append(come)
            elif come.is_state:
                self._core.adopt(come.numbers, come.rows)
            else:
                self._learn(come)
                learned.update(come.numbers)
        # what was to come from a worker that died came by another way
        self._coming = deque(come for come in still if not (come.is_others and learned.issuperset(come.numbers)))

    def _learn(self, come: _Coming) -> None:
        if come.slot != PRIVATE:
            assert self._shelf is not None
            self._shelf.show(come.slot, come.numbers[0])
        for version, vector_P in zip(come.numbers, come.rows, strict=True):
            self._core.learn(version, vector_P)

    def _await_versions(self, command: Command) -> None:
        """Returns when the versions that a command needs are in; waiting counts as waiting."""
        needed = {command.evaluate, *(task.base_version for task in command.tasks)}
        backoff = Backoff(cap_s=1e-4, sleep=self._channels.bell.wait)
        self._learn_arrived()
        while not self._stopped and any(come.is_state or not needed.isdisjoint(come.numbers) for come in self._coming):
            self._wait(backoff)
            self._progress()  # commands too: what another worker was to receive may have to come by a new one

    def _work(self, command: Command) -> None:
        self._await_versions(command)
        if self._stopped:
            return
        if self._hurries:
            command = _hurried(command, evaluates=True)
        try:
            self._do(command)
        except SentHome:
            return
        except MPI.Exception:
            raise
        except (Exception, SystemExit) as error:  # reported to the server, which decides
            self._reply(wire.encode_failed(self._core.failure(error), self._core.counters))
            if not isinstance(error, FedsimError):
                self._jobs.clear()

    def _do(self, command: Command) -> None:
        core = self._core
        if command.fetch:
            delivered = core.deliver(command.fetch)
            self._reply(wire.encode_delivered(delivered, core.counters), *parts(delivered.rows))
        if command.settles:
            core.settle(command.commit, command.discard)
        if command.collect:
            for collected in core.collect():
                self._reply(wire.encode_collected(collected, core.counters), collected.rows)
        if command.evaluate != NO_VERSION:
            evaluated = core.evaluate(command.evaluate)
            table = wire.evaluation_table(evaluated.rows)
            self._reply(wire.encode_evaluated(evaluated, core.counters), table)
        if command.tasks:
            trained = core.train(command.tasks, command.send, self._progress_in_training)
            for failed in trained.failed:
                self._reply(wire.encode_failed(failed, core.counters))
            self._reply(wire.encode_trained(trained, core.counters), *parts(trained.rows))

    def _reply(self, header: wire.Bytes, *payloads: Any) -> None:
        start_s = self._clock()
        self._outbox.put([self._channels.replies.Isend(header, dest=0)], header)
        self._core.counters.sent_bytes += header.nbytes
        for payload in payloads:  # an empty one is no message
            self._outbox.put(_isend(self._channels.rows, payload.reshape(-1), 0, self._channels.piece), payload)
            self._core.counters.sent_bytes += payload.nbytes
        self._channels.bell.ring(0, gives_way=True)  # its work is short, and others may be waiting for what comes of it
        self._core.counters.sending_s += self._clock() - start_s
