"""The configuration of a run: frozen, strict, and with every default written out.

`fedsim.configfile` reads it from YAML and turns what is wrong into one line with file, key and line. Here is
what a configuration may say. Unknown keys are errors; so is `"3"` where a number is expected. Checks that need the data
(more clients than samples, K above the clients there are) are in `fedsim.engine.plan`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=2**40)]
CountOrZero = Annotated[int, Field(ge=0, le=2**40)]
Bytes = Annotated[int, Field(ge=0, le=2**50)]
Classes = Annotated[int, Field(ge=2, le=100_000)]


class Section(BaseModel):
    """Base of every part: frozen, strict, no unknown keys, defaults validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


# ---------------------------------------------------------------------------------------------- data sets


class HeartData(Section):
    """UCI heart disease, four hospitals; shipped with fedsim."""

    dataset: Literal["heart"]


class DigitsData(Section):
    """scikit-learn's 8x8 handwritten digits (1,797 samples, 10 classes)."""

    dataset: Literal["digits"]
    test_fraction: OpenFraction = 0.2


class SyntheticImagesData(Section):
    """Class-conditional Gaussian images; any number of clients, each made on demand from its key."""

    dataset: Literal["synthetic-images"]
    clients: Count = 1000
    samples: Count = 40
    test_samples: Count = 1000
    classes: Annotated[int, Field(ge=2, le=100_000)] = 62
    classes_per_client: Count = 5
    shape: list[Count] = Field(default=[1, 28, 28], min_length=1, max_length=4)
    signal: NonNegative = 0.35

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.classes_per_client > self.classes:
            raise ValueError(f"classes_per_client is {self.classes_per_client}, above classes ({self.classes})")
        if math.prod(self.shape) > 2**24:
            raise ValueError(f"shape {self.shape} has more than {2**24} values a sample")
        return self


class SyntheticLeafData(Section):
    """LEAF's synthetic(alpha, beta) federation (Li et al. 2018): a logistic model and an input law a client."""

    dataset: Literal["synthetic-leaf"]
    clients: Count = 30
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    features: Count = 60
    classes: Annotated[int, Field(ge=2, le=10_000)] = 10
    min_samples: Count = 50
    max_samples: Count = 1000
    test_fraction: OpenFraction = 0.2

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples is {self.min_samples}, above max_samples ({self.max_samples})")
        return self


class IdxData(Section):
    """Files of the MNIST family (IDX, plain or .gz): images and labels, of training and test set.

    `classes` is the number of classes; without it, the largest label of the training data tells.
    """

    dataset: Literal["idx"]
    images: str
    labels: str
    test_images: str
    test_labels: str
    classes: Classes | None = None


class NpzData(Section):
    """One NPZ file in MedMNIST's form: train_images, train_labels, test_images, test_labels (val_* unused)."""

    dataset: Literal["npz"]
    path: str
    classes: Classes | None = None


class Hdf5Data(Section):
    """HDF5 with a group a client (TensorFlow Federated's form: examples/<client>/<column>)."""

    dataset: Literal["hdf5"]
    path: str
    test_path: str | None = None
    x: str = "pixels"
    y: str = "label"
    classes: Classes | None = None


class CsvData(Section):
    """A CSV table with a column that names the client; every other column is a numeric feature."""

    dataset: Literal["csv"]
    path: str
    client: str
    label: str
    test_fraction: OpenFraction = 0.2
    standardize: bool = True
    classes: Classes | None = None


DataConfig = Annotated[
    HeartData | DigitsData | SyntheticImagesData | SyntheticLeafData | IdxData | NpzData | Hdf5Data | CsvData,
    Field(discriminator="dataset"),
]


class NaturalPartition(Section):
    """The clients that the data set itself has."""

    kind: Literal["natural"]


class IidPartition(Section):
    """A random permutation, cut into equal parts."""

    kind: Literal["iid"]
    clients: Count


class DirichletPartition(Section):
    """Label skew: each class is dealt to the clients by a Dirichlet(alpha) draw (Hsu et al. 2019)."""

    kind: Literal["dirichlet"]
    clients: Count
    alpha: Positive
    min_samples: CountOrZero = 1


class ShardsPartition(Section):
    """Samples sorted by label, cut into shards, some dealt to each client (McMahan et al. 2017)."""

    kind: Literal["shards"]
    clients: Count
    shards_per_client: Count = 2


class QuantityPartition(Section):
    """Quantity skew: sizes by a Dirichlet(alpha) draw, labels as they come."""

    kind: Literal["quantity"]
    clients: Count
    alpha: Positive
    min_samples: CountOrZero = 1


