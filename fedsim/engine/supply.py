"""Keeps the workers supplied, and brings in the update that is due, under the memory bounds.

Every wanted task goes through these states, and no message moves it that this file did not ask for:

    READY --post--> POSTED --trained--> HERE            if room was granted when it was posted
                           --trained--> HELD --fetch--> COMING --delivered--> HERE
                           --failed---> FAILED, or READY again, elsewhere
                                         |  drop: back to READY, to be trained again
                                         |  add: SUMMED --total--> HERE, without its row: `add_up`

What is at a worker that dies is READY again, too, for the living (`fedsim.engine.losses`).

Bounds (architecture, "The semantics, settled", 8). Rank zero has room for `server_rows` updates, one of them reserved
for the due one; room is granted before a row may travel. A worker has room for `worker_rows` results, at least a group;
a group is posted only into free room, and for the due task the held result due last makes way. So the due task can
always be posted, trained, fetched and consumed, whatever the bounds: nothing deadlocks.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedsim.comm.transport import (
    Collected,
    Command,
    Delivered,
    Evaluated,
    Failed,
    Lost,
    Message,
    Summed,
    Trained,
    Transport,
)
from fedsim.engine import losses
from fedsim.engine.adding import Adding
from fedsim.engine.items import AT_WORKER, Bounds, Desk, Item, Queue, State, in_turn
from fedsim.engine.resting import Rest
from fedsim.engine.settling import Settling
from fedsim.engine.shelves import Shelves
from fedsim.engine.streaming import Begun, begun_of
from fedsim.engine.versions import VersionStore
from fedsim.errors import LostError
from fedsim.schedule.placement import ANY_WORKER, among
from fedsim.types import Float32, Int64, Task, Update

_SERVICE_EVERY = 8  # events without waiting, after which messages are looked at all the same
_NO_ROW: Float32 = np.empty(0, np.float32)


class Supply:
    """The tasks between dispatch and consumption. `host_of` gives a client's worker, or `ANY_WORKER`.

    `report` is told of failures that are survived: worker, client, task, kind, text.
    """

    def __init__(
        self,
        transport: Transport,
        host_of: Callable[[int], int],
        bounds: Bounds,
        versions: VersionStore,
        clock: Callable[[], float],
        stall_timeout_s: float,
        report: losses.Report = losses.unreported,
        leniency: losses.Leniency = losses.NONE,
        settling: Settling | None = None,
    ) -> None:
        self._transport = transport
        self._home_of = self._host_of = host_of
        self._report = report
        self._leniency = leniency
        self._bounds = bounds
        self._versions = versions
        self._clock = clock
        self._rest = Rest(transport, clock, stall_timeout_s)
        self._shelves = Shelves(transport.n_workers, bounds.worker_versions)
        self._desks = [Desk() for _ in range(transport.n_workers)]
        self._living = list(range(transport.n_workers))
        self._shared: Queue = []
        self._held: Queue = []
        self._items: dict[int, Item] = {}
        self._arrived: deque[int] = deque()
        self._adding = Adding(self._post, clock)
        self._evaluated: list[Evaluated] = []
        self._evaluating: list[list[int]] = [[] for _ in range(transport.n_workers)]  # versions
        self._settling = settling
        self._n_server_rows = self._n_unserviced = self._next_worker = 0  # rows: here or on the way
        self.n_retrained = 0
        self.lost: LostError | None = None  # set when no worker is left

    # ------------------------------------------------------------------ what the engine asks for

    def submit(self, tasks: Sequence[Task]) -> None:
        """Takes over those of the tasks whose updates will be wanted."""
        now_s = self._clock()
        for task in tasks:
            if task.wanted:
                on_wall = task.due_s != task.due_s
                key = (0.0, 0.0, task.task) if on_wall else (task.due_s, task.arrival_s, task.task)
                item = self._items[task.task] = Item(task, key, submitted_s=now_s)
                self._versions.retain(task.base_version)
                self._enqueue(item)

    def bring(self, number: int, while_waiting: Callable[[], None], in_pieces: bool = False) -> Begun | None:
        """Returns when the update of a submitted task is here; calls `while_waiting` when nothing else is to be done.

        In the order of events only: what is brought must be taken before anything else. `in_pieces`: or it has begun.
        """
        item = self._items[number]
        if item.state < State.HERE:
            self.pump(item)
        while item.state < State.HERE:
            if in_pieces and (begun := begun_of(item, self._transport)):
                return begun
            if self.listen():
                self.pump(item)  # only messages change what can be posted or fetched
            else:
                while_waiting()
        return None

    def is_here(self, number: int) -> bool:
        """Whether the update of a submitted task can be taken at once, or is known never to come."""
        return self._items[number].state >= State.HERE

    def has_failed(self, number: int) -> bool:
        """Whether the training of a submitted task failed, so that its update will never come."""
        return self._items[number].state is State.FAILED

    def discard(self, number: int) -> None:
        """A task that failed leaves the supply."""
        self._forget(self._items[number])

    def service(self) -> None:
        """Called between events: posts groups out of plenty, and handles messages, now and then."""
        self._n_unserviced += 1
        if self._n_unserviced >= _SERVICE_EVERY:
            self.pump()
            self.listen(wait=False)

    def take(self, number: int) -> tuple[Update, Item]:
        """The update of a submitted task, which leaves the supply; waits for it if it is not here yet."""
        item = self._items[number]
        if item.state is not State.HERE:
            self.bring(number, self.check_living)
        if self._bounds.sums:
            assert item.report is not None
            self._forget(item)
            return Update(item.report, _NO_ROW), item
        return self._consume(item), item

    def add_up(self, weights: Mapping[int, float], while_waiting: Callable[[], None]) -> Int64 | None:
        """The weighted sum of the updates of submitted tasks (P,), as the workers made it; None of no tasks.

        What was summed at a worker that dies before its sum is here is trained again, by others. See `bring`.
        """
        self._adding.begin(weights)
        items = [self._items[number] for number in weights]
        self._adding.add([item for item in items if item.state is State.HELD], self._desks)
        while waiting := [item for item in items if item.state < State.HERE]:
            due = next((item for item in waiting if item.state is not State.SUMMED), None)
            if due is None:
                self._adding.ask(waiting)
            self.pump(due)
            while not self.listen():
                while_waiting()
        return self._adding.end()

    def arrivals(self) -> list[int]:
        """On the wall clock: the tasks whose updates came in since the last call, in the order in which they did."""
        numbers = [number for number in self._arrived if number in self._items]
        self._arrived.clear()
        return numbers

    @property
    def keeps_states(self) -> bool:
        """Whether clients keep a state, so that a task may only start once the client's former one is settled."""
        return self._settling is not None and self._settling.keeps_states

    def cancel(self, number: int) -> None:
        """Nobody wants the update of this task any more."""
        item = self._items[number]
        item.dropped = True
        if item.state is State.HELD:
            self._drop_held(item)
        if item.state is State.HERE:
            self._n_server_rows -= 1
        if item.state in (State.READY, State.HELD, State.HERE, State.FAILED):
            self._forget(item)

    def evaluate(self, version: int) -> None:
        """Sends a version to the worker with the least to do, to be evaluated there; to all if models are personal."""
        if self._settling is not None and self._settling.is_personal:
            for worker in self._living:
                self._versions.retain(version)
                self._evaluate_at(worker, version)
            return
        self._versions.retain(version)
        self._post_evaluation(version)

    def check_living(self) -> None:
        """Raises LostError if no worker is left, or what clients kept is gone with one."""
        if self.lost is not None:
            raise self.lost

    def _post_evaluation(self, version: int) -> None:
        self.check_living()
        busy = {w: self._desks[w].n_groups + len(self._evaluating[w]) for w in self._living}
        worker = min(self._living, key=lambda w: (busy[w], (w - version) % len(self._desks)))
        self._evaluate_at(worker, version)

    def _evaluate_at(self, worker: int, version: int) -> None:
        self._evaluating[worker].append(version)
        self._post(worker, Command(evaluate=version, coming=[version] * self._shelves.pin(worker, version)))

    def go_live(self) -> None:
        """From now on what arrives is consumed at once: no room is kept for what is due."""
        self._bounds = replace(self._bounds, reserve=0)

    def evaluations(self) -> list[Evaluated]:
        """The evaluations that came in since the last call."""
        done, self._evaluated = self._evaluated, []
        return done

    @property
    def is_personal(self) -> bool:
        """Whether clients are scored by models of their own."""
        return self._settling is not None and self._settling.is_personal

    def hurry(self) -> None:
        """The run ends: workers train nothing any more. Nothing may be posted afterwards that has tasks."""
        for worker in self._living:
            self._post(worker, Command(in_haste=True))

    def collect_states(self, while_waiting: Callable[[], None], in_haste: bool) -> tuple[list[int], Float32]:
        """What all clients keep, as of the events consumed so far: clients in ascending order, and vectors (n, S)."""
        assert self._settling is not None
        for worker in self._living:
            self._post(worker, Command(collect=True, in_haste=in_haste))
        while not self._settling.is_collected(len(self._living)):
            self.listen()
            while_waiting()
        return self._settling.collection()

    def adopt_states(self, clients: Sequence[int], states_nS: Float32) -> None:
        """Hands what clients keep to their workers, before any of their tasks is submitted."""
        assert self._settling is not None
        for worker, some, rows_nS in self._settling.dealt(clients, states_nS, self._host_of):
            self._post(worker, Command(adopt=some), rows_nS)

    def release_version(self, version: int, n: int = 1) -> None:
        """`n` users of a version less; with the last one the workers may forget it too."""
        if self._versions.release(version, n):
            self._shelves.retire(version)

    def pump(self, due: Item | None = None) -> None:
        """Posts groups to workers with nothing waiting and fetches held results into free room; `due` goes first."""
        self._n_unserviced = 0
        if due is not None and due.state is State.READY:
            self._put_first(due)
            self._make_way(due)
        for n_groups in range(self._bounds.n_groups):  # nobody gets a second group before everybody has one
            for worker in in_turn(self._living, self._next_worker):
                desk = self._desks[worker]
                if desk.n_groups == n_groups:
                    self._post_group(worker, desk, due)
        self._fetch(due)

    def listen(self, wait: bool = True) -> bool:
        """Handles the messages that are in; if there are none, sleeps a little (if it may), and returns whether there
        were some."""
        has_slept = wait and self._transport.is_quiet
        if has_slept:
            self._rest.sleep(self._is_missed)
        messages = self._transport.poll()
        for message in messages:
            self._handle(message)
        if messages:
            self._rest.heard()
        elif wait:
            n_out = sum(desk.n_groups for desk in self._desks) + sum(map(len, self._evaluating))
            self._rest.check_stalled(n_out + len(self._adding.asked))
            if not has_slept:
                self._rest.sleep(self._is_missed)
        return bool(messages)

    def _is_missed(self) -> bool:
        """Whether some worker has no further group waiting."""
        return any(self._desks[worker].n_groups < self._bounds.n_groups for worker in self._living)

    @property
    def waiting_s(self) -> float:
        """Wall seconds slept so far, for want of messages."""
        return self._rest.slept_s

    # ------------------------------------------------------------------------------ posting

    def _queue(self, item: Item) -> Queue:
        return self._shared if (host := self._host(item)) == ANY_WORKER else self._desks[host].ready

    def _host(self, item: Item) -> int:
        return self._host_of(item.task.client) if item.elsewhere is None else item.elsewhere

    def _enqueue(self, item: Item) -> None:
        item.state = State.READY
        heapq.heappush(self._queue(item), (item.key, item.task.task))

    def _put_first(self, due: Item) -> None:
        """The due task goes to the head of its queue, whatever ties there are; its old place there is skipped later."""
        if due.key[0] != -math.inf:
            due.key = (-math.inf, 0.0, due.task.task)
            self._enqueue(due)

    def _make_way(self, due: Item) -> None:
        """Drops the held result due last if no worker that could take the due task has room or will have some."""
        host = self._host(due)
        workers = self._living if host == ANY_WORKER else [host]
        desks = [self._desks[worker] for worker in workers]
        if any(desk.n_groups or desk.n_rows < self._bounds.worker_rows for desk in desks):
            return
        held = [item for item in self._items.values() if item.state is State.HELD and item.worker in workers]
        if held:  # else results are on their way here, and leave room
            last = max(held, key=lambda item: item.key)
            self._drop_held(last)
            self._enqueue(last)
            self.n_retrained += 1

    def _fill(self, n_ready: int) -> int:
        """How many tasks make a group now: so few that every worker has its groups and as many tasks are left over.

        Where more are ready than that, as at the start of a round, groups are larger at first, and smaller towards the
        end. A group's bits do not depend on its fill, so this may follow the number of workers.
        """
        n_shares = self._bounds.n_groups * len(self._living)
        return min(self._bounds.group_size, max(1, len(self._items) // (2 * n_shares), n_ready // n_shares))

    def _share(self, desk: Desk) -> int:
        """What is ready for an idle worker, shared with the others that are idle."""
        if desk.ready:
            return len(desk.ready)
        n_idle = sum(self._desks[worker].n_groups == 0 for worker in self._living)
        return -(-len(self._shared) // n_idle)

    def _plenty(self, desk: Desk, fill: int) -> int:
        """Tasks that must be ready before a worker at work gets a group to wait with it.

        In the order of events the next dispatch may be due next. What waits at its worker is trained before it, and who
        runs out of tasks meanwhile stands idle: so a group stays here for each worker that could take it.
        """
        n_sharing = 0 if not self._bounds.reserve else 1 if desk.ready else len(self._living)
        return fill * (1 + n_sharing)

    def _post_group(self, worker: int, desk: Desk, due: Item | None) -> None:
        """Posts one group if there is a reason to: a full one for an idle worker, less if the server waits; else out of
        plenty."""
        queue = desk.ready or self._shared
        if not queue:
            return
        fill = self._fill(len(queue) * (len(self._living) if desk.ready else 1))
        if desk.n_groups > 0:
            if len(queue) < self._plenty(desk, fill):
                return
        elif due is not None or not self._bounds.reserve:
            fill = min(fill, self._share(desk))
        elif len(queue) < fill:
            return
        n = min(fill, self._bounds.worker_rows - desk.n_rows)
        group = self._take_group(worker, queue, n)
        if not group:
            return
        versions = [item.task.base_version for item in group]
        coming = [version for version in versions if self._shelves.pin_for_tasks(worker, version)]
        send = [self._grant(item is due) for item in group]
        for item, granted in zip(group, send, strict=True):
            item.state, item.worker, item.granted = State.POSTED, worker, granted
        self._next_worker = worker + 1
        desk.n_groups += 1
        desk.n_rows += len(group)
        self._post(worker, Command([item.task for item in group], send, coming))

    def _take_group(self, worker: int, queue: Queue, n: int) -> list[Item]:
        """Up to `n` tasks from the head of a queue, as far as their versions find room at the worker."""
        group: list[Item] = []
        room, new = self._shelves.room(worker), set[int]()
        while queue and len(group) < n:
            item = self._items.get(queue[0][1])
            if item is None or item.state is not State.READY or item.key != queue[0][0]:
                heapq.heappop(queue)  # cancelled, or an old place
                continue
            base = item.task.base_version
            if base not in new and not self._shelves.is_used_by_tasks(worker, base):
                if len(new) >= room:
                    break
                new.add(base)
            heapq.heappop(queue)
            group.append(item)
        return group

    def _grant(self, is_due: bool) -> bool:
        """Takes a row of the server's room if there is one; the reserve is for the due update."""
        if self._bounds.sums:
            return False
        if self._n_server_rows < self._bounds.server_rows - (0 if is_due else self._bounds.reserve):
            self._n_server_rows += 1
            return True
        return False

    def _drop_held(self, item: Item) -> None:
        self._desks[item.worker].n_rows -= 1
        self._post(item.worker, Command(drop=(item.task.task,)))

    def _post(self, worker: int, command: Command, states_nS: Float32 | None = None) -> None:
        vectors = [self._versions.as_sent(version) for version in command.coming]
        if self._settling is not None:
            *before, command = self._settling.told(worker, command)
            for first in before:  # more than one command holds
                self._transport.send(worker, first, ())
        if forget := self._shelves.forgotten(worker):
            command = command._replace(forget=forget)
        self._transport.send(worker, command, vectors, *(() if states_nS is None else (states_nS,)))
        self._rest.spoke()

    # ------------------------------------------------------------------------------ fetching

    def _fetch(self, due: Item | None) -> None:
        """Asks for held results in the order in which they are due, as far as there is room."""
        requests: dict[int, list[int]] = {}
        if due is not None and due.state is State.HELD and self._grant(True):
            self._request(due, requests)
        while self._held:
            item = self._items.get(self._held[0][1])
            if item is not None and item.state is State.HELD:
                if not self._grant(False):
                    break
                self._request(item, requests)
            heapq.heappop(self._held)
        for worker, numbers in requests.items():
            n = self._bounds.group_size  # rows that come together live in one buffer until the last is consumed
            for start in range(0, len(numbers), n):
                self._post(worker, Command(fetch=numbers[start : start + n]))

    @staticmethod
    def _request(item: Item, requests: dict[int, list[int]]) -> None:
        item.state, item.granted = State.COMING, True
        requests.setdefault(item.worker, []).append(item.task.task)

    # ------------------------------------------------------------------------------ messages

    def _handle(self, message: Message) -> None:
        match message:
            case Trained():
                self._trained(message)
            case Delivered():
                for number, row_P in zip(message.tasks, message.rows, strict=True):
                    self._desks[message.worker].n_rows -= 1
                    self._here(self._items[number], row_P)
            case Evaluated():
                self._evaluating[message.worker].remove(message.version)
                self._shelves.unpin(message.worker, message.version)
                self.release_version(message.version)
                self._evaluated += [message] if self._settling is None else self._settling.evaluated(message)
            case Collected():
                assert self._settling is not None
                self._settling.collected(message)
            case Summed():
                self._adding.summed(message, self._items)
            case Failed():
                self._failed(message)
            case Lost():
                self._lose(message)

    def _lose(self, message: Lost) -> None:
        """Gives what a worker had that died to the living; if there are none, `lost` says so."""
        worker = message.worker
        self._report(worker, -1, -1, losses.WORKER_LOST, message.text)
        self._living.remove(worker)
        self.lost = losses.lost_with(message.text, len(self._living), self._settling is not None)
        if self.lost is not None:
            return
        self._shelves.lose(worker)
        for other, version in self._shelves.known(self._transport.orphans(worker)):
            self._post(other, Command(coming=[version]))
        self._adding.asked.pop(worker, None)
        self._host_of = among(self._living, len(self._desks), self._home_of)
        desk, self._desks[worker] = self._desks[worker], Desk()
        for retried in self._items.values():
            retried.elsewhere = None if retried.elsewhere == worker else retried.elsewhere
        for key, number in desk.ready:
            item = self._items.get(number)
            if item is not None and item.state is State.READY and item.key == key:
                self._enqueue(item)
        for item in [item for item in self._items.values() if item.worker == worker and item.state in AT_WORKER]:
            self._n_server_rows -= item.granted
            if item.dropped:
                self._forget(item)
            else:
                self._enqueue(item)
        while self._evaluating[worker]:
            self._post_evaluation(self._evaluating[worker].pop(0))

    def _failed(self, message: Failed) -> None:
        """Tries a failed task again elsewhere, or gives it up, or ends the run, as is asked for.

        Raises:
            ClientError, WorkerError: the run ends by it.
        """
        worker, item = message.worker, self._items.get(message.task)
        if item is None and (message.task != -1 or not self._leniency.survives):
            raise losses.error_of(message, self._transport.rank(worker))
        if item is not None:
            item.n_failed += 1
        verdict = "drop" if item is None or item.dropped else self._leniency.verdict(item.n_failed)
        if verdict == "fail":
            raise losses.error_of(message, self._transport.rank(worker))
        self._report(worker, message.client, message.task, losses.kind_of(message), message.text)
        if item is None:
            return  # a group that could be trained task by task
        self._desks[worker].n_rows -= 1
        self._shelves.unpin_from_tasks(worker, item.task.base_version)
        self._n_server_rows -= item.granted
        item.granted = False
        if item.dropped:
            self._forget(item)
        elif verdict == "retry":
            if not self.keeps_states:  # what its client keeps is there
                item.elsewhere = self._living[(self._living.index(worker) + 1) % len(self._living)]
            self._enqueue(item)
        else:
            item.state, item.arrived_s = State.FAILED, self._clock()
            if not self._bounds.reserve:
                self._arrived.append(item.task.task)

    def _trained(self, message: Trained) -> None:
        desk = self._desks[message.worker]
        desk.n_groups -= 1
        self._rest.note_group(message.train_s)
        rows = iter(message.rows)
        summed: list[Item] = []
        for report, sent in zip(message.reports, message.sent, strict=True):
            item = self._items[report.task]
            item.report = report
            self._shelves.unpin_from_tasks(message.worker, item.task.base_version)
            if sent:
                desk.n_rows -= 1
                self._here(item, next(rows))
            elif item.dropped:
                self._drop_held(item)
                self._forget(item)
            else:
                item.state = State.HELD
                if not self._bounds.sums:
                    heapq.heappush(self._held, (item.key, report.task))
                elif self._adding.wants(report.task):
                    summed.append(item)
        self._adding.add(summed, self._desks)

    def _here(self, item: Item, row_P: Float32) -> None:
        if item.dropped:
            self._n_server_rows -= 1
            self._forget(item)
            return
        item.state, item.row_P, item.arrived_s = State.HERE, row_P, self._clock()
        if not self._bounds.reserve:
            self._arrived.append(item.task.task)

    def _consume(self, item: Item) -> Update:
        assert item.report is not None and item.row_P is not None
        update = Update(item.report, item.row_P)
        item.row_P = None
        self._n_server_rows -= 1
        if self._settling is not None:
            self._settling.committed(item.worker, item.task.task)
        self._forget(item)
        return update

    def _forget(self, item: Item) -> None:
        if self._settling is not None and item.dropped and item.worker != ANY_WORKER:
            self._settling.discarded(item.worker, item.task.task)
        del self._items[item.task.task]
        self.release_version(item.task.base_version)
