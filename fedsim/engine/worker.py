"""A worker: trains groups, keeps results that the server has no room for, evaluates versions.

It decides nothing: what it keeps, forgets and drops is what the server tells it (`fedsim.engine.supply`).
"""

from __future__ import annotations

import math
import os
import resource
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from fedsim.aggregation.fixed import FixedSum
from fedsim.comm.faults import Trouble
from fedsim.comm.pieces import ALONE_BYTES
from fedsim.comm.transport import Collected, Counters, Delivered, Evaluated, Failed, Summed, Trained
from fedsim.comm.wire import MAX_TASKS
from fedsim.errors import FedsimError
from fedsim.recycled import Recycled
from fedsim.tables import TaskTable
from fedsim.training.clients.coding import encoded
from fedsim.types import EvaluationRow, Float32, Row, Rows, Task, TaskReport

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEASURE_EVERY_S = 0.5  # asking the system costs as much as training a small model


class Trainer(Protocol):
    """What a worker asks of a training path; `takes_rows`: it writes to rows that lie apart, too."""

    takes_rows: bool

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out: Rows,
        progress: Callable[[], None],
    ) -> Sequence[TaskReport]: ...


class Evaluator(Protocol):
    """What a worker asks of the evaluation."""

    def evaluate(self, vector_P: Float32, *, number: int) -> list[EvaluationRow]: ...


class States(Protocol):
    """What a worker asks of the states that its clients keep (`fedsim.training.clients`)."""

    def commit(self, tasks: Sequence[int]) -> None: ...

    def discard(self, tasks: Sequence[int]) -> None: ...

    def collect(self) -> tuple[list[int], Float32]: ...

    def adopt(self, clients: Sequence[int], rows_nS: Float32) -> None: ...


class Room(Protocol):
    """Rows that a worker has in common with rank zero (`fedsim.comm.commons`)."""

    def take(self, n: int) -> tuple[Sequence[int], Float32 | list[Float32]] | None: ...

    def give_back(self, numbers: Sequence[int]) -> None: ...


