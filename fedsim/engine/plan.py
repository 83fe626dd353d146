"""Everything about a run that is fixed before its first task, and what `fedsim check` says of it.

Every rank makes the same plan from the same configuration; rank zero's is the one that counts, and
`fedsim.engine.agreement` compares them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import aggregation, compression, models, population
from fedsim.aggregation import Facts, Marked
from fedsim.comm.pieces import ALONE_BYTES
from fedsim.compression import Codec
from fedsim.config import (
    AsyncSchedule,
    BufferedSchedule,
    FedAtRule,
    KAsyncSchedule,
    NaturalPartition,
    PowerOfChoiceSelection,
    RunConfig,
    SafaSchedule,
    TiersSchedule,
)
from fedsim.configfile import sha256
from fedsim.engine import incommon, owncode
from fedsim.engine.buffers import check_buffers, treatment, treatment_lines, with_buffers
from fedsim.engine.items import Bounds
from fedsim.engine.owncode import NOTHING, OwnCode
from fedsim.engine.planchecks import check_compression, check_schedule, check_target, check_time, check_versions
from fedsim.engine.servermemory import server_memory
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.population.attackers import attackers, poisoned
from fedsim.population.devices import Devices
from fedsim.schedule.alone import reason_against
from fedsim.schedule.building import build_policy, build_selection, pace_and_learners
from fedsim.schedule.schedule import Schedule, Work
from fedsim.schedule.selection import AlwaysThere, Domain
from fedsim.schedule.tiers import tiers
from fedsim.training import Payload
from fedsim.training import plan as training_plan
from fedsim.training.clients import Method, methods_of, n_state_values
from fedsim.training.clients.attacking import attack_of
from fedsim.training.clients.coding import coding_of
from fedsim.training.clients.methods import WayOfTheModel
from fedsim.training.local import local_training
from fedsim.types import Float32, Int64
from fedsim.userfiles import UserFiles, UserFunction

if TYPE_CHECKING:
    import torch

    from fedsim.aggregation import Rule
    from fedsim.training.objectives import TaskLoss

_N_GROUPS = 2  # at a worker: one training, one waiting
_LOOKED_AT = 100_000  # clients, for the mean of their sizes


@dataclass(frozen=True)
class Plan:
    """What a run is made of. `members` are the clients with data (None: all); `concurrency` is what they allow."""

    config: RunConfig
    base_dir: Path
    population: population.Population
    module: torch.nn.Module
    layout: Layout
    initial_P: Float32
    rule: Rule
    devices: Devices | None
    members: Int64 | None
    concurrency: int
    training_path: str
    group_size: int
    path_reason: str
    metric_names: tuple[str, ...]
    bounds: Bounds
    has_tests: bool
    methods: tuple[Method, ...] = ()
    codec: Codec | None = None
    attackers: Int64 | None = None
    own: OwnCode = NOTHING

    @property
    def n_state_values(self) -> int:
        """Floats that a client keeps from task to task."""
        return n_state_values(self.methods)

    @property
    def n_version_values(self) -> int:
        """Floats of a version as it is sent."""
        return (1 + self.rule.n_extras) * self.layout.n_parameters

    @property
    def update_bytes(self) -> int:
        """Bytes of an update as it travels."""
        return 4 * self.layout.n_parameters if self.codec is None else self.codec.n_bytes

    @property
    def version_bytes(self) -> int:
        """Bytes of a version as it travels."""
        return (4 if self.config.compression.versions == "float32" else 2) * self.n_version_values

    @property
    def is_personal(self) -> bool:
        """Whether clients have models of their own, which are scored in place of the version or beside it."""
        return any(method.is_personal or method.has_second for method in self.methods)

    @property
    def n_eligible(self) -> int:
        """Clients that can be selected."""
        return self.population.n_clients if self.members is None else int(self.members.size)

    @property
    def n_merge(self) -> int:
        """The most updates that a version is made of."""
        return updates_a_version(self.config, self.concurrency)

    def work(self) -> Work:
        """What a task asks of a client, for the schedule."""
        return replace(_work(self.config, self.population), keeps_state=self.n_state_values > 0)

    def schedule(self) -> Schedule:
        """The schedule at time zero."""
        chosen = self.config.schedule.selection
        by_size = chosen == "size" or isinstance(chosen, PowerOfChoiceSelection)
        sizes = self._all_sizes() if by_size else None
        there = AlwaysThere() if self.devices is None else self.devices
        selection = build_selection(
            self.config.schedule, self.config.seed, there, sizes, self._tiers, self.own.selection
        )
        policy = build_policy(self.config.schedule, self.n_eligible, self.config.drops_updates)
        pace, learners = pace_and_learners(policy, selection, self.rule.decides_steps)
        return Schedule(policy, self._domains(), selection, self.work(), self.devices, pace, learners)

    def balanced_sizes(self) -> Int64 | None:
        """Samples a client (C,), where the placement needs them."""
        return self._all_sizes() if self.config.placement == "balanced" else None

    def lines(self) -> list[tuple[str, str]]:
        """What `fedsim check` prints: label and value."""
        config, n = self.config, self.layout.n_parameters
        expected = "no simulated time on the wall clock"
        if self.devices is not None:
            expected = f"{self._mean_task_s():.4g} virtual s, of a client of mean size"
        return [
            ("configuration", f"{config.name}, seed {config.seed}, {config.clock} clock, sha256 {sha256(config)[:16]}"),
            ("data", f"{config.data.dataset}: {self.population.n_clients:,} clients, {self.n_eligible:,} with data"),
            ("samples", f"{self._n_samples_text()}; shape {self.population.sample_shape}"),
            ("model", f"{config.model.kind}: {n:,} parameters, {4 * n:,} bytes a version or update"),
            ("schedule", f"{config.schedule.policy}: {self.concurrency:,} tasks in flight at most"),
            ("rule", f"{config.aggregation.rule}, takes the client's {self.rule.payload}; {self._keeps_text()}"),
            *self._sums(),
            *self._compression(),
            *([("attackers", self._attackers_text())] if self.attackers is not None else []),
            *([("code of your own", ", ".join(self.own.names))] if self.own.names else []),
            ("training", self._training_text()),
            ("a task lasts", expected),
            ("evaluations", self._evaluations_text()),
            *treatment_lines(config, self.layout),
            *([("clients keep", self._states_text())] if self.n_state_values else []),
            ("room", self._room_text()),
            ("rank zero's memory", server_memory(self, updates_a_version(config, self.concurrency)).text()),
            ("a worker's memory", self._memory_text()),
            ("memory in common", incommon.text(self)),
            ("stops at", ", ".join(_stops(config))),
        ]

    def _domains(self) -> list[Domain]:
        n = self.population.n_clients
        if not isinstance(self.config.schedule, TiersSchedule):
            return [Domain(n, self.members)]
        return [Domain(n, tier) for tier in self._tiers(self.config.schedule.tiers)]

    def _tiers(self, n_tiers: int) -> list[Int64]:
        """The clients with data in tiers by expected task time, fastest first."""
        assert self.devices is not None
        return _speed_tiers(self.population, self.members, self.devices, self.work(), n_tiers)

    def _all_sizes(self) -> Int64:
        return self.population.n_samples(np.arange(self.population.n_clients, dtype=np.int64))

    def _mean_task_s(self) -> float:
        assert self.devices is not None
        size, work = max(1, round(self._mean_size())), self.work()
        return float(self.devices.mean_task_s(work.n_steps(size), work.n_processed(size)))

    def _mean_size(self) -> float:
        return float(self._some_sizes().mean())

    def _some_sizes(self) -> Int64:
        """Samples of clients with data: of all, or where they are many of some, evenly spread."""
        n = self.population.n_clients if self.members is None else self.members.size
        some = np.arange(0, n, max(1, math.ceil(n / _LOOKED_AT)), dtype=np.int64)
        return self.population.n_samples(some if self.members is None else self.members[some])

    def _n_samples_text(self) -> str:
        sizes = self._some_sizes()
        about = "" if sizes.size == self.n_eligible else f" among {sizes.size:,} looked at"
        return f"{int(sizes.min()):,} to {int(sizes.max()):,} a client, {sizes.mean():,.1f} on average{about}"

    def _evaluations_text(self) -> str:
        every = self.config.evaluation.every_versions
        if not self.has_tests:
            return "none: there is no test data"
        n_clients, central = len(self.population.test_clients()), self.population.central_test()
        each = "each of" if self.config.evaluation.clients else "all of"
        places = [] if central is None else [f"{len(central.y):,} central test samples"]
        if n_clients and (self.config.evaluation.clients or central is None):
            places.append(f"{each} {n_clients:,} clients' test sets")
        where = " and ".join(places)
        return ("only the last version" if every is None else f"every {every} versions") + f", on {where}"

    def _keeps_text(self) -> str:
        """What the rule holds at rank zero, outside every bound."""
        keeps, n = self.rule.keeps, self.layout.n_parameters
        total = keeps.n_bytes(n, self.n_eligible, updates_a_version(self.config, self.concurrency))
        parts = [f"{keeps.float64} vectors of float64"] + [f"{keeps.float32} of float32"] * bool(keeps.float32)
        if keeps.per_client:
            parts.append(
                f"{keeps.per_client} of float32 a client ({self.n_eligible:,} x {n:,} x {4 * keeps.per_client})"
            )
        if keeps.per_update:
            parts.append(f"{keeps.per_update} of float32 an update of a version")
        return f"keeps {', '.join(parts)}: {total:,} bytes"

    def _training_text(self) -> str:
        if self.training_path != "none":
            return f"path {self.training_path}, groups of {self.group_size}: {self.path_reason}"
        assert self.devices is not None
        why = reason_against(self.config.schedule, self.devices)
        return "none: the schedule alone, " + (f"event by event ({why})" if why else "compiled")

    def _memory_text(self) -> str:
        """The formula of `fedsim.training.footprint`, in numbers."""
        if self.training_path == "none":
            return "nothing is trained"
        from fedsim.training.footprint import group_bytes, worker_bytes  # loads torch

        config, shape = self.config, self.population.sample_shape
        group = group_bytes(config.training, self.module, shape, self.training_path, self.group_size)
        sizes = self._some_sizes()
        sample_bytes = 4 * math.prod(shape) + 8
        held, row_bytes = min(self.bounds.worker_rows, self.concurrency), 4 * self.layout.n_parameters
        most = worker_bytes(
            config, self.module, shape, group,
            n_versions=self.bounds.worker_versions,
            n_results=math.ceil(held * self.update_bytes / row_bytes) + _N_GROUPS * self.group_size,
            data_bytes=math.ceil(sizes.mean() * self.n_eligible) * sample_bytes,
            group_data_bytes=self.group_size * int(sizes.max()) * sample_bytes,
        )  # fmt: skip
        return (
            f"at most {most.total:,} bytes beside Python: {most.versions:,} for versions, {most.results:,} for "
            "results, "
            f"{most.group:,} for a group (weights {group.weights:,}, activations {group.activations:,}, batches "
            f"{group.batches:,}), {most.shards:,} for samples, {most.evaluation:,} for evaluations, "
            f"{most.libraries:,} for libraries at work"
        )

    def _attackers_text(self) -> str:
        assert self.attackers is not None and self.config.attack is not None
        some, n = self.attackers[:20].tolist(), self.attackers.size
        more = "" if n == len(some) else f" and {n - len(some):,} more"
        return f"{n:,} of {self.n_eligible:,}, {self.config.attack.kind}: {', '.join(map(str, some))}{more}"

    def _sums(self) -> list[tuple[str, str]]:
        if self.config.reduce is None:
            return []
        return [("sums", f"made by workers: {8 * self.layout.n_parameters:,} bytes a worker and version to rank zero")]

    def _compression(self) -> list[tuple[str, str]]:
        """Bytes as they travel, where they are fewer than float32 takes."""
        chosen = self.config.compression
        texts = []
        if self.codec is not None:
            texts.append(f"an update {self.update_bytes:,} bytes ({chosen.updates.kind})")
        if chosen.versions != "float32":
            texts.append(f"a version {self.version_bytes:,} bytes ({chosen.versions})")
        return [("compression", ", ".join(texts))] if texts else []

    def _room_text(self) -> str:
        rows, n_bytes = self.bounds, self.update_bytes
        return (
            f"rank zero {rows.server_rows * n_bytes:,} bytes for {rows.server_rows:,} updates; a worker "
            f"{rows.worker_rows * n_bytes:,} bytes for {rows.worker_rows:,} results and as much as "
            f"{rows.worker_versions * 4 * self.n_version_values:,} bytes for versions"
        )

    def _states_text(self) -> str:
        n_bytes, most = 4 * self.n_state_values, self.n_eligible
        return (
            f"{n_bytes:,} bytes each, at their workers: together up to {most * n_bytes:,} bytes of {most:,} clients, "
            f"and {self.concurrency * n_bytes:,} bytes of the tasks in flight"
        )


def plan(config: RunConfig, base_dir: Path, allow_code: bool = False) -> Plan:
    """The plan of a run; relative paths of the configuration are looked up from `base_dir`.

    `allow_code`: functions of the user's own may be loaded, where the configuration names some.

    Raises:
        ConfigError: the combination cannot run.
        DataError: the data cannot be used.
    """
    from fedsim.training.objectives import loss_kind, loss_of  # loads torch

    own = owncode.load(config, UserFiles(base_dir, allow_code))
    people, members, attacking = _people(config, base_dir, own.data)
    n_eligible = people.n_clients if members is None else int(members.size)
    check_schedule(config, n_eligible)
    loss = loss_of(config, people)
    check_target(config, loss.metric_names)
    kind = loss_kind(config, people)
    module = models.build_initial(config.model, people.sample_shape, people.n_classes, config.seed, kind)
    layout = Layout.of(module)
    n_extras = aggregation.n_extras(config.aggregation)
    payload = aggregation.payload(config.aggregation)
    codec = compression.build(config.compression.updates, layout.n_parameters)
    check_compression(config, codec, layout.n_parameters, n_extras)
    methods = _methods(config, layout, codec, attacking, payload)
    _check_methods(config, people, methods)
    check_buffers(config, people, module, layout)
    row_bytes = 4 * layout.n_parameters if codec is None else codec.n_bytes
    version_values = (1 + n_extras) * layout.n_parameters
    n_withheld = sum(method.n_withheld for method in methods)  # is not sent, as far as simulated links go
    devices = _devices(config, people, base_dir, version_values - n_withheld, row_bytes - 4 * n_withheld)
    rule = _rule(config, _facts(config, people, members, layout, devices, own), layout, attacking)
    has_linear = any(method.has_linear for method in methods)
    path, group_size, reason = _path(config, module, people, loss, has_linear)
    made = Plan(
        config=config,
        base_dir=base_dir,
        population=people,
        module=module,
        layout=layout,
        initial_P=layout.flatten(module),
        rule=rule,
        devices=devices,
        members=members,
        concurrency=min(config.schedule.concurrency, n_eligible),
        training_path=path,
        group_size=group_size,
        path_reason=reason,
        metric_names=loss.metric_names,
        bounds=_bounds(config, row_bytes, 4 * version_values, group_size),
        has_tests=_has_tests(config, people),
        methods=methods,
        codec=codec,
        attackers=attacking,
        own=own,
    )
    _check_alone(made)
    _check_reduce(made)
    return made


def _devices(
    config: RunConfig, people: population.Population, base_dir: Path, version_values: int, update_bytes: int
) -> Devices | None:
    """The simulated devices, on the virtual clock."""
    if config.clock != "virtual":
        return None
    n_down = (4 if config.compression.versions == "float32" else 2) * version_values
    devices = Devices(config.devices, config.seed, people.n_clients, base_dir, n_down, update_bytes)
    check_time(config, devices)
    return devices


def _path(
    config: RunConfig, module: torch.nn.Module, people: population.Population, loss: TaskLoss, has_linear: bool
) -> tuple[str, int, str]:
    """The training path, the group size, and why."""
    from fedsim.training.choice import choose_path  # loads torch

    if config.training.path == "none":
        return "none", 1, "nothing is trained"
    local = config.model_copy(update={"training": local_training(config)})
    return choose_path(local, module, people.sample_shape, loss, has_linear)


def _rule(config: RunConfig, facts: Facts, layout: Layout, attacking: Int64 | None) -> Rule:
    """The rule, which leaves buffers to their treatment and marks attackers' updates, where there are some."""
    rule = aggregation.build(config.aggregation, facts)
    check_versions(config, rule)
    rule = with_buffers(config, layout, rule, facts.n_clients) if layout.n_buffers else rule
    return rule if attacking is None else Marked(rule, attacking)


