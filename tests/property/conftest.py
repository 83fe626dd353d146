"""Modules that have every layer the stacked paths know, at odd widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim.types import Shard


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


class Dropping(nn.Module):
    """Dropout of channels, of numbers, of the samples themselves and by a function; one layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = nn.Dropout(0.1)
        self.first = nn.Conv2d(2, 5, 3)
        self.channels = nn.Dropout2d(0.4)
        self.pool = nn.AdaptiveMaxPool2d((3, 2))
        self.second = nn.Linear(30, 13)
        self.some = nn.Dropout(0.5)
        self.last = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.channels(self.first(self.sparse(x))))
        x = self.some(self.pool(x).flatten(1))
        x = self.some(torch.tanh(self.second(x)))
        return self.last(nn.functional.dropout(x, 0.2, self.training))


class Text(nn.Module):
    """Tokens as vectors, some of them dropped whole, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(23, 11, padding_idx=0)
        self.words = nn.Dropout1d(0.3)
        self.up = nn.Linear(11, 13)
        self.out = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.up(self.words(self.embedding(x.long()))))
        return self.out(x.mean(1))


def tokens() -> nn.Module:
    return nn.Sequential(
        AsTokens(), nn.Embedding(7, 3), nn.GELU(), nn.Flatten(), nn.Dropout(0.5), nn.LayerNorm(27), nn.Linear(27, 5)
    )


class AsTokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()


VOCABULARIES = {"text": 23, "tokens": 7}  # modules whose samples are tokens

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 9, 7)),
    "mixer": (Mixer, (7, 11)),
    "strided": (strided, (2, 11, 9)),
    "deep": (deep, (2, 9, 7)),
    "pooled": (pooled, (2, 9, 7)),
    "dropping": (Dropping, (2, 9, 7)),
    "text": (Text, (6,)),
    "tokens": (tokens, (9,)),
}


def _make(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        module(torch.zeros(2, *shape))
    return module, shape


_EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.empty_strided.default}
_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class RecordedGraph(TorchDispatchMode):
    """A `fedsim.training.captured.Graph` of what a CPU computes: the operations, repeated on the same memory.

    As with a CUDA graph, no line of Python runs at a replay: a number that Python computed is what it was, a tensor is
    where it was, and what is read back from a tensor to decide something is an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.n_records = self.n_replays = 0

    def record(self, work: Callable[[], None]) -> None:
        assert not self.operations, "recorded again"
        work()  # the warm-up
        with self:
            work()
        self.n_records += 1

    def replay(self) -> None:
        for func, args, kwargs, held in self.operations:
            found = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(held), tree_leaves(found if held is not None else None), strict=True):
                if isinstance(kept, torch.Tensor):
                    kept.copy_(new)
        self.n_replays += 1

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        assert func not in _READS, f"{func} reads a tensor, which a graph cannot"
        out = func(*args, **kwargs)
        if func in _EMPTY:
            return out
        is_view = any(result.alias_info is not None for result in func._schema.returns)
        self.operations.append((func, args, kwargs, None if is_view else out))
        return out


@pytest.fixture
def make_graph() -> type[RecordedGraph]:
    """Call it as `RecordedGraph`."""
    return RecordedGraph


@pytest.fixture
def make_samples(make_shard: Callable[..., Shard]) -> Callable[..., Shard]:
    """`make_samples(name, n, seed)`: samples for the module of that name."""

    def make(name: str, n: int, seed: int) -> Shard:
        shard = make_shard(n, MODULES[name][1], 5, seed=seed)
        if name not in VOCABULARIES:
            return shard
        tokens = np.random.default_rng(seed).integers(0, VOCABULARIES[name], shard.x.shape)
        return Shard(tokens.astype(np.float32), shard.y)

    return make


@pytest.fixture
def make_module() -> Callable[[str, int], tuple[nn.Module, tuple[int, ...]]]:
    """`make_module(name, seed)`: a module of five outputs, and the shape of its samples."""
    return _make