PartitionConfig = Annotated[
    NaturalPartition | IidPartition | DirichletPartition | ShardsPartition | QuantityPartition,
    Field(discriminator="kind"),
]

# ----------------------------------------------------------------------------------------------- devices


class ConstantLaw(Section):
    """The same value every time."""

    law: Literal["constant"]
    mean: NonNegative


class ExponentialLaw(Section):
    """Exponential of the given mean."""

    law: Literal["exponential"]
    mean: Positive


class ShiftedExponentialLaw(Section):
    """shift + Exponential(mean - shift); `mean` is that of the whole."""

    law: Literal["shifted-exponential"]
    shift: NonNegative
    mean: Positive

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.mean <= self.shift:
            raise ValueError(f"mean is {self.mean}, must be above shift ({self.shift})")
        return self


class LognormalLaw(Section):
    """Lognormal of the given mean; `sigma` is the standard deviation of the logarithm."""

    law: Literal["lognormal"]
    mean: Positive
    sigma: NonNegative


class ParetoLaw(Section):
    """Pareto of tail index `shape` above `minimum`."""

    law: Literal["pareto"]
    minimum: Positive
    shape: Positive


class TraceLaw(Section):
    """Values drawn from a CSV file with a column `value` and, if they differ by client, a column `client`."""

    law: Literal["trace"]
    path: str


LawConfig = Annotated[
    ConstantLaw | ExponentialLaw | ShiftedExponentialLaw | LognormalLaw | ParetoLaw | TraceLaw,
    Field(discriminator="law"),
]


class ComputeConfig(Section):
    """Virtual compute time of a task, in seconds: time(task) x speed(client) x the units of work in it."""

    time: LawConfig = ConstantLaw(law="constant", mean=1.0)
    per: Literal["task", "step", "sample"] = "task"
    slowness: LawConfig = ConstantLaw(law="constant", mean=1.0)


class LinkConfig(Section):
    """One direction of a client's network; each law is drawn once a client."""

    latency_s: LawConfig = ConstantLaw(law="constant", mean=0.0)
    bytes_per_s: LawConfig | None = None


class AlwaysAvailable(Section):
    """Every client is always there."""

    kind: Literal["always"]


class PeriodicAvailability(Section):
    """Each client is there for `on_fraction` of every period, from a phase of its own."""

    kind: Literal["periodic"]
    period_s: PositiveSeconds
    on_fraction: Annotated[float, Field(gt=0.0, le=1.0)]


class TraceAvailability(Section):
    """Windows from a CSV file with columns client, start_s, end_s; repeated every `period_s` if that is given."""

    kind: Literal["trace"]
    path: str
    period_s: PositiveSeconds | None = None


AvailabilityConfig = Annotated[
    AlwaysAvailable | PeriodicAvailability | TraceAvailability, Field(discriminator="kind")
]


class DevicesConfig(Section):
    compute: ComputeConfig = ComputeConfig()
    download: LinkConfig = LinkConfig()
    upload: LinkConfig = LinkConfig()
    availability: AvailabilityConfig = AlwaysAvailable(kind="always")
    on_offline: Literal["pause", "lose", "finish"] = "pause"
    loss_probability: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


# ------------------------------------------------------------------------------------------------ models


class LogisticModel(Section):
    """One linear layer: a single output for two classes (binary cross-entropy), else one a class."""

    kind: Literal["logistic"]


class MlpModel(Section):
    """Linear layers of these widths with ReLU, then a linear layer."""

    kind: Literal["mlp"]
    hidden: list[Count] = Field(default=[200], min_length=1, max_length=32)


class CnnModel(Section):
    """Convolution, ReLU and 2x2 max pooling for each entry of `channels`, then a linear layer."""

    kind: Literal["cnn"]
    channels: list[Count] = Field(default=[16, 32], min_length=1, max_length=8)
    kernel: Annotated[int, Field(ge=1, le=31)] = 5


ModelConfig = Annotated[LogisticModel | MlpModel | CnnModel, Field(discriminator="kind")]

# ---------------------------------------------------------------------------------------------- schedule