def _methods(
    config: RunConfig, layout: Layout, codec: Codec | None, attacking: Int64 | None, payload: Payload
) -> tuple[Method, ...]:
    """What clients do around their training, in its order: the encoding last, of what attackers send."""
    attack = attack_of(config, attacking, payload)
    return (*methods_of(config, layout, payload), *attack, *coding_of(config, codec, payload))


def _people(
    config: RunConfig, base_dir: Path, own: UserFunction | None
) -> tuple[population.Population, Int64 | None, Int64 | None]:
    """The population, its clients with data (None: all), and those that attack (None: there is no attack)."""
    people = population.build(config, base_dir, own)
    members = _members(config, people)
    attacking = attackers(config, people.n_clients, members)
    return poisoned(people, config, attacking), members, attacking


def _check_alone(made: Plan) -> None:
    """Refuses a schedule without training that reads what training would give."""
    if made.training_path == "none" and made.schedule().learns:
        raise ConfigError(
            "training.path none runs the schedule alone, and this schedule reads results (its selection, policy or "
            "local steps learn from updates): choose one that does not, or train"
        )


def _check_reduce(made: Plan) -> None:
    """Refuses sums at workers where there is none to make, or each update is needed before it."""
    if made.config.reduce is None:
        return
    if not made.rule.sums_at_workers:
        raise ConfigError(
            f"reduce: rule {made.rule.name} makes no version of a sum whose weights the schedule knows; "
            "allowed: fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedbuff, k-async, or no reduce"
        )
    if made.methods:
        raise ConfigError("reduce: where clients keep a state, each update is applied when it arrives; leave one out")
    if made.schedule().learns:
        raise ConfigError("reduce: the schedule learns from each update at its arrival, before a version's sum is made")


