"""Device profiles: how long a client's tasks take, whether their updates get lost, and when the client is there.

Everything is drawn from keys: what belongs to a client (slowness, links, phase) from (seed, purpose, client, 0), what
belongs to a task (compute time, loss) from (seed, purpose, 0, task). Nothing is made for a client before it is asked
for. Memos keep what was drawn last; no value depends on them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsim import seeding
from fedsim.config import DevicesConfig, LinkConfig
from fedsim.population.availability import build_availability
from fedsim.population.laws import Law, build_law
from fedsim.population.windows import ROUNDING
from fedsim.seeding import Purpose, Uniforms
from fedsim.types import Float64, Int64

V = TypeVar("V")

TASKS_PER_BLOCK = 1024
KEPT_BLOCKS = 16
KEPT_PROFILES = 100_000
CHUNK = 2**16
SAMPLED_CLIENTS = 4096


class TaskPlan(NamedTuple):
    """What a device profile says of a task at its dispatch. A lost update is known to be lost at `arrival_s`."""

    download_s: float
    compute_s: float
    upload_s: float
    arrival_s: float
    lost: bool


class Profile(NamedTuple):
    """What is drawn once a client."""

    slowness: float
    download_s: float
    upload_s: float


class _Link:
    """One direction of the network: seconds for a transfer of `n_bytes`, a client each."""

    def __init__(
        self,
        config: LinkConfig,
        where: str,
        purposes: tuple[Purpose, Purpose],
        n_bytes: int,
        base_dir: Path,
        n_clients: int,
    ) -> None:
        self._latency = build_law(config.latency_s, f"{where}.latency_s", base_dir, n_clients)
        rate = config.bytes_per_s
        self._rate = None if rate is None else build_law(rate, f"{where}.bytes_per_s", base_dir, n_clients, rate=True)
        self._latency_purpose, self._rate_purpose = purposes
        self._n_bytes = float(n_bytes)

    def one(self, seed: int, client: int) -> float:
        latency = _draw_one(self._latency, seed, self._latency_purpose, client)
        if self._rate is None:
            return latency
        return latency + self._n_bytes / _draw_one(self._rate, seed, self._rate_purpose, client)

    def many(self, seed: int, clients: Int64) -> Float64:
        latency = _draw_many(self._latency, seed, self._latency_purpose, clients)
        if self._rate is None:
            return latency
        return latency + self._n_bytes / _draw_many(self._rate, seed, self._rate_purpose, clients)


class Devices:
    """The devices of all clients of a run, on the virtual clock."""

    def __init__(
        self,
        config: DevicesConfig,
        seed: int,
        n_clients: int,
        base_dir: Path,
        download_bytes: int,
        upload_bytes: int,
        *,
        kept_profiles: int = KEPT_PROFILES,
        kept_blocks: int = KEPT_BLOCKS,
    ) -> None:
        """Reads the traces that `config` names (paths from `base_dir`); draws nothing yet.

        A task downloads `download_bytes` and uploads `upload_bytes`. `kept_profiles` and `kept_blocks` (at least 1)
        bound the memos. Raises ConfigError or DataError for what cannot be simulated.
        """
        self._seed, self._n_clients = seed, n_clients
        compute, key = config.compute, "devices"
        self._time = build_law(compute.time, f"{key}.compute.time", base_dir, n_clients)
        self._slowness = build_law(compute.slowness, f"{key}.compute.slowness", base_dir, n_clients)
        down, up = (Purpose.DOWNLOAD_LATENCY, Purpose.DOWNLOAD_RATE), (Purpose.UPLOAD_LATENCY, Purpose.UPLOAD_RATE)
        self._download = _Link(config.download, f"{key}.download", down, download_bytes, base_dir, n_clients)
        self._upload = _Link(config.upload, f"{key}.upload", up, upload_bytes, base_dir, n_clients)
        self._windows = build_availability(config.availability, f"{key}.availability", seed, base_dir, n_clients)
        self.always_available: bool = self._windows.always
        self._on_offline = "finish" if self.always_available else config.on_offline
        self._per, self._loss_probability = compute.per, config.loss_probability
        self._kept_profiles, self._kept_blocks = kept_profiles, kept_blocks
        self._profiles: OrderedDict[int, Profile] = OrderedDict()
        self._blocks: OrderedDict[int, tuple[list[float], list[float], list[bool]]] = OrderedDict()

    # ---------------------------------------------------------------------------------------------- tasks

    def plan(self, client: int, task: int, n_steps: int, n_samples: int, dispatch_s: float) -> TaskPlan:
        """Durations, arrival and loss of one task; `n_samples` counts the samples that it processes.

        A task dispatched to an absent client starts with the client's next window (`pause`), is lost (`lose`), or goes
        on (`finish`). If a paused client's windows end before the task does, the update is lost when the last of them
        ends (at dispatch, if that is past).
        """
        profile = self._profile(client)
        time, lost = self._task(client, task)
        units = 1 if self._per == "task" else n_steps if self._per == "step" else n_samples
        compute = time * profile.slowness * units
        arrival = dispatch_s + profile.download_s + compute + profile.upload_s
        if self._on_offline == "pause":
            arrival, gone = self._paused(client, dispatch_s, arrival)
            lost = lost or gone
        elif self._on_offline == "lose":
            start, end = self._windows.window(client, dispatch_s)
            lost = lost or start > dispatch_s or arrival > end * (1.0 + ROUNDING)
        return TaskPlan(profile.download_s, compute, profile.upload_s, arrival, lost)

    def plan_many(
        self, clients: Int64, tasks: Int64, n_steps: Int64, n_samples: Int64, dispatch_s: float
    ) -> list[TaskPlan]:
        """`plan` of a whole cohort, in order, equal bit for bit; all arrays of shape (G,).

        Profiles that are not kept are drawn in bulk.
        """
        chunk = max(1, min(CHUNK, self._kept_profiles))
        plans: list[TaskPlan] = []
        for at in range(0, clients.size, chunk):
            part = slice(at, at + chunk)
            self._keep_profiles(clients[part])
            rows = zip(*(array[part].tolist() for array in (clients, tasks, n_steps, n_samples)), strict=True)
            plans += [self.plan(client, task, steps, samples, dispatch_s) for client, task, steps, samples in rows]
        return plans

    def _paused(self, client: int, dispatch_s: float, arrival_s: float) -> tuple[float, bool]:
        """(arrival, lost) of a task that stands still while its client is away."""
        start, end = self._windows.window(client, dispatch_s)
        if start > dispatch_s:
            arrival_s = start + (arrival_s - dispatch_s)
        if arrival_s > end:
            arrival_s = self._windows.resumed_end_s(client, max(start, dispatch_s), arrival_s)
        if arrival_s < math.inf:
            return arrival_s, False
        return max(self._windows.last_end_s(client), dispatch_s), True

    def _task(self, client: int, task: int) -> tuple[float, bool]:
        """(seconds a unit, lost) of a task, from its block of task numbers."""
        block, at = divmod(task, TASKS_PER_BLOCK)
        drawn = self._blocks.get(block)
        if drawn is None:
            drawn = self._drawn_block(block)
            _keep(self._blocks, block, drawn, self._kept_blocks)
        first, second, lost = drawn
        if self._time.by_client:  # the block holds uniforms: the list to draw from is the client's own
            return float(self._time.draw(np.float64(first[at]), np.float64(second[at]), client)), lost[at]
        return first[at], lost[at]

    def _drawn_block(self, block: int) -> tuple[list[float], list[float], list[bool]]:
        """Compute times of 1,024 tasks (uniform pairs if the law differs by client) and whether each is lost."""
        first = block * TASKS_PER_BLOCK
        if self.draws_by_task:
            drawn, lost = self.task_draws(first, TASKS_PER_BLOCK)
            return drawn.tolist(), [], lost.tolist()
        tasks = np.arange(first, first + TASKS_PER_BLOCK)
        u, v = _columns(seeding.uniforms(self._seed, Purpose.COMPUTE_TIME, 0, tasks, 2))
        return u.tolist(), v.tolist(), self._lost(tasks).tolist()

    def _lost(self, tasks: Int64, uniforms: Uniforms = seeding.uniforms) -> NDArray[np.bool_]:
        """Whether each task's update gets lost."""
        if self._loss_probability == 0.0:
            return np.zeros(tasks.shape, np.bool_)
        lost: NDArray[np.bool_] = uniforms(self._seed, Purpose.LOSS, 0, tasks, 1)[:, 0] < self._loss_probability
        return lost

    # ------------------------------------------------------------------------------------------ in columns

    @property
    def draws_by_task(self) -> bool:
        """Whether what is drawn for a task depends on its number alone, and not on its client."""
        return not self._time.by_client

    def task_draws(
        self, first: int, n: int, uniforms: Uniforms = seeding.uniforms
    ) -> tuple[Float64, NDArray[np.bool_]]:
        """Seconds a unit of work, and whether the update gets lost, of tasks `first` and on: each of shape (n,).

        Only where `draws_by_task` holds. Equal bit for bit to what `plan` draws. `uniforms` may be a faster function
        that gives what `seeding.uniforms` gives.
        """
        assert self.draws_by_task
        tasks = np.arange(first, first + n)
        lost = self._lost(tasks, uniforms)
        if self._time.fixed is not None:
            return np.full(n, self._time.fixed), lost
        drawn: Float64 = self._time.draw(*_columns(uniforms(self._seed, Purpose.COMPUTE_TIME, 0, tasks, 2)), None)
        return drawn, lost

    def profiles(self, clients: Int64) -> tuple[Float64, Float64, Float64]:
        """Slowness, download and upload times of clients, each of shape (C,)."""
        return self._drawn_profiles(clients)

    def units(self, n_steps: Int64, n_processed: Int64) -> Int64:
        """Units of work in tasks of so many steps and samples processed: shape (C,)."""
        return {"task": np.ones_like(n_steps), "step": n_steps, "sample": n_processed}[self._per]

    # -------------------------------------------------------------------------------------------- clients

    def _profile(self, client: int) -> Profile:
        profile = self._profiles.get(client)
        if profile is None:
            profile = Profile(
                _draw_one(self._slowness, self._seed, Purpose.SLOWNESS, client),
                self._download.one(self._seed, client),
                self._upload.one(self._seed, client),
            )
            _keep(self._profiles, client, profile, self._kept_profiles)
        else:
            self._profiles.move_to_end(client)
        return profile

    def _keep_profiles(self, clients: Int64) -> None:
        """Draws the profiles that are not kept yet, all at once; at most as many clients as can be kept."""
        for client in clients.tolist():
            if client in self._profiles:
                self._profiles.move_to_end(client)
        missing = np.array([c for c in dict.fromkeys(clients.tolist()) if c not in self._profiles], np.int64)
        if missing.size:
            columns = (column.tolist() for column in self._drawn_profiles(missing))
            for client, *values in zip(missing.tolist(), *columns, strict=True):
                _keep(self._profiles, client, Profile(*values), self._kept_profiles)

    def _drawn_profiles(self, clients: Int64) -> tuple[Float64, Float64, Float64]:
        """Slowness, download and upload times of clients, each of shape (C,)."""
        slowness = _draw_many(self._slowness, self._seed, Purpose.SLOWNESS, clients)
        return slowness, self._download.many(self._seed, clients), self._upload.many(self._seed, clients)

    def expected_s(self, clients: Int64, n_steps: Int64, n_samples: Int64) -> Float64:
        """Expected seconds of a task of each client, without absence; all of shape (C,).

        The compute law counts with its mean (its median if the mean is infinite), what is drawn once a client as it is.
        """
        expected = np.empty(clients.shape)
        for at in range(0, clients.size, CHUNK):
            part = slice(at, at + CHUNK)
            slowness, download, upload = self._drawn_profiles(clients[part])
            compute = self._time.typicals(clients[part]) * slowness
            if self._per != "task":
                compute = compute * (n_steps if self._per == "step" else n_samples)[part]
            expected[part] = download + compute + upload
        return expected

    def mean_task_s(self, n_steps: float, n_samples: float) -> float:
        """Mean of `expected_s` over clients (4,096 evenly spaced ones if there are more) for a task of that size."""
        n = min(self._n_clients, SAMPLED_CLIENTS)
        clients = np.arange(n, dtype=np.int64) * self._n_clients // n
        slowness, download, upload = self._drawn_profiles(clients)
        units = 1.0 if self._per == "task" else n_steps if self._per == "step" else n_samples
        return float(np.mean(download + self._time.typicals(clients) * slowness * units + upload))

    # --------------------------------------------------------------------------------------- availability

    def is_available(self, client: int, time_s: float) -> bool:
        """Whether the client is there at `time_s`: at the start of a window it is, at the end it is not."""
        return self.always_available or self._windows.window(client, time_s)[0] <= time_s

    def available(self, clients: Int64, time_s: float) -> NDArray[np.bool_]:
        """`is_available` of clients of shape (C,)."""
        if self.always_available:
            return np.ones(clients.shape, np.bool_)
        return self._windows.windows(clients, time_s)[0] <= time_s

    def remaining_s(self, clients: Int64, time_s: float) -> Float64:
        """Seconds until each client's window ends: 0 if it is absent, inf if it stays; shape (C,)."""
        starts, ends = self._windows.windows(clients, time_s)
        remaining = np.zeros(clients.shape)
        there = starts <= time_s
        remaining[there] = ends[there] - time_s
        return remaining

    def next_available_s(self, clients: Int64, time_s: float) -> Float64:
        """When each client is next there: `time_s` itself if it is there then, inf if it never is; shape (C,)."""
        return np.maximum(self._windows.windows(clients, time_s)[0], time_s)


def _keep(memo: OrderedDict[int, V], key: int, value: V, limit: int) -> None:
    """Puts the value in, and beyond the limit the first in order out."""
    memo[key] = value
    if len(memo) > limit:
        memo.popitem(last=False)


def _columns(pairs: Float64) -> tuple[Float64, Float64]:
    """The two columns, each contiguous: numpy's vector code does not promise a strided array the same bits."""
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _draw_one(law: Law, seed: int, purpose: Purpose, client: int) -> float:
    """The client's own draw from a law."""
    if law.fixed is not None:
        return law.fixed
    u, v = seeding.uniform_pair(seed, purpose, client, 0)
    return float(law.draw(np.float64(u), np.float64(v), client))


def _draw_many(law: Law, seed: int, purpose: Purpose, clients: Int64) -> Float64:
    """`_draw_one` of clients of shape (C,), equal bit for bit."""
    if law.fixed is not None:
        return np.full(clients.shape, law.fixed)
    drawn: Float64 = law.draw(*_columns(seeding.uniforms(seed, purpose, clients, 0, 2)), clients)
    return drawn
