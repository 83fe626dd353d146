"""How a client trains: from a version and a shard to an update.

Every path gives the same numbers behind one border, `Trainer`. Importing this package does not load torch, so
that the scheduler can read `fedsim.training.plan`. Shapes: `G` tasks in a group, `P` parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from fedsim.config import RunConfig
from fedsim.types import Float32, Rows, Task, TaskReport
from fedsim.userfiles import UserFunction

if TYPE_CHECKING:
    import torch

    from fedsim.population.population import Population
    from fedsim.training.group import Machine
    from fedsim.training.shards import ShardCache

Payload = Literal["delta", "model"]


class Trainer(Protocol):
    """A way of training groups of tasks; `path` names it in the record, `group_size` is how many it wants at once.

    `takes_rows`: it writes to rows that lie apart, too.
    """

    path: str
    group_size: int
    takes_rows: bool

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out: Rows,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> Sequence[TaskReport]:
        """The reports of `tasks`, whose updates it writes to `out`: float32 (G, P), or rows that lie apart.

        Paths that train groups take their columns, and give a `ReportTable`: to them a `TaskTable` is quickest.
        `base_of(version)` is that version's vector, float32 (P,), which is only read. `progress` is called every
        millisecond or so between steps, so that messages move meanwhile. `linear_GP` holds the slope of a linear term
        of each task's objective, a vector that is added to each of its gradients; it is given if and only if the
        trainer was built with `has_linear`.
        Raises ClientError for a loss or an update that is not finite.
        """


def build(
    config: RunConfig,
    population: Population,
    module: torch.nn.Module,
    *,
    payload: Payload,
    device: torch.device,
    worker: int,
    clock: Callable[[], float],
    shards: ShardCache | None = None,
    has_linear: bool = False,
    own: UserFunction | None = None,
) -> Trainer:
    """The trainer of the path that `fedsim.training.choice` comes to for the configuration and the module.

    `module` is copied. `payload` is what the aggregation rule takes: model differences or local models. `worker`
    is the number put into reports, `clock` a wall clock in seconds. `shards` is a cache to share with an
    `Evaluator`; without one the trainer has its own, bounded by `memory.worker_data_bytes`. `has_linear`: each task
    has a linear term of its own in its objective. `own` is the objective of the user's own, where there is one.
    Raises ConfigError if the path that is asked for cannot take the module.
    """
    from fedsim.training.choice import choose_path
    from fedsim.training.objectives import loss_of

    choice = choose_path(config, module, population.sample_shape, loss_of(config, population), has_linear)
    if choice.path == "loop":
        from fedsim.training.loop import LoopTrainer

        return LoopTrainer(
            config, population, module, payload=payload, device=device, worker=worker, clock=clock, shards=shards,
            has_linear=has_linear, own=own,
        )  # fmt: skip
    from fedsim.training.group import GroupTrainer

    machine: Callable[..., Machine]
    if choice.path == "fused":
        from fedsim.training.fused.machine import FusedMachine as machine
    elif choice.path == "captured":
        from fedsim.training.captured import build as machine
    else:
        from fedsim.training.stacked import StackedMachine as machine
    make = partial(machine, module, population.sample_shape, config.training, device=device, has_linear=has_linear)
    return GroupTrainer(
        choice, make, config, population, module, payload=payload, device=device, worker=worker, clock=clock,
        shards=shards,
    )  # fmt: skip
