"""The server of runs that may have a fast lane: while that is open, updates are consumed as they come in, together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.aggregation import Arrival
from fedsim.aggregation.batch import Batch, one_by_one
from fedsim.columns import counted
from fedsim.engine.lane import Lane
from fedsim.engine.making import Left, Merged
from fedsim.engine.passing import SupplyWithLane
from fedsim.engine.rows import Rows
from fedsim.engine.server import Server
from fedsim.errors import RecordError
from fedsim.types import Float32, Float64, Int64, Outcome, Update

_RECORDED_TOGETHER = 1024  # rows
_RECORD_EVERY_S = 0.1  # or fewer, so often
_OPEN_EVERY = 64  # versions after which it is tried again to open the lane


class _Made(NamedTuple):
    """Versions from number `first` on, made at one moment of the wall clock: when in virtual time (V,), and what they
    were made of (V, 4), see `Merged.numbers`."""

    first: int
    virtual_s_V: Float64
    wall_s: float
    numbers_V4: Float64


def _columns(made: Sequence[_Made]) -> list[NDArray[Any]]:
    """Their columns in the record's table of versions."""
    n_each = [one.virtual_s_V.size for one in made]
    version = np.arange(made[0].first, made[0].first + sum(n_each))
    parts = zip(*((one.virtual_s_V, one.numbers_V4) for one in made), strict=True)
    virtual_s, numbers = (np.concatenate(part) for part in parts)
    return Merged.columns(version, virtual_s, np.repeat([one.wall_s for one in made], n_each), numbers)