def _check_methods(config: RunConfig, people: population.Population, methods: tuple[Method, ...]) -> None:
    """Refuses what a client cannot do, or not there."""
    n_own = sum(isinstance(method, WayOfTheModel) for method in methods)
    if config.training.objective.kind == "afl-cs" and sum(method.has_linear for method in methods) > n_own:
        raise ConfigError(
            f"training.objective afl-cs has no room for what aggregation.rule {config.aggregation.rule} adds to the "
            "clients' gradients: another rule or another objective would do"
        )
    is_scored_at_home = any(method.is_personal or method.has_second for method in methods)
    if (n_state_values(methods) or is_scored_at_home) and config.placement == "dynamic":
        raise ConfigError(
            "placement: dynamic lets any worker take any client's task, but these clients keep a state at their "
            "worker, or are scored there: use home or balanced"
        )
    if is_scored_at_home and not len(people.test_clients()):
        raise ConfigError(
            f"personalization is scored on clients' own test sets, and data set '{config.data.dataset}' has none"
        )


def _work(config: RunConfig, people: population.Population) -> Work:
    training = config.training
    return Work(
        n_samples=people.n_samples,
        n_steps=lambda n: training_plan.plan_steps(training, n),
        n_processed=lambda n: training_plan.samples_processed(training, n),
        learning_rate=lambda version: training_plan.learning_rate(training, version),
        counts_steps=training.order == "continued",
        n_processed_in=lambda n, steps: training_plan.samples_processed(training, n, steps),
    )