class SyncSchedule(Section):
    """Rounds: `cohort` updates make a version; over-selected and late tasks are aborted at the round's end."""

    policy: Literal["sync"]
    cohort: Count
    over_selection: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.0
    deadline_s: PositiveSeconds | None = None
    selection: Literal["uniform", "size", "availability"] = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks that a round dispatches."""
        return math.ceil(round(self.cohort * self.over_selection, 9))


class AsyncSchedule(Section):
    """Every arrival makes a version, and its slot starts again at once."""

    policy: Literal["async"]
    concurrency: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"


class BufferedSchedule(Section):
    """Every `buffer` arrivals make a version; slots start again at once (FedBuff, K-batch-async)."""

    policy: Literal["buffered"]
    concurrency: Count
    buffer: Count = 10
    selection: Literal["uniform", "size", "availability"] = "uniform"


class KAsyncSchedule(Section):
    """Every `k` arrivals make a version; the slots of those k wait for it (Dutta et al. 2018)."""

    policy: Literal["k-async"]
    concurrency: Count
    k: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        if self.k > self.concurrency:
            raise ValueError(
                f"k is {self.k}, above concurrency ({self.concurrency}): k tasks can never be in, so no version would be made"
            )
        return self


class WindowSchedule(Section):
    """Semi-synchronous: a version at the end of every window in which something arrived; finishers wait for it."""

    policy: Literal["window"]
    concurrency: Count
    window_s: PositiveSeconds
    selection: Literal["uniform", "size", "availability"] = "uniform"


class TiersSchedule(Section):
    """Clients ranked by expected task time into `tiers` equal tiers, each running rounds of its own."""

    policy: Literal["tiers"]
    tiers: Annotated[int, Field(ge=1, le=1000)]
    cohort: Count
    selection: Literal["uniform", "size", "availability"] = "uniform"

    @property
    def concurrency(self) -> int:
        """Tasks in flight when every tier has a round open."""
        return self.tiers * self.cohort


ScheduleConfig = Annotated[
    SyncSchedule | AsyncSchedule | BufferedSchedule | KAsyncSchedule | WindowSchedule | TiersSchedule,
    Field(discriminator="policy"),
]

# ---------------------------------------------------------------------------------------------- training


class SgdOptimizer(Section):
    """Stochastic gradient descent with momentum and weight decay, as torch's."""

    kind: Literal["sgd"]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: NonNegative = 0.0


class AdamOptimizer(Section):
    """Adam, or AdamW with decoupled weight decay; state starts afresh with each task."""

    kind: Literal["adam", "adamw"]
    learning_rate: Positive
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        default=(0.9, 0.999), strict=False
    )
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


OptimizerConfig = Annotated[SgdOptimizer | AdamOptimizer, Field(discriminator="kind")]


class DecayConfig(Section):
    """Learning rate times `factor` at every `every_versions` versions of the base version."""

    factor: Annotated[float, Field(gt=0.0, le=1.0)]
    every_versions: Count


class PlainObjective(Section):
    """The task's loss and nothing else."""

    kind: Literal["plain"]


class ProximalObjective(Section):
    """Adds (mu/2) ||w - w_base||^2 (FedProx, Li et al. 2018)."""

    kind: Literal["proximal"]
    mu: NonNegative


ObjectiveConfig = Annotated[PlainObjective | ProximalObjective, Field(discriminator="kind")]