class Worker:
    """The state of one worker: versions it knows, results it holds. `index` is the server's name for it."""

    def __init__(
        self,
        index: int,
        host: str,
        n_parameters: int,
        trainer: Trainer,
        evaluator: Evaluator,
        clock: Callable[[], float],
        trouble: Trouble,
        n_workers: int = 1,
        states: States | None = None,
        sums_in: FixedSum | None = None,
        encoded_bytes: int | None = None,
        receive: Callable[[Row], Float32] = lambda vector_P: vector_P,
        room: Room | None = None,
        group_size: int = 1,
    ) -> None:
        """`encoded_bytes` of a row are what its clients have left there to travel, None: all of it; `receive` makes
        float32 of a version as it travels; `room` is where rank zero finds updates that are not encoded; `group_size`
        is how many tasks come at once, or fewer."""
        self._index = index
        self._host = host
        self._n_parameters = n_parameters
        self._trainer = trainer
        self._evaluator = evaluator
        self._clock = clock
        self._trouble = trouble
        self._n_workers = n_workers
        self._states = states
        self._sum = sums_in
        self._encoded_bytes = encoded_bytes
        self._receive = receive
        self._room = room if encoded_bytes is None else None
        self._group_size = group_size
        self._recycled = Recycled()
        self._versions: dict[int, Float32] = {}
        self._held: dict[int, Row] = {}
        self._measured_s = -math.inf
        self.counters = Counters()

    def train(self, tasks: Sequence[Task], send: Sequence[bool], progress: Callable[[], None]) -> Trained:
        """The reports of a group, with the rows that are to be sent at once; the others are held."""
        start_s = self._clock()
        places, wanted = self._rows(len(tasks), is_shared=all(send))
        out = wanted if isinstance(wanted, np.ndarray) or self._trainer.takes_rows else self._own_rows(len(tasks))
        failed: list[Failed] = []
        reports: Sequence[TaskReport]
        rows: Row | Sequence[Row]
        try:
            self._trouble.before_group(tasks, progress)
            reports = self._trainer.train(tasks, self._versions.__getitem__, out, progress)
        except (Exception, SystemExit) as error:
            failed.append(self._failed(error, tasks))
            reports = []
        except BaseException:  # sent home
            self._give_back(places)
            raise
        if failed and len(tasks) > 1:
            reports, kept = self._one_by_one(tasks, out, progress, failed)
            rows, send = self._without(places, out, kept), [send[row] for row in kept]
            tasks, places = [tasks[row] for row in kept], []
        elif failed:
            rows, send, tasks, places = self._without(places, out, []), (), (), []
        else:
            rows = self._finished(wanted, out)
        counters = self.counters
        counters.busy_s += self._clock() - start_s
        counters.n_tasks += len(tasks)
        counters.n_groups += 1
        self._measure()
        if all(send):
            return Trained(self._index, reports, send, rows, failed, places)
        numbers = TaskTable.of(tasks).rows["task"].tolist()
        for number, sent, row in zip(numbers, send, rows, strict=True):
            if not sent:
                self._held[number] = row.copy()
        return Trained(self._index, reports, send, _some(rows, send), failed)

    def _rows(self, n: int, is_shared: bool) -> tuple[Sequence[int], Rows]:
        """Where the updates of a group are to be, and which of the shared rows that is."""
        shared = self._room.take(n) if self._room is not None and is_shared else None
        return ([], self._own_rows(n)) if shared is None else shared

    def _own_rows(self, n: int) -> Float32:
        """Rows (n, P) of this worker's own; large ones in the same memory again, since new memory has to be cleared."""
        if 4 * self._n_parameters < ALONE_BYTES or n > self._group_size:
            return np.empty((n, self._n_parameters), np.float32)
        whole = self._recycled.empty(self._group_size * self._n_parameters)
        return whole[: n * self._n_parameters].reshape(n, self._n_parameters)

    def _finished(self, wanted: Rows, out: Rows) -> Row | Sequence[Row]:
        """The updates of a group that was trained into `out`, as they are to travel, or to be where they are wanted."""
        if out is not wanted:
            for row, update in zip(wanted, out, strict=True):
                row[:] = update
        if self._encoded_bytes is None:
            return wanted
        assert isinstance(out, np.ndarray)
        return encoded(out, self._encoded_bytes)

    def _without(self, places: Sequence[int], out: Rows, kept: Sequence[int]) -> Row:
        """The updates of some tasks of a group, to be sent, since others failed; its shared rows are given back."""
        rows = np.stack([out[i] for i in kept]) if kept else np.empty((0, self._n_parameters), np.float32)
        self._give_back(places)
        return rows if self._encoded_bytes is None else encoded(rows, self._encoded_bytes)

    def _give_back(self, places: Sequence[int]) -> None:
        if places:
            assert self._room is not None
            self._room.give_back(places)

    def _one_by_one(
        self, tasks: Sequence[Task], out: Rows, progress: Callable[[], None], failed: list[Failed]
    ) -> tuple[list[TaskReport], list[int]]:
        """Trains the tasks of a group that failed again, each alone: the reports and rows of those that did not fail.

        What the group was said to have failed by is replaced by the tasks that did; a task's bits do not depend on its
        group, so the others' are what they would have been.
        """
        reports: list[TaskReport] = []
        kept: list[int] = []
        alone: list[Failed] = []
        for row, task in enumerate(tasks):
            try:
                self._trouble.before_training([task])
                reports += self._trainer.train([task], self._versions.__getitem__, out[row : row + 1], progress)
                kept.append(row)
            except (Exception, SystemExit) as error:
                alone.append(self._failed(error, [task]))
        if alone:
            failed[:] = alone
        return reports, kept

    def deliver(self, tasks: Sequence[int]) -> Delivered:
        """Held results, in the order asked for, which are held no longer."""
        return Delivered(self._index, tasks, np.stack([self._held.pop(task) for task in tasks]))

    def drop(self, tasks: Sequence[int]) -> None:
        """Throws held results away."""
        for task in tasks:
            del self._held[task]

    def before_versions(self) -> None:
        """Called when versions are about to come in."""
        self._trouble.before_versions()

    def add_up(self, tasks: Sequence[int], weights: Sequence[float]) -> None:
        """Adds held results to the sum, and holds them no longer."""
        for task, weight in zip(tasks, weights, strict=True):
            assert self._sum is not None
            self._sum.add(self._held.pop(task), weight)

    def total(self) -> Summed:
        """What was added since the last call."""
        assert self._sum is not None
        return Summed(self._index, self._sum.take())

    def learn(self, version: int, vector_P: Row) -> None:
        """Keeps a version, shape (P,) as it travels, until told to forget it."""
        self._versions[version] = self._receive(vector_P)

    def forget(self, versions: Sequence[int]) -> None:
        """Lets versions go."""
        for version in versions:
            del self._versions[version]

    def settle(self, commit: Sequence[int], discard: Sequence[int]) -> None:
        """The states of some tasks are what their clients keep from now on, those of others are for nobody."""
        assert self._states is not None
        self._states.commit(commit)
        self._states.discard(discard)

    def adopt(self, clients: Sequence[int], states_nS: Float32) -> None:
        """Takes over what clients keep, (n, S)."""
        assert self._states is not None
        self._states.adopt(clients, states_nS)

    def collect(self) -> list[Collected]:
        """What all clients keep here, in messages of bounded size."""
        assert self._states is not None
        clients, rows_nS = self._states.collect()
        starts = range(0, max(len(clients), 1), MAX_TASKS)
        cuts = [slice(start, start + MAX_TASKS) for start in starts]
        return [Collected(self._index, clients[cut], rows_nS[cut], cut is cuts[-1]) for cut in cuts]

    def evaluate(self, version: int) -> Evaluated:
        """The test results of a known version."""
        self._trouble.before_evaluation()
        start_s = self._clock()
        rows = self._evaluator.evaluate(self._versions[version], number=version)
        self.counters.evaluating_s += self._clock() - start_s
        self._measure()
        return Evaluated(self._index, version, rows)

    def failure(self, error: BaseException) -> Failed:
        """What the server is told of an exception: its line if a user can mend it, else the traceback."""
        return self._failed(error, ())

    def _failed(self, error: BaseException, tasks: Sequence[Task]) -> Failed:
        client, task = (tasks[0].client, tasks[0].task) if len(tasks) == 1 else (-1, -1)
        if isinstance(error, FedsimError):
            return Failed(self._index, client, task, True, str(error))
        which = ", ".join(f"task {t.task} (client {t.client}, version {t.base_version})" for t in tasks[:8])
        head = f"### worker {self._index + 1} of {self._n_workers} on {self._host}" + (
            f", training {which}" if which else ""
        )
        return Failed(self._index, client, task, False, head + "\n" + "".join(traceback.format_exception(error)))

    def _measure(self) -> None:
        now_s = self._clock()
        if now_s - self._measured_s > _MEASURE_EVERY_S:
            self._measured_s = now_s
            self.counters.cpu_s, self.counters.rss_bytes = process_usage()


def _some(rows: Row | Sequence[Row], wanted: Sequence[bool]) -> Row:
    """Those rows that are wanted, (n, P): never such as are shared, of which all are."""
    assert isinstance(rows, np.ndarray)
    some: Row = rows[np.array(wanted, dtype=bool)]
    return some


def process_usage() -> tuple[float, float]:
    """CPU seconds used by this process so far, and its resident memory in bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            rss_bytes = float(int(statm.read().split()[1]) * _PAGE_BYTES)
    except OSError:  # not Linux: the peak is all there is
        rss_bytes = float(usage.ru_maxrss * 1024)
    return usage.ru_utime + usage.ru_stime, rss_bytes
