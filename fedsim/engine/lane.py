"""The fast lane: a plain schedule is planned ahead in rows, and its tasks pass through without a state machine each.

Where a schedule depends on no update (`fedsim.schedule.ahead`), the order in which updates are consumed is known long
before they are trained. So the lane holds the next rows of the record's table of tasks as columns
(`fedsim.engine.rows`): the rows whose base version is there are ready, the first of them is due, and what is trained
waits in its row. Rank zero hands all that is here from the first row on to the rule together, and does little else.

Whatever is not plain (a failure, a dead worker, the exact end of a run) is left to the general path: `Server` takes
over all that the lane has, at any moment, and so it does for a checkpoint. Room is not counted here, since the lane
opens only where there is room for all that can be unconsumed. The bits do not depend on any of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.columns import Tabled, counted, looked_up
from fedsim.comm.transport import Command, Trained
from fedsim.config import StopConfig, SyncSchedule
from fedsim.engine.items import Bounds, Desk, Item, State
from fedsim.engine.rows import Rows
from fedsim.engine.shelves import Shelves
from fedsim.engine.stages import HERE, POSTED, READY, WAITING
from fedsim.engine.versions import VersionStore
from fedsim.schedule.alone import Federation, reason_against
from fedsim.schedule.schedule import Plain
from fedsim.tables import ReportTable, TaskTable
from fedsim.types import Int64, Task

if TYPE_CHECKING:
    from fedsim.engine.plan import Plan
    from fedsim.schedule.ahead import Ahead, Planned

_LEAST_UPDATES = 4096  # a shorter run is over before the compiled schedule is loaded
_MOST_CLIENTS = 2**17  # what is known of each is kept in memory
_PLANNED = 2048  # room for rows that are planned at once: whatever their number, that takes a millisecond
_EVALUATED = 64  # versions that evaluations may keep
_TOGETHER = 256  # rows that are consumed together at most
_WORTH_VALUES = 2**17  # values in them at least where they make no version: a pass takes 0.1 ms besides
_TOGETHER_VALUES = 2**22  # and values in them: 20 ms or so, in which nobody is listened to


class Depot(NamedTuple):
    """What the lane shares with the supply."""

    desks: list[Desk]
    living: list[int]
    shelves: Shelves
    host_of: Callable[[int], int]
    post: Callable[[int, Command], None]


class _Group(NamedTuple):
    """Rows that are at a worker, ascending, and from which versions how many of them start."""

    rows: Int64
    bases: list[tuple[int, int]]


@dataclass(slots=True)
class _Foreign:
    """A task that was posted before the lane opened: its item, and its row once that is known."""

    item: Item
    row: int = -1


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
        n_scalars: int = 0,
    ) -> None:
        from fedsim.engine import compiled  # loads numba, as does a schedule ahead

        self.compiled = compiled
        self._ahead = ahead
        self._versions = versions
        self._bounds = bounds
        self._stop = stop
        self._clock = clock
        self._n_in_flight = n_in_flight
        self._n_merge = n_merge
        self._n_scalars = n_scalars
        self._n_planned = 2 * (n_in_flight + n_merge)  # rows that are always known
        self._most_together = max(1, min(_TOGETHER, _TOGETHER_VALUES // versions.n_parameters))
        self._least_together = min(self._most_together, _WORTH_VALUES // versions.n_parameters)
        self._depot: Depot | None = None
        self._version = -1
        self._start(0, 0)

    def _start(self, version: int, n_consumed: int) -> None:
        self.rows = Rows(self._n_scalars)
        self.row = 0
        self._n_consumed = n_consumed  # before row 0
        self._version = version
        self._n_based: defaultdict[int, int] = defaultdict(int)  # tasks by a base that is not there yet
        self._made_s: dict[int, float] = {}
        self._groups: dict[int, _Group] = {}  # by the number of their first task
        self._foreign: dict[int, _Foreign] = {}
        self._n_ready = 0  # rows
        self._is_dealt = False  # a server that waits has posted what it could, and nothing has changed since

    @property
    def is_open(self) -> bool:
        return self._depot is not None

    # ------------------------------------------------------------------------------ opening and leaving

    def is_worth_it(self, n_reached: int, version: int) -> bool:
        """Whether the exact end of the run is far enough, as far as is known; `open` looks for that in virtual time."""
        return self._is_before_end(n_reached, version, 0)

    def _is_before_end(self, n_reached: int, version: int, n_rows: int) -> bool:
        """The same, once this many further rows are consumed."""
        stop, n = self._stop, self._n_merge
        if stop.updates is not None and n_reached + n_rows + 2 * n >= stop.updates:
            return False
        if stop.versions is not None and version - (-n_rows // n) + 2 > stop.versions:
            return False
        if stop.virtual_s is None or not self.is_open:
            return True
        self._plan(n_rows + 2 * n)
        return bool(self.rows.arrival_s[self.row - self.rows.first + n_rows + 2 * n - 1] <= stop.virtual_s)

    def _planned_to_open(self) -> list[Planned] | None:
        """The first rows, as many as must come before the end in virtual time; None if they do not."""
        least, stop_s = 2 * self._n_merge, self._stop.virtual_s
        blocks = [self._ahead.plan()]
        while sum(block.rates.size for block in blocks) < least:
            blocks.append(self._ahead.plan())
        arrival_s = np.concatenate([block.tasks.arrival_s for block in blocks])
        return blocks if stop_s is None or arrival_s[least - 1] <= stop_s else None

    def open(self, plain: Plain, items: Sequence[Item], depot: Depot) -> bool:
        """Goes on from a schedule that made a version and dispatched, with what is known of its tasks; if it can."""
        if any(not _is_plain(item) for item in items):
            return False
        self._ahead.take_over(plain)
        blocks = self._planned_to_open()
        if blocks is None:
            return False
        self._start(plain.version, plain.n_consumed)
        for item in items:
            self._made_s.setdefault(item.task.base_version, item.submitted_s)
            if item.state is not State.READY:
                self._foreign[item.task.task] = _Foreign(item)
        self._made_s.setdefault(plain.version, self._clock())
        self._depot, self._hosts = depot, Tabled(depot.host_of)
        for planned in blocks:
            self._know(planned)
        self._plan(self._n_planned)
        return True

    def owed(self) -> tuple[list[Task], Plain]:
        """The tasks that the next version is still made of, and the schedule right after that was decided."""
        at, stop = self.row - self.rows.first, self._next_making() + 1
        tasks = [self.rows.task(index) for index in range(at, stop)]
        return tasks, self._ahead.at(self._n_consumed + self.rows.first + stop)

    def items(self, tasks: Sequence[Task]) -> list[Item]:
        """The tasks that are not consumed as the general path keeps them."""
        rows, at = self.rows, self.row - self.rows.first
        index_of = {number: at + i for i, number in enumerate(rows.number[at:].tolist())}
        items = []
        for task in tasks:
            item = Item(task, (task.due_s, task.arrival_s, task.task), submitted_s=self._made_s[task.base_version])
            index = index_of.get(task.task)
            foreign = self._foreign.get(task.task)
            if foreign is not None:
                known = foreign.item
                item.state, item.worker, item.granted = known.state, known.worker, known.granted
                item.report, item.row_P, item.arrived_s = known.report, known.row_P, known.arrived_s
            elif index is not None and rows.stage[index] == POSTED:
                item.state, item.worker, item.granted = State.POSTED, int(rows.worker[index]), True
            elif index is not None and rows.stage[index] == HERE:
                item.state, item.report, item.row_P = State.HERE, rows.report(index), rows.vector(index)
                item.arrived_s, item.worker = float(rows.arrived_s[index]), int(rows.worker[index])
            items.append(item)
        return items

    def close(self) -> None:
        """Somebody else goes on."""
        self._depot = None
        self._start(0, 0)

    # ------------------------------------------------------------------------------ rows

    def n_due(self, n_reached: int) -> int:
        """How many updates are here that are next, as many as can be consumed together; near the end of the run none
        beyond the next version."""
        at = self.row - self.rows.first
        n_known = self.rows.stop - self.row - self._n_in_flight - self._n_merge  # whose versions' tasks are known
        n: int = self.compiled.n_here(self.rows.stage, at, min(self._most_together, n_known))
        if n < self._least_together and n < n_known and not self.rows.makes_version[at : at + n].any():
            return 0
        if n and not self._is_before_end(n_reached, self._version, n):  # which may plan, and move all indices
            n = min(n, self._next_making() + 1 - (self.row - self.rows.first))
        return n

    def n_before(self, n: int, n_versions: int) -> int:
        """How many of the next `n` rows make no more than so many versions."""
        at = self.row - self.rows.first
        making = np.flatnonzero(self.rows.makes_version[at : at + n])
        return n if making.size <= n_versions else int(making[n_versions])

    def is_next_here(self) -> bool:
        """Whether the update that is due is here."""
        return bool(self.rows.stage[self.row - self.rows.first] == HERE)

    def _next_making(self) -> int:
        """The index of the next row that makes a version."""
        at = self.row - self.rows.first
        return at + int(self.rows.makes_version[at:].argmax())

    def consumed(self, n: int, now_s: float) -> None:
        """The next rows were applied, and what starts from the versions that were published can be trained."""
        rows, at = self.rows, self.row - self.rows.first
        self._is_dealt = False
        rows.let_go(slice(at, at + n))
        if self._foreign:
            for number in rows.number[at : at + n].tolist():
                self._foreign.pop(number, None)
        self.row += n
        stage, base, submitted_s = rows.stage, rows.base, rows.submitted_s
        self._n_ready += self.compiled.made_ready(stage, base, submitted_s, at + n, self._version, now_s)

    def published(self, version: int, wall_s: float) -> int:
        """How many tasks that were dispatched start from the version, which is there now."""
        self._version = version
        self._made_s[version] = wall_s
        return self._n_based.pop(version, 0)

    def plan(self) -> None:
        """Sees to it that enough of the next rows are known."""
        self._plan(self._n_planned)

    def unrecorded(self, least: int = 1) -> list[NDArray[Any]] | None:
        """Columns for the record of what was consumed and is not there yet, if that is so many rows at least."""
        return self.rows.unrecorded(self.row) if self.row - self.rows.n_recorded >= least else None

    def _plan(self, n: int) -> None:
        """Sees to it that `n` rows from the next on are known."""
        while self.rows.stop - self.row < n:
            self._know(self._ahead.plan())

    def _know(self, planned: Planned) -> None:
        """Appends rows."""
        rows = self.rows
        for version, count in planned.n_based.items():
            if version <= self._version:
                self._versions.retain(version, count)
            else:
                self._n_based[version] += count
        assert self._depot is not None
        self._is_dealt = False
        first, base, made_s = rows.stop, planned.tasks.base_version, self._made_s
        submitted_s = looked_up(base, lambda versions: np.array([made_s.get(v, math.nan) for v in versions.tolist()]))
        stage = np.where(base <= self._version, READY, WAITING).astype(np.int8)
        rows.extend(planned, self._hosts(planned.tasks.client), stage, submitted_s)
        if self._foreign:
            self._know_foreign(first)
        self._n_ready = int(np.count_nonzero(rows.stage[self.row - rows.first :] == READY))
        self._forget()

    def _know_foreign(self, first: int) -> None:
        """Finds those posted before among the rows from `first` on."""
        for row, number in enumerate(self.rows.number[first - self.rows.first :].tolist(), first):
            foreign = self._foreign.get(number)
            if foreign is None:
                continue
            foreign.row = row
            self.rows.stage[row - self.rows.first] = POSTED
            self.rows.worker[row - self.rows.first] = foreign.item.worker
            if foreign.item.state is State.HERE:
                self._put_foreign(foreign)

    def _put_foreign(self, foreign: _Foreign) -> None:
        item, index = foreign.item, np.array([foreign.row - self.rows.first])
        assert item.report is not None and item.row_P is not None
        reports = ReportTable.of([item.report])
        self.rows.submitted_s[index] = item.submitted_s
        self.rows.put(index, reports.rank, reports.rows, item.row_P[None], item.arrived_s)

    def _forget(self) -> None:
        """Lets go of what no row asks for any more."""
        self._ahead.forget(self._n_consumed + self.row)
        for version in [version for version in self._made_s if version not in self._versions]:
            del self._made_s[version]

    # ------------------------------------------------------------------------------ workers

    def pump(self, is_waiting: bool) -> None:
        """Posts groups to workers that have none, and to others what is needed before anything new can start."""
        if self._is_dealt:
            return
        self._is_dealt = is_waiting
        if not self._n_ready:
            return
        depot, rows, bounds = self._depot, self.rows, self._bounds
        assert depot is not None
        desks = [(worker, depot.desks[worker].n_groups, depot.desks[worker].n_rows) for worker in depot.living]
        desks_W3 = np.array(desks, np.int64).reshape(-1, 3)
        n_unknown = sum(foreign.row < 0 for foreign in self._foreign.values())
        index, groups = self.compiled.dealt_out(
            rows.stage, rows.host, rows.makes_version, rows.worker, self.row - rows.first, self._n_ready, n_unknown,
            desks_W3, bounds.n_groups, bounds.group_size, bounds.worker_rows, is_waiting,
        )  # fmt: skip
        start = 0
        for worker, stop in groups.tolist():
            self._post(worker, index[start:stop])
            start = stop

    def _post(self, worker: int, index: Int64) -> None:
        """Posts a group of the rows with these indices."""
        depot, rows = self._depot, self.rows
        assert depot is not None
        desk, bases = depot.desks[worker], counted(rows.base[index])
        coming = [version for version, n in bases if depot.shelves.pin_for_tasks(worker, version, n)]
        tasks = rows.tasks.take(index)  # a third of what an index takes with records
        self._groups[int(tasks["task"][0])] = _Group(index + rows.first, bases)
        desk.n_groups += 1
        desk.n_rows += index.size
        self._n_ready -= index.size
        depot.post(worker, Command(TaskTable(tasks), [True] * index.size, coming))

    def trained(self, message: Trained) -> None:
        """A group is here."""
        self._is_dealt = False
        depot, reports = self._depot, ReportTable.of(message.reports)
        assert depot is not None
        desk, now_s = depot.desks[message.worker], self._clock()
        desk.n_groups -= 1
        desk.n_rows -= len(reports)
        group = self._groups.pop(int(reports.rows["task"][0]), None) if len(reports) else None
        if group is None:
            self._foreign_trained(message, now_s)
            return
        for version, n in group.bases:
            depot.shelves.unpin_from_tasks(message.worker, version, n)
        self.rows.put(group.rows - self.rows.first, reports.rank, reports.rows, message.rows, now_s)

    def _foreign_trained(self, message: Trained, now_s: float) -> None:
        """A group is here that was posted before the lane opened."""
        assert self._depot is not None
        for report, row_P in zip(message.reports, message.rows, strict=True):
            foreign = self._foreign[report.task]
            item = foreign.item
            self._depot.shelves.unpin_from_tasks(message.worker, item.task.base_version, 1)
            item.state, item.report, item.row_P, item.arrived_s = State.HERE, report, row_P, now_s
            if foreign.row >= 0:
                self._put_foreign(foreign)


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
    ahead = Ahead(
        config.schedule, federation, config.seed, work.learning_rate, n_rows=max(2 * made.concurrency, _PLANNED)
    )
    return Lane(
        ahead, versions, made.bounds, config.stop, clock,
        n_in_flight=made.concurrency, n_merge=made.n_merge, n_scalars=len(made.rule.scalar_names),
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
    if config.stop.target is not None or made.population.n_clients > _MOST_CLIENTS:
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


def _is_plain(item: Item) -> bool:
    """Whether a task is on the way that all tasks of the lane go."""
    if item.dropped or item.n_failed or item.elsewhere is not None:
        return False
    return item.state in (State.READY, State.HERE) or (item.state is State.POSTED and item.granted)