def _speed_tiers(
    people: population.Population, members: Int64 | None, devices: Devices, work: Work, n_tiers: int
) -> list[Int64]:
    """The clients with data in tiers by expected task time, fastest first."""
    clients = np.arange(people.n_clients) if members is None else members
    kinds, where = np.unique(people.n_samples(clients), return_inverse=True)
    n_steps = np.array([work.n_steps(size) for size in kinds.tolist()])[where]
    n_processed = np.array([work.n_processed(size) for size in kinds.tolist()])[where]
    return [clients[part] for part in tiers(devices.expected_s(clients, n_steps, n_processed), n_tiers)]


def _facts(
    config: RunConfig,
    people: population.Population,
    members: Int64 | None,
    layout: Layout,
    devices: Devices | None,
    own: OwnCode,
) -> Facts:
    """What the rule may know before the first task."""
    facts = Facts(
        n_clients=people.n_clients if members is None else int(members.size),
        count_samples=lambda: people.count_samples(members),
        layers=tuple(list(layout.slices.values())[: len(layout.names) - layout.n_buffers]),
        n_updates=_fixed_updates(config),
        planned_versions=config.stop.versions or 0,
        client_momentum=getattr(config.training.optimizer, "momentum", 0.0),
        as_trained=_arrive_as_trained(config, layout),
        function=own.rule,
    )
    if isinstance(config.schedule, SafaSchedule):
        return replace(facts, max_lag=config.schedule.lag_tolerance)
    if isinstance(config.aggregation, FedAtRule):
        assert isinstance(config.schedule, TiersSchedule) and devices is not None
        parts = _speed_tiers(people, members, devices, _work(config, people), config.schedule.tiers)
        tier_of = {client: tier for tier, part in enumerate(parts) for client in part.tolist()}
        return replace(facts, n_tiers=len(parts), tier_of=tier_of.__getitem__)
    return facts


