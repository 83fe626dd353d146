"""How a client trains: from a version and a shard to an update.

Every path gives the same numbers behind one border, `Trainer`. Importing this package does not load torch, so
that the scheduler can read `fedsim.training.plan`. Shapes: `G` tasks in a group, `P` parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from fedsim.config import RunConfig
from fedsim.types import Float32, Task, TaskReport

if TYPE_CHECKING:
    import torch

    from fedsim.population.population import Population
    from fedsim.training.group import Machine
    from fedsim.training.shards import ShardCache

Payload = Literal["delta", "model"]


class Trainer(Protocol):
    """A way of training groups of tasks; `path` names it in the record, `group_size` is how many it wants at once."""

    path: str
    group_size: int

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[TaskReport]:
        """The reports of `tasks`, whose updates it writes to the rows of `out_GP`, float32 (G, P).

        `base_of(version)` is that version's vector, float32 (P,), which is only read. `progress` is called every
        millisecond or so between steps, so that messages move meanwhile.
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
) -> Trainer:
    """The trainer of the path that `fedsim.training.choice` comes to for the configuration and the module.

    `module` is copied. `payload` is what the aggregation rule takes: model differences or local models. `worker`
    is the number put into reports, `clock` a wall clock in seconds. `shards` is a cache to share with an
    `Evaluator`; without one the trainer has its own, bounded by `memory.worker_data_bytes`.
    Raises ConfigError if the path that is asked for cannot take the module.
    """
    from fedsim.training.choice import choose_path

    choice = choose_path(config, module, population.sample_shape, population.n_classes)
    if choice.path == "loop":
        from fedsim.training.loop import LoopTrainer

        return LoopTrainer(
            config, population, module, payload=payload, device=device, worker=worker, clock=clock, shards=shards
        )
    from fedsim.training.group import GroupTrainer

    machine: Callable[..., Machine]
    if choice.path == "fused":
        from fedsim.training.fused.machine import FusedMachine as machine
    else:
        from fedsim.training.stacked import StackedMachine as machine
    make = partial(machine, module, population.sample_shape, config.training, device=device)
    return GroupTrainer(
        choice, make, config, population, module, payload=payload, device=device, worker=worker, clock=clock,
        shards=shards,
    )  # fmt: skip
