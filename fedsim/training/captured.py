"""The captured path: the step of a whole group recorded once as a CUDA graph, and replayed for every step after.

A group's step is some dozens of small kernels, each of which costs a launch from Python. A graph launches them all. It
repeats what was recorded, with the same memory and the same numbers from Python, so what changes from step to step is
in memory that the graph reads: samples, targets, scales, learning rates, masks, corrections of Adam, and the number of
the step in its block. The shape is always that of a full group; slots without a task, and those whose task is through,
rest (`fedsim.training.slabmachine`). So nothing is recorded again, whatever the groups are.

What is recorded never waits for the device: with deterministic algorithms on, torch's writes by index (`index_copy_`,
`scatter_add_`) become sorts that, in some of its versions, look at the indices on the host. So the step reads by index
and writes in place only, and the losses of its samples are copied to their place behind the replay.

Recording happens in the constructor, on slots that hold nothing: every step of a task is a replay.
Shapes: `G` slots, `K` steps of a block, `B` batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.config import TrainingConfig
from fedsim.errors import ConfigError
from fedsim.training.device import require_cuda
from fedsim.training.flat import Flat
from fedsim.training.fused.graph import UnsupportedError
from fedsim.training.fused.machine import FusedMachine
from fedsim.training.groupbatches import Batch
from fedsim.training.noise import Keys
from fedsim.training.objectives import TaskLoss
from fedsim.training.slabmachine import SlabMachine
from fedsim.types import Float64

_WARM_UPS = 3  # libraries set themselves up in the first calls, which a graph may not hold


class Graph(Protocol):
    """Work that is recorded once. `CudaGraph` is the real one; tests give one that records what a CPU computes."""

    def record(self, work: Callable[[], None]) -> None:
        """Records the work, which is called once or more; what it computes meanwhile does not count."""

    def replay(self) -> None:
        """Computes what was recorded, on the same memory, without a call of the work."""


class CudaGraph:
    """A CUDA graph on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph

    def record(self, work: Callable[[], None]) -> None:
        """See `Graph.record`."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=stream):
                work()
        except RuntimeError as error:  # an operation that waits for the device, or whose memory is not the graph's
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                "training.path: captured: torch cannot record the step of this model as a CUDA graph; "
                f"set training.path: fused, stacked or loop. It says: {reason}"
            ) from error

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


class CapturedMachine:
    """A machine for `GroupTrainer` whose steps are replays; `n_recorded` and `n_replayed` count."""

    def __init__(self, machine: SlabMachine, graph: Graph) -> None:
        assert machine.is_fixed
        self._machine, self._graph = machine, graph
        self.batches, self.carries_rate = machine.batches, machine.carries_rate
        self.n_recorded = self.n_replayed = 0
        scale_GKB = machine.batches.scale_GKB
        self._k = torch.zeros(1, dtype=torch.int64, device=scale_GKB.device)
        self._pieces_GB = torch.zeros_like(scale_GKB[:, 0])
        self._record()

    def _record(self) -> None:
        machine = self._machine
        n, n_parameters = machine.n_slots, machine.weights.n_values
        none = Flat([np.zeros(n_parameters, np.float32)] * n)
        nobody = Keys(0, np.zeros(n, np.int64), np.zeros(n, np.int64), [1] * n)
        machine.start(none, np.zeros(n), nobody, none.tensor() if machine.has_linear else None)
        machine.prepare(n)
        self._graph.record(self._step)
        self.n_recorded += 1

    def _step(self) -> None:
        """The work that is recorded: a step of all slots on batch `_k` of the block."""
        batches = self.batches
        x_GBF, targets_GB, scale_GB = (
            values.index_select(1, self._k).squeeze(1)
            for values in (batches.x_GKBF, batches.targets_GKB, batches.scale_GKB)
        )
        self._machine.take(Batch(x_GBF, targets_GB, scale_GB, self._pieces_GB, batches.n_features))

    def start(self, base: Flat, rates_G: Float64, keys: Keys, linear_GP: Tensor | None = None) -> None:
        """See `fedsim.training.group.Machine.start`."""
        self._machine.start(base, rates_G, keys, linear_GP)

    def begin_block(self, n_slots: int, n_block: int) -> None:
        """See `fedsim.training.group.Machine.begin_block`."""
        self._machine.begin_block(n_slots, n_block)

    def step(self, k: int, n_slots: int, n_most: int = 1) -> int:
        """See `fedsim.training.group.Machine.step`: one step."""
        self._machine.prepare(n_slots)
        self._k.fill_(k)
        self._graph.replay()
        self.batches.pieces_GKB[:, k].copy_(self._pieces_GB)
        self.n_replayed += 1
        return 1

    def end_block(self, n_slots: int) -> None:
        """See `fedsim.training.group.Machine.end_block`."""
        self._machine.end_block(n_slots)

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """See `fedsim.training.group.Machine.sample_losses`."""
        return self._machine.sample_losses(n_slots, n_steps)

    def finish(self) -> None:
        """See `fedsim.training.group.Machine.finish`."""
        self._machine.finish()

    def read(self, first: int, out: Flat) -> None:
        """See `fedsim.training.group.Machine.read`."""
        self._machine.read(first, out)

    def subtract(self, base: Flat, first: int, out: Flat) -> Float64 | None:
        """See `fedsim.training.group.Machine.subtract`."""
        return self._machine.subtract(base, first, out)


def build(
    module: nn.Module,
    sample_shape: tuple[int, ...],
    training: TrainingConfig,
    loss: TaskLoss,
    n_slots: int,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    has_linear: bool = False,
    graph: Graph | None = None,
) -> CapturedMachine:
    """A machine whose steps are those of the fused path, or else of the stacked one.

    Without a `graph` it is a CUDA graph. Raises ConfigError where the device is none of CUDA's.
    """
    if graph is None:
        require_cuda(device)
    try:
        machine: SlabMachine = FusedMachine(
            module, sample_shape, training, loss, n_slots, device=device, dtype=dtype, has_linear=has_linear,
            is_fixed=True,
        )  # fmt: skip
    except UnsupportedError:
        from fedsim.training.stacked import StackedMachine  # torch.func takes a while to load

        machine = StackedMachine(
            module, sample_shape, training, loss, n_slots, device=device, dtype=dtype, has_linear=has_linear,
            is_fixed=True,
        )  # fmt: skip
    return CapturedMachine(machine, graph or CudaGraph(device))
