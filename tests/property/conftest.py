"""Modules that have every layer the stacked paths know, at odd widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


class Residual(nn.Module):
    """Two branches of an image network, summed; the first of the branches is read three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.last = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x) + x)
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        return self.last(torch.flatten(x, 1))


class Mixer(nn.Module):
    """Rows of a sample as tokens: linear layers over the last axis, normalised, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(11)
        self.up = nn.Linear(11, 13)
        self.down = nn.Linear(13, 11)
        self.out = nn.Linear(77, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.out(x.flatten(1))


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
        nn.GELU(),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(4, 6, 2, groups=2, dilation=1),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def deep() -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(126, 17),
        nn.GELU(approximate="tanh"),
        nn.LayerNorm(17),
        nn.Linear(17, 15, bias=False),
        nn.Tanh(),
        nn.Linear(15, 5),
        nn.Tanh(),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.GroupNorm(1, 3, affine=False),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(18, elementwise_affine=False),
        nn.Linear(18, 5),
    )


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 9, 7)),
    "mixer": (Mixer, (7, 11)),
    "strided": (strided, (2, 11, 9)),
    "deep": (deep, (2, 9, 7)),
    "pooled": (pooled, (2, 9, 7)),
}


def _make(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        module(torch.zeros(2, *shape))
    return module, shape


@pytest.fixture
def make_module() -> Callable[[str, int], tuple[nn.Module, tuple[int, ...]]]:
    """`make_module(name, seed)`: a module of five outputs, and the shape of its samples."""
    return _make
