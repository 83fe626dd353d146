"""A whole run: the sections above, evaluation, stops, memory, record, and what goes together with what."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.aggregation import AggregationConfig
from fedsim.config.attack import AttackConfig
from fedsim.config.base import Bytes, Count, CountOrZero, PositiveSeconds, Section
from fedsim.config.compression import CompressionConfig
from fedsim.config.data import DataConfig, NaturalPartition, PartitionConfig
from fedsim.config.devices import DevicesConfig
from fedsim.config.models import ModelConfig
from fedsim.config.personalization import PersonalizationConfig
from fedsim.config.schedule import PowerOfChoiceSelection, ScheduleConfig, TiflSelection
from fedsim.config.together import check_personal, check_rule
from fedsim.config.training import TrainingConfig
from fedsim.config.user import UserSelection, spelt_out


class EvaluationConfig(Section):
    """When the model is tested. `clients: true` scores every client's own test set, where there are some.

    What reads an evaluation takes effect `lag_versions` later; the server waits for a result that is late.
    """

    every_versions: Count | None = 10
    lag_versions: CountOrZero = 1
    clients: bool = True
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 256


class TargetConfig(Section):
    """Stop once the mean of a metric over the evaluated test sets reaches `value`; the loss decides what there is.

    `of: personal` reads the clients' own models.
    """

    metric: Literal["accuracy", "loss", "mse", "mae", "concordance"] = "accuracy"
    value: Annotated[float, Field(allow_inf_nan=False)]
    of: Literal["version", "personal"] = "version"


class StopConfig(Section):
    """The run ends at whichever comes first; at least one must be given."""

    versions: Count | None = None
    updates: Count | None = None
    virtual_s: PositiveSeconds | None = None
    wall_s: PositiveSeconds | None = None
    target: TargetConfig | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(getattr(self, name) is None for name in ("versions", "updates", "virtual_s", "wall_s")):
            raise ValueError("at least one of versions, updates, virtual_s and wall_s must be given")
        return self


class MemoryConfig(Section):
    """Bounds, in bytes; each is raised to the least that works (one update, one group, one version).

    `worker_cache_bytes` and `worker_group_bytes` bound how many clients train together, and are not raised; nor is
    `piece_bytes`, the most that travels in one message of a vector.
    """

    server_updates_bytes: Bytes = 2**30
    server_versions_bytes: Bytes = 2**30
    worker_updates_bytes: Bytes = 2**30
    worker_versions_bytes: Bytes = 2**30
    worker_data_bytes: Bytes = 2**30
    worker_cache_bytes: Annotated[int, Field(ge=1, le=2**50)] = 3 * 2**23
    worker_group_bytes: Annotated[int, Field(ge=1, le=2**50)] = 2**32
    piece_bytes: Annotated[int, Field(ge=4, le=2**30)] = 2**22


class ReduceConfig(Section):
    """Workers sum the updates of a version themselves, in 64-bit fixed point, and send rank zero one sum each.

    `norm_bound` is the largest norm that an update may have: it decides the scale.
    """

    at: Literal["workers"]
    norm_bound: Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]


class RecordConfig(Section):
    """How often buffered rows reach the disk, and which losses a task reports.

    `running`: of the first and last batch met in training; `full`: of the whole shard before and after.
    """

    flush_s: PositiveSeconds = 2.0
    losses: Literal["running", "full", "none"] = "running"


class CheckpointConfig(Section):
    """When the state is written beside the record: after so many versions or wall seconds, whichever comes first.

    A run that is stopped by a signal or by `stop.wall_s` writes a checkpoint, whatever is said here. At a signal the
    checkpoint is written and every rank has ended after `stop_within_s`, or the ranks that have not are ended.
    """

    every_versions: Count | None = None
    every_s: PositiveSeconds | None = 60.0
    stop_within_s: PositiveSeconds = 30.0


_NO_TRAINING: dict[str, Any] = {
    "path": "none",
    "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "batch_size": 1,
    "steps": 1,
}


class RetryConfig(Section):
    """With `on_client_error: retry`: how often a task is trained again, elsewhere if possible, and what then."""

    times: Annotated[int, Field(ge=1, le=1000)] = 2
    then: Literal["fail", "drop"] = "fail"


class RunConfig(Section):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    clock: Literal["virtual", "wall"] = "virtual"
    data: DataConfig
    partition: PartitionConfig = NaturalPartition(kind="natural")
    devices: DevicesConfig = DevicesConfig()
    model: ModelConfig
    training: TrainingConfig
    schedule: ScheduleConfig
    aggregation: AggregationConfig
    attack: AttackConfig | None = None
    personalization: PersonalizationConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig
    placement: Literal["home", "balanced", "dynamic"] = "home"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    cores: Literal["auto", "free"] = "auto"
    stall_timeout_s: PositiveSeconds = 600.0
    allow_mixed: bool = False
    fault_tolerant: bool = False
    on_client_error: Literal["fail", "drop", "retry"] = "fail"
    retry: RetryConfig = RetryConfig()
    reduce: ReduceConfig | None = None
    compression: CompressionConfig = CompressionConfig()
    memory: MemoryConfig = MemoryConfig()
    record: RecordConfig = RecordConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _files_are_short(cls, value: Any) -> Any:
        """`rule: ./mine.py:my_rule` is short for `rule: user` with that function, and likewise elsewhere."""
        return spelt_out(value) if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _none_is_short(cls, value: Any) -> Any:
        """`training: none` is short for a task of one step that nobody trains."""
        if isinstance(value, dict) and value.get("training") == "none":
            return {**value, "training": _NO_TRAINING}
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_partition()
        if self.training.path == "none":
            self._check_alone()
        if self.clock == "wall":
            self._check_wall()
        check_rule(self)
        check_personal(self)
        self._check_reduce()
        self._check_selection()
        if self.stop.target is not None and self.evaluation.every_versions is None:
            raise ValueError("stop.target reads evaluations: evaluation.every_versions must be given")
        return self

    def _check_reduce(self) -> None:
        """Sums at workers need weights that the schedule knows, and versions of several updates."""
        if self.reduce is None:
            return
        n_merged = getattr(self.schedule, "buffer", getattr(self.schedule, "k", None))
        if self.schedule.policy == "async" or n_merged == 1:
            raise ValueError("reduce: each arrival is a version, so there is nothing to sum; allowed: another schedule")
        if self.clock == "wall":
            raise ValueError("reduce: the wall clock applies updates as they come in; allowed: clock: virtual")
        if self.training.path == "none":
            raise ValueError("reduce: without training there is nothing to sum; it must be left out")
        if self.attack is not None and self.attack.kind != "label-flip":
            raise ValueError(
                f"reduce: attack {self.attack.kind} replaces updates after norm_bound was held against them; allowed: "
                "label-flip, or no reduce"
            )
        if self.drops_updates:
            raise ValueError("reduce: what is dropped cannot be taken out of a sum; allowed: on_client_error: fail")
        if self.compression.updates.kind != "none":
            raise ValueError(
                "reduce: workers send sums and no updates, so there is none to compress; allowed: compression.updates "
                f"none, got {self.compression.updates.kind}, or no reduce"
            )

    def _check_alone(self) -> None:
        if self.clock == "wall":
            raise ValueError("training.path none runs the schedule alone: it needs clock: virtual, got wall")
        if self.attack is not None:
            raise ValueError("attack changes what clients train, and with training.path none nothing is trained")
        if self.stop.target is not None:
            raise ValueError("stop.target reads evaluations, and with training.path none nothing is evaluated")

    @property
    def drops_updates(self) -> bool:
        """Whether a task may fail without the run's end."""
        return self.on_client_error == "drop" or (self.on_client_error == "retry" and self.retry.then == "drop")

    def _check_wall(self) -> None:
        if self.stop.virtual_s is not None:
            raise ValueError("stop.virtual_s needs clock: virtual, got wall (use wall_s)")
        if self.devices != DevicesConfig():
            raise ValueError("devices simulates delays, loss and absence: it needs clock: virtual, got wall")
        policy = self.schedule.policy
        if policy == "tiers":
            raise ValueError("schedule.policy tiers ranks simulated devices: it needs clock: virtual, got wall")
        if policy in ("pisces", "compass", "safa"):
            raise ValueError(f"schedule.policy {policy} follows simulated times: it needs clock: virtual, got wall")
        if isinstance(self.schedule.selection, TiflSelection):
            raise ValueError("schedule.selection tifl ranks simulated devices: it needs clock: virtual, got wall")

    def _check_partition(self) -> None:
        dataset, kind = self.data.dataset, self.partition.kind
        central = dataset in ("digits", "idx", "npz")
        if central and kind == "natural":
            raise ValueError(
                f"data set '{dataset}' has no clients of its own: "
                "partition.kind must be one of iid, dirichlet, shards, quantity"
            )
        if central and kind == "pooled":
            raise ValueError(f"data set '{dataset}' has no clients of its own: to pool it, use iid with clients: 1")
        if not central and kind not in ("natural", "pooled"):
            raise ValueError(
                f"data set '{dataset}' has its own clients: partition.kind must be natural (or pooled), got {kind}"
            )

    def _check_selection(self) -> None:
        """Selections that learn need what they learn from."""
        selection = self.schedule.selection
        if isinstance(selection, str | UserSelection):
            return
        if isinstance(selection, TiflSelection) and self.schedule.policy != "sync":
            raise ValueError(
                "schedule.selection tifl draws a tier for each round: schedule.policy must be sync, "
                f"got {self.schedule.policy}"
            )
        n_round = self.schedule.concurrency if self.schedule.policy == "sync" else 1
        if isinstance(selection, PowerOfChoiceSelection) and selection.candidates < n_round:
            raise ValueError(
                f"schedule.selection.candidates is {selection.candidates}, below a round's {n_round} tasks: "
                "there would be nothing to choose from"
            )
        if self.record.losses == "none":
            raise ValueError(
                f"schedule.selection {selection.kind} reads the losses of updates: record.losses must be running or "
                "full, got none"
            )