class ServerWithLane(Server):
    """See `Server`. It goes over from one way to the other between two versions, or in the middle of one."""

    def __init__(self, *, supply: SupplyWithLane, lane: Lane | None = None, **named: Any) -> None:
        super().__init__(supply=supply, **named)
        self._passing = supply
        self._lane = lane
        self._open_at = 0
        self._recorded_s = 0.0
        self._begun_4: Float64 = self._merged.numbers()  # of the version being made, while the lane is open
        self._unrecorded: list[_Made] = []  # versions

    def _went_ahead(self) -> bool:
        lane = self._lane
        if lane is None or not self._opens_lane(lane):
            return False
        self._follow_lane(lane)
        self._catch_up()
        return True

    def _keep(self) -> None:
        is_in_lane = self._keeper is not None and self._lane is not None and self._lane.is_open
        virtual_s = self.pulse.virtual_s
        if is_in_lane:
            self._take_from_lane()
        try:
            super()._keep()
        finally:
            if is_in_lane:
                self._give_to_lane()
                self.pulse.virtual_s = virtual_s

    def _attend(self) -> None:
        if self._lane is not None and self._lane.is_open:
            now_s = self._clock()
            if self._recorder.is_due(now_s) or now_s - self._recorded_s >= _RECORD_EVERY_S:
                self._record_rows(self._lane)  # a reader finds each version's tasks, or soon will
        super()._attend()

    def _opens_lane(self, lane: Lane) -> bool:
        """Opens the fast lane right after a version was made, where there is one, and everything is plain."""
        version = self.pulse.version
        if version < self._open_at or self._owed or self._left is not None or self._merged.n_updates:
            return False
        self._open_at = version + _OPEN_EVERY
        if not lane.is_worth_it(self._n_reached, version):
            return False
        is_open = self._passing.open_lane(lane, self._live.plain(), self._leave_lane)
        if is_open:
            self._rule.hasten()
            self._begun_4 = self._merged.numbers()
        return is_open

    def _follow_lane(self, lane: Lane) -> None:
        """Applies the updates that are due, all together that are here, until something is not plain."""
        try:
            while lane.is_open:
                n = self._n_due(lane)
                if not n:
                    self._wait_in_lane(lane)
                    continue
                makes_version = self._consume_rows(lane, n)
                if lane.is_open and lane.is_next_here():  # else it is listened to right away
                    self._supply.listen(wait=False)
                self._rest()
                if makes_version and lane.is_open and not lane.is_worth_it(self._n_reached, self.pulse.version):
                    self._leave_lane()
                    self._lane = None  # the end is exact, and near
        except BaseException:
            with contextlib.suppress(RecordError):  # why the run ends is another thing
                self._record_rows(lane)
            raise
        self._record_rows(lane)

    def _n_due(self, lane: Lane) -> int:
        """How many rows can be consumed now: evaluations of what they make must find a place, since nobody is listened
        to in the middle."""
        n = lane.n_due(self._n_reached)
        if n and (n_versions := self._evaluations.n_versions_at_once(self.pulse.version)) is not None:
            n = lane.n_before(n, n_versions)
        return n

    def _consume_rows(self, lane: Lane, n: int) -> bool:
        """Applies the next rows of the lane; whether the last of them made a version.

        The versions that came of them go out before anything else is done: workers may be waiting for them.
        """
        rows, first = lane.rows, self.pulse.version
        part = slice(lane.row - rows.first, lane.row - rows.first + n)
        makes_version, staleness, bases = rows.makes_version[part], rows.staleness[part], rows.base[part]
        assert rows.met_version[part.start] == first
        one = partial(self._one_of, rows, part.start)
        batch = Batch(rows.reports["n_samples"][part], staleness, makes_version, rows.address[part], one)
        self._is_torn = True
        if self._unpacking is None:
            self._state, consumed = self._rule.consume(self._state, batch)
        else:
            self._state, consumed = one_by_one(self._rule, self._state, batch)
        wall_s = self._clock()
        self._hand_out(lane, consumed.versions, wall_s)
        rows.weight[part], rows.scalars[part] = consumed.weights, consumed.scalars
        lane.consumed(n, wall_s)
        lane.pump(is_waiting=not lane.is_next_here())
        self._n_reached += n
        self.pulse.n_updates += n
        self._note_versions(first, staleness, consumed.weights, makes_version, rows.arrival_s[part], wall_s)
        self.pulse.virtual_s = float(rows.arrival_s[part][-1])
        for version, n_users in counted(bases):
            self._supply.release_version(version, n_users)
        lane.plan()
        self._is_torn = False
        self._record_rows(lane, _RECORDED_TOGETHER)
        return bool(makes_version[-1])

    def _hand_out(self, lane: Lane, versions: Sequence[Float32], wall_s: float) -> None:
        """Keeps the next versions for those who need them: tasks, an evaluation, and the last for the server."""
        first = self.pulse.version + 1
        for version, vector_P in enumerate(versions, first):
            is_last = version == first + len(versions) - 1
            n_users = lane.published(version, wall_s) + is_last + self._evaluations.are_due(version)
            if n_users:
                vector_P.flags.writeable = False
                self._versions.add(version, vector_P, n_users)
        self.pulse.version += len(versions)

    def _note_versions(
        self,
        first: int,
        staleness: Int64,
        weights: Float64,
        makes_version: NDArray[np.bool_],
        arrival_s: Float64,
        wall_s: float,
    ) -> None:
        """Notes and evaluates the versions after `first` that the updates (R,) made."""
        assert self._lane is not None
        made_V4, self._begun_4 = self._lane.compiled.merged(self._begun_4, staleness, weights, makes_version)
        if not len(made_V4):
            return
        virtual_s_V = arrival_s[makes_version]
        self._unrecorded.append(_Made(first + 1, virtual_s_V, wall_s, made_V4))
        for number, at_s in enumerate(virtual_s_V.tolist(), first + 1):
            if self._evaluations.are_due(number):
                self._record_rows(self._lane)  # a version is there before its evaluation is
                self._evaluations.published(number, at_s)
                self._supply.release_version(number)
        self._supply.release_version(first)
        self._evaluations.collect()

    def _one_of(self, rows: Rows, first: int, i: int) -> tuple[Update, Arrival]:
        """All that is known of the i-th of the rows from index `first` on."""
        task = rows.task(first + i)
        base_P = self._versions.get(task.base_version) if self._needs_base else None
        vector_P = rows.vector(first + i)
        if self._unpacking is not None:
            vector_P = self._unpacking.vector(vector_P, base_P)
        staleness, met_version = int(rows.staleness[first + i]), int(rows.met_version[first + i])
        arrival = Arrival(staleness, task, met_version, task.arrival_s, base_P)
        return Update(rows.report(first + i), vector_P), arrival

    def _record_rows(self, lane: Lane, least: int = 1) -> None:
        """Records what the lane consumed and what was made of it, if that is so many rows at least."""
        columns = lane.unrecorded(least)
        if columns is None:
            return
        if self._unrecorded:
            self._recorder.extend_columns("versions", _columns(self._unrecorded))
            self._unrecorded.clear()
        self._recorder.extend_columns("tasks", columns)
        self._recorded_s = self.pulse.wall_s

    def _wait_in_lane(self, lane: Lane) -> None:
        lane.pump(is_waiting=True)
        while lane.is_open and not self._supply.listen():
            self._while_waiting()

    def _leave_lane(self) -> None:
        """The general path goes on."""
        assert self._lane is not None
        self._take_from_lane()
        self._lane.close()
        self._passing.leave_lane()

    def _take_from_lane(self) -> None:
        """All that the lane knows, as the general path keeps it: waiting for what the next version is made of."""
        assert self._lane is not None
        self._record_rows(self._lane)
        owed, plain = self._lane.owed()
        self._live.put_plain(plain)
        self._passing.take_over(self._lane.items([*owed, *plain.tasks]))
        self._owed.extend((task, Outcome.APPLIED) for task in owed)
        self._merged = Merged.of(self._begun_4)
        self._n_reached += len(owed)
        self._left = Left(merge=True)
        self.pulse.virtual_s = plain.now_s

    def _give_to_lane(self) -> None:
        """The lane, which has gone on knowing it all, has it alone again."""
        self._n_reached -= len(self._owed)
        self._owed.clear()
        self._left = None
        self._passing.give_up()
