"""Layers that draw random numbers while they train, such as dropout, made a function of the task.

torch's dropout takes no generator: it draws from the global one. So a task of a model with such layers runs on a
global generator that is seeded from the task's key, and that is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsim import seeding
from fedsim.types import Task


def draws(module: torch.nn.Module) -> bool:
    """Whether training the module draws random numbers: any kind of dropout, or randomised ReLU."""
    drawing = (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    return any(isinstance(layer, drawing) or _rate(layer) > 0.0 for layer in module.modules())


def _rate(layer: torch.nn.Module) -> float:
    rate = getattr(layer, "dropout", 0.0)  # nn.LSTM and nn.MultiheadAttention hold theirs as a number
    return float(rate) if isinstance(rate, float | int) else 0.0


@contextmanager
def keyed(seed: int, task: Task, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators from (seed, client, task) inside the `with`, and restores them after it."""
    word = seeding.bits(seed, seeding.Purpose.DROPOUT, task.client, task.task, 1)[0]
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(int(word >> 1))
        yield
