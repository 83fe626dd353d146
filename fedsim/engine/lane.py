"""The fast lane: a plain schedule is planned ahead in rows, and its tasks pass through without a state machine each.

Where a schedule depends on no update (`fedsim.schedule.ahead`), the order in which updates are consumed is known long
before they are trained. So the lane holds the next rows of the record's table of tasks: the rows whose base version is
there are ready, the first of them is due, and what is trained waits under its task's number. Rank zero does little more
than apply updates.

Whatever is not plain (a failure, a dead worker, the exact end of a run) is left to the general path: `Server` takes
over all that the lane has, at any moment, and so it does for a checkpoint. Room is not counted here, since the lane
opens only where there is room for all that can be unconsumed. The bits do not depend on any of it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from fedsim.comm.transport import Command, Trained
from fedsim.config import StopConfig, SyncSchedule
from fedsim.engine.items import Bounds, Desk, Item, State
from fedsim.engine.shelves import Shelves
from fedsim.engine.versions import VersionStore
from fedsim.schedule.alone import Federation, reason_against
from fedsim.schedule.placement import ANY_WORKER
from fedsim.schedule.schedule import Plain
from fedsim.types import Float32, Task, TaskReport

if TYPE_CHECKING:
    from fedsim.engine.plan import Plan
    from fedsim.schedule.ahead import Ahead

_LEAST_UPDATES = 4096  # a shorter run is over before the compiled schedule is loaded
_MOST_CLIENTS = 2**17  # what is known of each is kept in memory
_EVALUATED = 64  # versions that evaluations may keep
_LOOKED_AT = 1024  # rows of a queue, to see what is needed first
_SPARE = 4096  # consumed rows that are kept before they are thrown away together


class Result(NamedTuple):
    """An update that is here; times as in `Item`."""

    report: TaskReport
    row_P: Float32
    submitted_s: float
    arrived_s: float


class Depot(NamedTuple):
    """What the lane shares with the supply."""

    desks: list[Desk]
    living: list[int]
    shelves: Shelves
    host_of: Callable[[int], int]
    post: Callable[[int, Command], None]


class Lane:
    """Rows are numbered from 0, the first to be consumed once the lane has opened; `row` is the next."""

    def __init__(
        self,
        ahead: Ahead,
        versions: VersionStore,
        bounds: Bounds,
        stop: StopConfig,
        clock: Callable[[], float],
        *,
        n_in_flight: int,
        n_merge: int,
    ) -> None:
        self._ahead = ahead
        self._versions = versions
        self._bounds = bounds
        self._stop = stop
        self._clock = clock
        self._n_in_flight = n_in_flight
        self._n_merge = n_merge
        self._n_planned = 2 * (n_in_flight + n_merge)  # rows that are always known
        self._depot: Depot | None = None
        self._version = -1
        self._start(0, 0)

    def _start(self, version: int, n_consumed: int) -> None:
        self._tasks: list[Task] = []
        self._makes: list[bool] = []
        self._first = 0  # the row of the first of these
        self.row = 0
        self._n_consumed = n_consumed  # before row 0
        self._version = version
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)  # rows by a base that is not there yet
        self._n_based: defaultdict[int, int] = defaultdict(int)  # tasks by such a base, beyond the known rows, too
        self._made_s: dict[int, float] = {}
        self._shared: list[int] = []
        self._own: defaultdict[int, list[int]] = defaultdict(list)
        self._n_ready = 0
        self._posted: dict[int, tuple[int, int]] = {}  # task -> worker, base version
        self._results: dict[int, Result] = {}

    @property
    def is_open(self) -> bool:
        return self._depot is not None

    # ------------------------------------------------------------------------------ opening and leaving

    def is_worth_it(self, n_reached: int, version: int) -> bool:
        """Whether the exact end of the run is far enough."""
        stop, n = self._stop, self._n_merge
        if stop.updates is not None and n_reached + 2 * n >= stop.updates:
            return False
        if stop.versions is not None and version + 2 > stop.versions:
            return False
        return stop.virtual_s is None or not self._tasks or self._is_before(stop.virtual_s)

    def _is_before(self, virtual_s: float) -> bool:
        self._plan(2 * self._n_merge)
        return self._tasks[self.row - self._first + 2 * self._n_merge - 1].arrival_s <= virtual_s

    def open(self, plain: Plain, items: Sequence[Item], depot: Depot) -> bool:
        """Goes on from a schedule that made a version and dispatched, with what is known of its tasks; if it can."""
        if any(not _is_plain(item) for item in items):
            return False
        self._start(plain.version, plain.n_consumed)
        for item in items:
            number = item.task.task
            self._made_s.setdefault(item.task.base_version, item.submitted_s)
            if item.state is State.POSTED:
                self._posted[number] = (item.worker, item.task.base_version)
            elif item.state is State.HERE:
                assert item.report is not None and item.row_P is not None
                self._results[number] = Result(item.report, item.row_P, item.submitted_s, item.arrived_s)
        self._made_s.setdefault(plain.version, self._clock())
        self._depot = depot
        self._ahead.take_over(plain)
        self._plan(self._n_planned)
        return True

    def owed(self) -> tuple[list[Task], Plain]:
        """The tasks that the next version is still made of, and the schedule right after that was decided."""
        at = self.row - self._first
        stop = self._makes.index(True, at) + 1
        return self._tasks[at:stop], self._ahead.at(self._n_consumed + self._first + stop)

    def items(self, tasks: Sequence[Task]) -> list[Item]:
        """The tasks that are not consumed as the general path keeps them."""
        items = []
        for task in tasks:
            item = Item(task, (task.due_s, task.arrival_s, task.task), submitted_s=self._made_s[task.base_version])
            result = self._results.get(task.task)
            if result is not None:
                item.state, item.report, item.row_P = State.HERE, result.report, result.row_P
                item.arrived_s, item.worker = result.arrived_s, result.report.worker
            elif task.task in self._posted:
                item.state, item.worker, item.granted = State.POSTED, self._posted[task.task][0], True
            items.append(item)
        return items

    def close(self) -> None:
        """Somebody else goes on."""
        self._depot = None

    # ------------------------------------------------------------------------------ rows

    def head(self) -> tuple[Task, bool]:
        """The task whose update is due, and whether that makes a version."""
        at = self.row - self._first
        return self._tasks[at], self._makes[at]

    def result(self) -> Result | None:
        """The update that is due, if it is here."""
        return self._results.get(self._tasks[self.row - self._first].task)

    def consumed(self, task: Task) -> None:
        """The due update was applied."""
        del self._results[task.task]
        self.row += 1

    def published(self, version: int) -> None:
        """The version is there: what starts from it can be trained."""
        self._version = version
        self._made_s[version] = self._clock()
        n = self._n_based.pop(version, 0)
        if n:
            self._versions.retain(version, n)
        for row in self._waiting.pop(version, ()):
            self._enqueue(row)
        self._plan(self._n_planned)

    def _plan(self, n: int) -> None:
        """Sees to it that `n` rows from the next on are known."""
        while self._first + len(self._tasks) - self.row < n:
            if self.row - self._first > _SPARE:
                self._forget()
            planned = self._ahead.plan()
            row = self._first + len(self._tasks)
            self._tasks += planned.tasks
            self._makes += planned.makes_version
            for version, count in planned.n_based.items():
                if version <= self._version:
                    self._versions.retain(version, count)
                else:
                    self._n_based[version] += count
            for task in planned.tasks:
                if task.base_version > self._version:
                    self._waiting[task.base_version].append(row)
                elif task.task not in self._posted and task.task not in self._results:
                    self._enqueue(row)
                row += 1

    def _forget(self) -> None:
        """Lets go of consumed rows, and of times that no task asks for any more."""
        n = self.row - self._first
        del self._tasks[:n], self._makes[:n]
        self._first = self.row
        self._ahead.forget(self._n_consumed + self.row)
        for version in [version for version in self._made_s if version not in self._versions]:
            del self._made_s[version]

    # ------------------------------------------------------------------------------ workers

    def _enqueue(self, row: int) -> None:
        assert self._depot is not None
        host = self._depot.host_of(self._tasks[row - self._first].client)
        heapq.heappush(self._shared if host == ANY_WORKER else self._own[host], row)
        self._n_ready += 1

    def pump(self, is_waiting: bool) -> None:
        """Posts groups to workers that have none, and to others what is needed before anything new can start."""
        depot = self._depot
        assert depot is not None
        if not self._n_ready:
            return
        for n_groups in range(self._bounds.n_groups):
            for worker in depot.living:
                desk = depot.desks[worker]
                if desk.n_groups == n_groups and (queue := self._own[worker] or self._shared):
                    n = min(self._size(desk, queue, is_waiting), self._bounds.worker_rows - desk.n_rows)
                    if n > 0:
                        self._post(worker, desk, queue, min(n, len(queue)))

    def _size(self, desk: Desk, queue: list[int], is_waiting: bool) -> int:
        """How many tasks a worker gets now.

        Where they are all that can be trained before the next version, they are dealt out in groups of one size, no
        more of them than it takes. Else a group waits until it is worth its fixed cost, or the server waits. Then the
        first idle worker gets what comes before anything that cannot start yet, and the others the rest: in a
        simulation this was 5 to 15 % faster than equal shares, for large models and small ones.
        """
        assert self._depot is not None
        living, desks, most = self._depot.living, self._depot.desks, self._bounds.group_size
        is_shared = queue is self._shared
        n_ready, n_alike = len(queue), 1
        if is_shared:
            n_alike = sum(desks[worker].n_groups == desk.n_groups for worker in living)
        fill = min(most, max(1, self._n_unconsumed() // (2 * self._bounds.n_groups * len(living))))
        if not desk.n_groups:
            share = _dealt(n_ready, n_alike, most)
            if is_waiting and is_shared and len(living) > 1 and queue[0] == self.row:
                return min(share, self._n_before_unknown(queue))
            return share if is_waiting or share >= fill else 0
        if n_needed := self._n_needed(queue):
            return _dealt(n_needed, n_alike, most)
        return fill if n_ready >= fill * (1 + (len(living) if is_shared else 1)) else 0

    def _n_unconsumed(self) -> int:
        return self._n_ready + len(self._posted) + len(self._results)

    def _n_needed(self, queue: list[int]) -> int:
        """How many of the tasks that are ready the next version is made of."""
        at = self.row - self._first
        stop = self._first + self._makes.index(True, at) + 1
        return sum(row < stop for row in islice(queue, _LOOKED_AT))

    def _n_before_unknown(self, queue: list[int]) -> int:
        """How many of the tasks that are ready are consumed before the first whose base version is not there yet."""
        at = self.row - self._first
        while at < len(self._tasks) and self._tasks[at].base_version <= self._version:
            at += 1
        return sum(row < self._first + at for row in islice(queue, _LOOKED_AT))

    def _post(self, worker: int, desk: Desk, queue: list[int], n: int) -> None:
        depot = self._depot
        assert depot is not None
        first, rows = self._first, [heapq.heappop(queue) for _ in range(n)]
        tasks = [self._tasks[row - first] for row in rows]
        self._n_ready -= n
        coming = [task.base_version for task in tasks if depot.shelves.pin_for_task(worker, task.base_version)]
        for task in tasks:
            self._posted[task.task] = (worker, task.base_version)
        desk.n_groups += 1
        desk.n_rows += n
        depot.post(worker, Command(tasks, [True] * n, coming))

    def trained(self, message: Trained) -> None:
        """A group is here."""
        depot = self._depot
        assert depot is not None
        desk, now_s = depot.desks[message.worker], self._clock()
        desk.n_groups -= 1
        desk.n_rows -= len(message.reports)
        for report, row_P in zip(message.reports, message.rows, strict=True):
            _, base_version = self._posted.pop(report.task)
            depot.shelves.unpin_from_task(message.worker, base_version)
            self._results[report.task] = Result(report, row_P, self._made_s[base_version], now_s)


def lane_of(made: Plan, versions: VersionStore, clock: Callable[[], float]) -> Lane | None:
    """The lane of a run, if its schedule is plain, there is room for all that can be unconsumed, and it is long."""
    config = made.config
    if _why_not(made) is not None:
        return None
    from fedsim.schedule.ahead import Ahead  # loads numba

    work = made.work()
    assert made.devices is not None
    federation = Federation(
        made.population.n_clients, made.members, work.n_samples, work.n_steps, work.n_processed, made.devices
    )
    ahead = Ahead(config.schedule, federation, config.seed, work.learning_rate, n_rows=2 * made.concurrency + 256)
    n_merge = made.n_merge
    return Lane(
        ahead, versions, made.bounds, config.stop, clock, n_in_flight=made.concurrency, n_merge=n_merge
    )  # fmt: skip


def _why_not(made: Plan) -> str | None:
    """Why a run has no fast lane; None if it has."""
    config, bounds, n_merge = made.config, made.bounds, made.n_merge
    if made.devices is None or config.reduce is not None or config.drops_updates or made.methods:
        return "updates are not consumed one by one, whatever is in them"
    if reason_against(config.schedule, made.devices) or made.work().counts_steps or made.schedule().learns:
        return "the schedule is not plain"
    if config.devices.loss_probability or getattr(config.schedule, "deadline_s", None) is not None:
        return "tasks may end without an update"
    if isinstance(config.schedule, SyncSchedule) and config.schedule.cohort < made.concurrency:
        return "tasks may end without an update"
    if config.stop.target is not None or made.n_eligible > _MOST_CLIENTS:
        return "its end is not known beforehand, or there are too many clients"
    if min(_least(config.stop.updates), _least(config.stop.versions) * n_merge) < _LEAST_UPDATES:
        return "it is short"
    n_unconsumed = made.concurrency + n_merge
    least = min(bounds.worker_versions, versions_in_memory(made)) - _EVALUATED
    if bounds.server_rows <= n_unconsumed or least < n_unconsumed:
        return "there is no room for all"
    return None


def _least(stop: int | None) -> int:
    return _LEAST_UPDATES if stop is None else stop


def versions_in_memory(made: Plan) -> int:
    """How many versions rank zero may keep."""
    return made.config.memory.server_versions_bytes // (4 * made.n_version_values)


def _dealt(n: int, n_workers: int, most: int) -> int:
    """The size of groups of equal size, at most `most`, in which `n` tasks are dealt to so many workers.

    >>> _dealt(256, 2, 64), _dealt(100, 2, 64), _dealt(5, 2, 64), _dealt(300, 2, 64)
    (64, 50, 3, 50)
    """
    n_groups = n_workers * -(-n // (n_workers * most))
    return -(-n // n_groups) if n else 0


def _is_plain(item: Item) -> bool:
    """Whether a task is on the way that all tasks of the lane go."""
    if item.dropped or item.n_failed or item.elsewhere is not None:
        return False
    return item.state in (State.READY, State.HERE) or (item.state is State.POSTED and item.granted)
