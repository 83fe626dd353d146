"""Layers that draw random numbers while they train, made a function of the task.

Masks of dropout are inputs of a step. They are keyed by (seed, DROPOUT, client, task), the layer and the step, so that
a task's masks are the same on every path, in any slot and company. Number f of sample b has bits 32 (b F + f) and on of
its step, and is dropped where they are a number below rate * 2^32.

What else draws, such as randomised ReLU, takes its numbers from torch's global generator, since torch offers no other
way: a task of such a module runs on a global generator that is seeded from the task's key, and put back afterwards.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch, `F` numbers of a sample's mask, `N` samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedsim import seeding
from fedsim.types import Int64, Task

_BLOCK_BYTES = 1 << 20  # of a block of masks, a byte a number
_MAX_STEPS = 64
_AXES: dict[Callable[..., Tensor], int] = {
    functional.dropout: 0,
    functional.dropout1d: 1,
    functional.dropout2d: 2,
    functional.dropout3d: 3,
}  # how many of a sample's last axes share a number


class Dropout(NamedTuple):
    """A use of dropout in a module: its rate, and the shape of a sample's mask. Uses are numbered in order."""

    rate: float
    shape: tuple[int, ...]

    @property
    def factor(self) -> float:
        """What is kept is multiplied by it."""
        return 1.0 / (1.0 - self.rate) if self.rate < 1.0 else 0.0


class Noise(NamedTuple):
    """What a module draws while it trains: masks, in order of use, and whether there is anything else."""

    dropouts: tuple[Dropout, ...]
    is_global: bool


class Keys(NamedTuple):
    """Whose masks are drawn: of each slot's task the client, the task and its steps, the most steps first."""

    seed: int
    clients_G: Int64
    tasks_G: Int64
    n_steps: Sequence[int]


def keys_of(seed: int, tasks: Sequence[Task]) -> Keys:
    """The keys of tasks in slots."""
    numbers_G2 = np.array([(task.client, task.task) for task in tasks], dtype=np.int64)
    return Keys(seed, numbers_G2[:, 0], numbers_G2[:, 1], [task.n_steps for task in tasks])