def _arrive_as_trained(config: RunConfig, layout: Layout) -> bool:
    """Whether a rule gets what clients trained: not encoded, not an attacker's, and not without averaged buffers."""
    is_attacked = config.attack is not None and config.attack.kind != "label-flip"
    is_cut = "averaged" in treatment(config, layout).values()
    return config.compression.updates.kind == "none" and not is_attacked and not is_cut


def _fixed_updates(config: RunConfig) -> int:
    """How many updates go into a version; 0 where the policy does not fix it."""
    match config.schedule:
        case AsyncSchedule():
            return 1
        case BufferedSchedule():
            return config.schedule.buffer
        case KAsyncSchedule():
            return config.schedule.k
        case SafaSchedule():
            return config.schedule.quota
        case _:
            return 0


def updates_a_version(config: RunConfig, concurrency: int) -> int:
    """The most updates that a version is made of."""
    return _fixed_updates(config) or concurrency


def _bounds(config: RunConfig, row_bytes: int, version_bytes: int, group_size: int) -> Bounds:
    """The memory bounds in rows, each raised to the least that works.

    A small update lives in the buffer of its group's message until the last of the group is consumed, so rank zero
    counts a whole group for each.
    """
    memory = config.memory
    buffer_rows = 1 if row_bytes >= ALONE_BYTES else group_size
    return Bounds(
        group_size=group_size,
        n_groups=_N_GROUPS,
        server_rows=max(1, memory.server_updates_bytes // (row_bytes * buffer_rows)),
        buffer_rows=buffer_rows,
        worker_rows=max(group_size, memory.worker_updates_bytes // row_bytes),
        worker_versions=max(group_size, memory.worker_versions_bytes // version_bytes),
        reserve=1 if config.clock == "virtual" else 0,
        sums=config.reduce is not None,
    )


def _members(config: RunConfig, people: population.Population) -> Int64 | None:
    """The clients with data, where a partition can leave some without."""
    if isinstance(config.partition, NaturalPartition):
        only = sorted(set(config.partition.only))
        if only and only[-1] >= people.n_clients:
            raise ConfigError(f"partition.only: got {only[-1]}, allowed: 0 to {people.n_clients - 1}")
        return np.array(only, dtype=np.int64) if only else None
    sizes = people.n_samples(np.arange(people.n_clients, dtype=np.int64))
    members = np.flatnonzero(sizes > 0).astype(np.int64)
    if members.size == 0:
        raise ConfigError(f"partition {config.partition.kind}: no client has any data")
    return None if members.size == people.n_clients else members


def _has_tests(config: RunConfig, people: population.Population) -> bool:
    """Whether there is test data to evaluate on."""
    has_tests = len(people.test_clients()) > 0 or people.has_central_test
    if config.stop.target is not None and not has_tests:
        raise ConfigError("stop.target reads evaluations, but there is no test data to evaluate on")
    return has_tests


def _stops(config: RunConfig) -> list[str]:
    stop: dict[str, Any] = config.stop.model_dump(exclude_none=True)
    target = stop.pop("target", None)
    texts = [f"{value:,} {name.replace('_s', ' seconds')}" for name, value in stop.items()]
    return texts + ([f"{target['metric']} {target['value']}"] if target else [])