class TrainingConfig(Section):
    """Local training. Exactly one of `epochs` and `steps`.

    `order` says where batches come from: `task` shuffles anew for each task, `continued` goes on through one
    permutation of the client's samples across tasks, reshuffled when used up; `sequential` never shuffles.
    """

    optimizer: OptimizerConfig
    batch_size: Annotated[int, Field(ge=1, le=2**24)]
    epochs: Annotated[int, Field(ge=1, le=2**24)] | None = None
    steps: Annotated[int, Field(ge=1, le=2**31)] | None = None
    order: Literal["task", "continued", "sequential"] = "task"
    objective: ObjectiveConfig = PlainObjective(kind="plain")
    clip_norm: Positive | None = None
    decay: DecayConfig | None = None
    path: Literal["auto", "loop"] = "auto"
    group_size: Annotated[int, Field(ge=1, le=512)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            given = "both" if self.epochs is not None else "neither"
            raise ValueError(f"exactly one of epochs and steps must be given, got {given}")
        return self


# ------------------------------------------------------------------------------------------- aggregation


class FedAvgRule(Section):
    """Mean of the updates, by samples or uniform (McMahan et al. 2017)."""

    rule: Literal["fedavg"]
    weighting: Literal["samples", "uniform"] = "samples"
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


class ConstantStaleness(Section):
    """1: stale updates count like fresh ones."""

    kind: Literal["constant"]


class PolynomialStaleness(Section):
    """(1 + tau)^-a"""

    kind: Literal["polynomial"]
    a: NonNegative = 0.5


class HingeStaleness(Section):
    """1 for tau <= b, else 1 / (a (tau - b) + 1)"""

    kind: Literal["hinge"]
    a: Positive = 10.0
    b: NonNegative = 4.0


StalenessConfig = Annotated[
    ConstantStaleness | PolynomialStaleness | HingeStaleness, Field(discriminator="kind")
]


class FedAsyncRule(Section):
    """w <- (1 - a) w + a w_k with a = alpha s(tau) (Xie et al. 2019)."""

    rule: Literal["fedasync"]
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    max_staleness: CountOrZero | None = None


class FedBuffRule(Section):
    """w <- w + eta (1/K) sum s(tau) D_k (Nguyen et al. 2022)."""

    rule: Literal["fedbuff"]
    server_learning_rate: Positive = 1.0
    staleness: StalenessConfig = PolynomialStaleness(kind="polynomial", a=0.5)
    weighting: Literal["uniform", "samples"] = "uniform"
    max_staleness: CountOrZero | None = None


class KAsyncRule(Section):
    """w <- w + eta mean of the K updates (Dutta et al. 2018)."""

    rule: Literal["k-async"]
    server_learning_rate: Positive = 1.0
    max_staleness: CountOrZero | None = None


AggregationConfig = Annotated[
    FedAvgRule | FedAsyncRule | FedBuffRule | KAsyncRule, Field(discriminator="rule")
]

# -------------------------------------------------------------------------------------------- the engine


class EvaluationConfig(Section):
    """When the model is tested. `clients: true` scores every client's own test set, where there are some.

    What reads an evaluation takes effect `lag_versions` later; the server waits for a result that is late.
    """

    every_versions: Count | None = 10
    lag_versions: CountOrZero = 1
    clients: bool = True
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 256


class TargetConfig(Section):
    """Stop once the mean of a metric over the evaluated test sets reaches `value`."""

    metric: Literal["accuracy", "loss"] = "accuracy"
    value: Annotated[float, Field(allow_inf_nan=False)]


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
    """Bounds, in bytes; each is raised to the least that works (one update, one group, one version)."""

    server_updates_bytes: Bytes = 2**30
    server_versions_bytes: Bytes = 2**30
    worker_updates_bytes: Bytes = 2**30
    worker_versions_bytes: Bytes = 2**30
    worker_data_bytes: Bytes = 2**30


class RecordConfig(Section):
    """How often buffered rows reach the disk, and whether losses are those of the batches met in training or of the whole shard."""

    flush_s: PositiveSeconds = 2.0
    losses: Literal["running", "full", "none"] = "running"


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
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig
    placement: Literal["home", "balanced", "dynamic"] = "home"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    stall_timeout_s: PositiveSeconds = 600.0
    allow_mixed: bool = False
    memory: MemoryConfig = MemoryConfig()
    record: RecordConfig = RecordConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        central = self.data.dataset in ("digits", "idx", "npz")
        natural = self.partition.kind == "natural"
        if central and natural:
            raise ValueError(
                f"data set '{self.data.dataset}' has no clients of its own: partition.kind must be one of iid, dirichlet, shards, quantity"
            )
        if not central and not natural:
            raise ValueError(
                f"data set '{self.data.dataset}' has its own clients: partition.kind must be natural, got {self.partition.kind}"
            )
        if self.clock == "wall":
            self._check_wall()
        if self.schedule.policy == "async" and self.aggregation.rule in ("k-async",):
            raise ValueError("aggregation.rule k-async needs schedule.policy k-async or buffered, got async")
        if self.aggregation.rule == "fedbuff" and self.schedule.policy not in ("buffered", "k-async", "window", "tiers"):
            raise ValueError(
                f"aggregation.rule fedbuff needs a buffer: schedule.policy buffered (or k-async, window, tiers), got {self.schedule.policy}"
            )
        if self.aggregation.rule == "fedasync" and self.schedule.policy != "async":
            raise ValueError(
                f"aggregation.rule fedasync makes a version of every arrival: schedule.policy must be async, got {self.schedule.policy}"
            )
        if self.stop.target is not None and self.evaluation.every_versions is None:
            raise ValueError("stop.target reads evaluations: evaluation.every_versions must be given")
        return self

    def _check_wall(self) -> None:
        if self.stop.virtual_s is not None:
            raise ValueError("stop.virtual_s needs clock: virtual, got wall (use wall_s)")
        if self.devices != DevicesConfig():
            raise ValueError("devices simulates delays, loss and absence: it needs clock: virtual, got wall")
        if self.schedule.policy == "tiers":
            raise ValueError("schedule.policy tiers ranks simulated devices: it needs clock: virtual, got wall")