class Masked(TorchFunctionMode):
    """Inside the `with`, dropout that is in training multiplies by what `mask_of(number, rate, shape)` gives.

    The shape is the mask's, the batch in front. Uses are numbered from 0 each time that the `with` is entered.
    """

    def __init__(self, mask_of: Callable[[int, float, tuple[int, ...]], Tensor | float]) -> None:
        super().__init__()
        self._mask_of = mask_of
        self._n = 0

    def __enter__(self) -> Masked:
        self._n = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _AXES:
            return func(*args, **kwargs)
        return self._drop(_AXES[func], *args, **kwargs)

    def _drop(self, n_axes: int, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return x
        self._n += 1
        n_kept = x.dim() - n_axes
        return x * self._mask_of(self._n - 1, float(p), (*x.shape[:n_kept], *[1] * n_axes))


def find(module: torch.nn.Module, sample_shape: tuple[int, ...]) -> Noise:
    """What a module draws, found by running a copy of it on two samples of zeros."""
    found: list[tuple[float, tuple[int, ...]]] = []

    def note(number: int, rate: float, shape: tuple[int, ...]) -> float:
        found.append((rate, shape))
        return 1.0

    probe = copy.deepcopy(module).cpu().train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        state = torch.get_rng_state()
        try:
            with Masked(note):
                probe(torch.zeros((2, *sample_shape)))
        except Exception:  # a module that such samples are nothing for: what its layers say counts
            return Noise((), any(draws(layer) for layer in module.modules()) or bool(found))
        is_global = not torch.equal(state, torch.get_rng_state())
    if any(shape[0] != 2 for _, shape in found):  # the samples are not the first axis there
        return Noise((), True)
    return Noise(tuple(Dropout(rate, shape[1:]) for rate, shape in found), is_global)


def draws(layer: torch.nn.Module) -> bool:
    """Whether a layer of torch's draws random numbers in training that are not keyed masks."""
    drawing = (torch.nn.AlphaDropout, torch.nn.FeatureAlphaDropout, torch.nn.RReLU)
    return isinstance(layer, drawing) or (not isinstance(layer, torch.nn.Sequential) and _rate(layer) > 0.0)


def _rate(layer: torch.nn.Module) -> float:
    rate = getattr(layer, "dropout", 0.0)  # nn.LSTM and nn.MultiheadAttention hold theirs as a number
    return float(rate) if isinstance(rate, float | int) else 0.0


def block_steps(n_numbers: int) -> int:
    """For how many steps masks are drawn at once, of `n_numbers` a step in all."""
    return min(max(_BLOCK_BYTES // max(n_numbers, 1), 1), _MAX_STEPS)


class Masks:
    """The masks of the step at hand, in fixed memory: `now` holds one a use of dropout, (G, B, *its shape).

    They are drawn for all slots and several steps at once.
    """

    def __init__(
        self, dropouts: Sequence[Dropout], n_slots: int, n_batch: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dropouts = dropouts
        self._n_batch = n_batch
        self.now = [torch.ones((n_slots, n_batch, *d.shape), dtype=dtype, device=device) for d in dropouts]
        self._n_block = block_steps(sum(mask.numel() for mask in self.now))
        self._block: list[Tensor] = []
        self._steps = range(0)
        self._step = 0
        self._keys: Keys

    def start(self, keys: Keys) -> None:
        """Takes new tasks, before their first step."""
        self._keys = keys
        self._steps, self._step = range(0), 0

    def advance(self, n_slots: int) -> None:
        """Puts the masks of the next step of the first slots into `now`."""
        if not self._dropouts:
            return
        if self._step == self._steps.stop:
            self._steps = range(self._step, min(self._step + self._n_block, self._keys.n_steps[0]))
            self._block = [self._drawn(number, n_slots) for number in range(len(self._dropouts))]
        for dropout, now, kept_gKB in zip(self._dropouts, self.now, self._block, strict=True):
            now[:n_slots].copy_(kept_gKB[:n_slots, self._step - self._steps.start]).mul_(dropout.factor)
        self._step += 1

    def _drawn(self, number: int, n_slots: int) -> Tensor:
        """What is kept in the steps of a block: bool (g, K, B, *shape), on the device."""
        keys = self._keys
        keys = Keys(keys.seed, keys.clients_G[:n_slots], keys.tasks_G[:n_slots], keys.n_steps[:n_slots])
        kept_gKB = kept(keys, number, self._dropouts[number], self._n_batch, self._n_batch, self._steps)
        return torch.from_numpy(kept_gKB).to(self.now[number].device)


def kept(keys: Keys, number: int, dropout: Dropout, n_batch: int, n_rows: int, steps: range) -> NDArray[np.bool_]:
    """What use `number` of dropout keeps of the first rows of some steps' batches: bool (G, steps, rows, *shape).

    `n_batch` is the configured size of a batch, which decides where a step's words begin.
    """
    n_features = math.prod(dropout.shape)
    n_words = -(-n_batch * n_features // 8) * 4  # of a step: whole blocks of the generator
    n = n_rows * n_features
    n_drawn = n_words * len(steps) if len(steps) > 1 else -(-n // 2)
    words = seeding.long_bits(
        keys.seed, seeding.Purpose.DROPOUT, keys.clients_G, keys.tasks_G, n_drawn, n_words * steps.start, number
    )
    halves = words.astype("<u8", copy=False).view("<u4").reshape(len(words), len(steps), -1)[:, :, :n]
    least = np.uint64(round(dropout.rate * 2**32))
    return (halves >= least).reshape(len(words), len(steps), n_rows, *dropout.shape)


class TaskMasks(Masked):
    """The masks of one task alone, drawn as they are asked for: `start` it, then enter it for each step."""

    def __init__(self, n_batch: int, device: torch.device) -> None:
        super().__init__(self._draw)
        self._n_batch, self._device = n_batch, device
        self._step = -1
        self._keys: Keys

    def start(self, keys: Keys) -> None:
        """Takes a new task, before its first step."""
        self._keys, self._step = keys, -1

    def __enter__(self) -> TaskMasks:
        self._step += 1
        super().__enter__()
        return self

    def _draw(self, number: int, rate: float, shape: tuple[int, ...]) -> Tensor:
        dropout, steps = Dropout(rate, shape[1:]), range(self._step, self._step + 1)
        mask_B = kept(self._keys, number, dropout, self._n_batch, shape[0], steps)[0, 0]
        return torch.from_numpy(mask_B).to(self._device, torch.get_default_dtype()).mul_(dropout.factor)


@contextmanager
def keyed(seed: int, task: Task, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators from (seed, client, task) inside the `with`, and restores them after it."""
    word = seeding.bits(seed, seeding.Purpose.DROPOUT, task.client, task.task, 1)[0]
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(int(word >> 1))
        yield
