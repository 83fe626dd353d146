"""Local training: optimiser, length, order of batches, objective, path."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Count, NonNegative, Positive, Section
from fedsim.config.user import UserObjective


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


class AflCsObjective(Section):
    """Adds lambda ||w_l - w_base,l|| and c_s times a penalty of unlike ways, a weight tensor (Yan et al. 2023)."""

    kind: Literal["afl-cs"]
    penalty: Literal["directions", "weights", "released", "none"] = "directions"
    norm_weight: NonNegative = 0.005
    similarity_weight: NonNegative = 0.005


class AsoFedObjective(Section):
    """ASO-Fed's client: a proximal term, gradients balanced by former ones, longer steps after delays (Chen 2020)."""

    kind: Literal["aso-fed"]
    mu: NonNegative = 1.0
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.001
    dynamic_step: bool = True


ObjectiveConfig = Annotated[
    PlainObjective | ProximalObjective | AflCsObjective | AsoFedObjective | UserObjective,
    Field(discriminator="kind"),
]


LossKind = Literal["auto", "cross-entropy", "binary-cross-entropy", "mse", "cox"]


class TrainingConfig(Section):
    """Local training. Exactly one of `epochs` and `steps`.

    `order` says where batches come from: `task` shuffles anew for each task, `continued` goes on through one
    permutation of the client's samples across tasks, reshuffled when used up; `sequential` never shuffles. `loss: auto`
    is what the data's targets ask for. With `path: none` nothing is trained: the schedule runs alone.
    """

    optimizer: OptimizerConfig
    batch_size: Annotated[int, Field(ge=1, le=2**24)]
    epochs: Annotated[int, Field(ge=1, le=2**24)] | None = None
    steps: Annotated[int, Field(ge=1, le=2**31)] | None = None
    order: Literal["task", "continued", "sequential"] = "task"
    objective: ObjectiveConfig = PlainObjective(kind="plain")
    loss: LossKind = "auto"
    clip_norm: Positive | None = None
    decay: DecayConfig | None = None
    path: Literal["auto", "loop", "stacked", "fused", "captured", "none"] = "auto"
    group_size: Annotated[int, Field(ge=1, le=512)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            given = "both" if self.epochs is not None else "neither"
            raise ValueError(f"exactly one of epochs and steps must be given, got {given}")
        return self
