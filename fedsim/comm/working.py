"""A worker's end of the transport over MPI. It never blocks inside MPI: it tests and sleeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from fedsim.comm import wire
from fedsim.comm.channels import LONGEST_SLEEP_S, LONGEST_WAIT_S, Channels, Outbox, bundles, irecv, isend
from fedsim.comm.commons import PRIVATE, CommonShelf
from fedsim.comm.losses import Orphaned, is_death
from fedsim.comm.nodes import Shelf, Shown
from fedsim.comm.pieces import parts
from fedsim.comm.transport import NO_VERSION, Backoff, Command, Lengths, Watched, WorkerCore, empty_rows
from fedsim.errors import FedsimError, LostError
from fedsim.tables import TaskTable
from fedsim.types import Row


class _Coming(NamedTuple):
    """Rows on their way to a worker: versions by number, or states by client. `slot`: where a version is received that
    others of the node are shown; `is_others`: another worker receives it."""

    numbers: Sequence[int]
    requests: Sequence[MPI.Request | Shown]
    rows: Row
    is_state: bool
    slot: int = PRIVATE
    is_others: bool = False


def _hurried(command: Command, evaluates: bool) -> Command:
    """What is left of a command once the run ends: what changes in what clients keep, and what is asked for."""
    return command._replace(tasks=(), send=(), evaluate=command.evaluate if evaluates else NO_VERSION)


class SentHome(BaseException):
    """The server said stop, or that the run ends, in the middle of a training."""


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
        common_shelf: CommonShelf | None = None,
    ) -> None:
        self._watch = watch
        self._shelf = shelf
        self._common_shelf = common_shelf
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
        backoff = Backoff(cap_s=LONGEST_SLEEP_S, sleep=self._channels.bell.wait)
        while not self._stopped:
            self._progress()
            if self._jobs:
                self._work(self._jobs.popleft())
                backoff.reset()
            else:
                self._wait(backoff)
        self._channels.bell.takes_to = None  # rank zero may be gone from here by the time it is rung
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
            self._channels.bell.wait(LONGEST_SLEEP_S if self._outbox else LONGEST_WAIT_S)
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
        start, coming = 0, self._find(command) if command.places else command.coming
        for n in bundles(len(coming), self._lengths.version):
            rows = empty_rows(n, self._lengths.version, self._lengths.version_type)
            self._expect(coming[start : start + n], rows, is_state=False)
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

    def _find(self, command: Command) -> Sequence[int]:
        """Takes versions from where they are in a node's memory, now or later; the others, that are still to come."""
        common, places = self._common_shelf, list(zip(command.coming, command.places, strict=True))
        if common is None or not common.has_versions:
            for version, place in places:
                self._expect_at(version, place)
            return ()
        for version, place in places:
            if place != PRIVATE:
                vector_P = common.read(place)
                self._core.counters.received_bytes += vector_P.nbytes
                self._core.learn(version, vector_P)
        return [version for version, place in places if place == PRIVATE]

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
        requests = irecv(self._channels.versions, rows.reshape(-1), 0, self._channels.piece)
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
        self._learn_arrived()
        if not self._coming:
            return
        needed = {command.evaluate, *TaskTable.of(command.tasks).rows["base_version"].tolist()}
        backoff = Backoff(cap_s=1e-4, sleep=self._channels.bell.wait)
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
            if trained.places:
                core.counters.sent_bytes += sum(part.nbytes for part in parts(trained.rows))
                self._reply(wire.encode_trained(trained, core.counters))
            else:
                self._reply(wire.encode_trained(trained, core.counters), *parts(trained.rows))

    def _reply(self, header: wire.Bytes, *payloads: Any) -> None:
        start_s = self._clock()
        self._outbox.put([self._channels.replies.Isend(header, dest=0)], header)
        self._core.counters.sent_bytes += header.nbytes
        for payload in payloads:  # an empty one is no message
            self._outbox.put(isend(self._channels.rows, payload.reshape(-1), 0, self._channels.piece), payload)
            self._core.counters.sent_bytes += payload.nbytes
        self._channels.bell.ring(0, gives_way=True)  # its work is short, and others may be waiting for what comes of it
        self._core.counters.sending_s += self._clock() - start_s
