"""ReLU and max-pool in one pass: torch's two layers to the last bit, ties, infinities and NaN included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.training.fused import pooling
from fedsim.training.fused.convolution import Rectified, joined
from fedsim.training.fused.graph import trace

LEVELS = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, float("inf"), -float("inf"), float("nan")]


def bits(x: torch.Tensor) -> list[int]:
    """The bits of its numbers; all NaN are one, and so are both zeros, since torch itself gives either."""
    values = np.where(np.isnan(x.numpy()), np.float32(np.nan), x.numpy() + np.float32(0))
    found: list[int] = values.view(np.int32).ravel().tolist()
    return found


def rows(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 19), st.integers(4, 9), st.integers(4, 9)),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    has_odd=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_relu_and_then_the_pool(
    shape: tuple[int, ...], size: int, stride: int, padding: int, dilation: int, has_odd: bool, seed: int
) -> None:
    padding = min(padding, size // 2)
    rng = np.random.default_rng(seed)
    levels = LEVELS if has_odd else LEVELS[:6]
    x = torch.from_numpy(rng.choice(np.array(levels, np.float32), shape)).requires_grad_()
    if dilation * (size - 1) + 1 > min(shape[2:]):
        return
    expected = nn.MaxPool2d(size, stride, padding, dilation)(x.relu())
    dy = torch.from_numpy(rng.normal(size=expected.shape).astype(np.float32))
    (dx,) = torch.autograd.grad(expected, x, dy)
    windows = pooling.Windows((size, size), (stride, stride), (padding, padding), (dilation, dilation))
    y, which = np.empty_like(rows(expected.detach())), np.empty(rows(expected.detach()).shape, np.uint8)
    pooling.forward(rows(x.detach()), y, which, windows, True)
    assert bits(torch.from_numpy(y)) == bits(torch.from_numpy(rows(expected.detach())))
    if has_odd:
        return  # torch's ReLU gives NaN a gradient of its own
    found = np.full_like(rows(dx), np.nan)
    pooling.backward(rows(dy), which, found, windows)
    if stride >= size:
        assert bits(torch.from_numpy(found)) == bits(torch.from_numpy(rows(dx)))
    np.testing.assert_allclose(found, rows(dx), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_channels", [1, 5, 64])
def test_windows_of_two_by_two_have_a_way_of_their_own(n_channels: int, dtype: type) -> None:
    rng = np.random.default_rng(n_channels)
    x = rng.choice(np.array(LEVELS, dtype), (3, 8, 6, n_channels))
    dy = rng.normal(size=(3, 4, 3, n_channels)).astype(dtype)
    windows = pooling.Windows((2, 2), (2, 2), (0, 0), (1, 1))
    y, which, dx = (np.empty(s.shape, t) for s, t in ((dy, dtype), (dy, np.uint8), (x, dtype)))
    other_y, other_which, other_dx = np.empty_like(y), np.empty_like(which), np.empty_like(dx)
    pooling.forward(x, y, which, windows, True)
    pooling.backward(dy, which, dx, windows)
    pooling.forward_2x2(x, other_y, other_which)
    pooling.backward_2x2(dy, other_which, other_dx)
    np.testing.assert_array_equal(y, other_y)
    np.testing.assert_array_equal(which, other_which)
    np.testing.assert_array_equal(dx, other_dx)
    assert (dx != 0).sum() == (which != pooling.NONE).sum() > 0


def test_what_is_joined() -> None:
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    kinds = [
        [type(node.layer) for node in joined(trace(nn.Sequential(*layers), (3, 8, 8)))]
        for layers in ((relu, pool), (pool, relu), (relu, nn.Tanh(), pool), (nn.Tanh(), relu, pool, relu))
    ]
    assert kinds == [
        [nn.Identity, Rectified],
        [nn.MaxPool2d, nn.ReLU],
        [nn.ReLU, nn.Tanh, nn.MaxPool2d],
        [nn.Tanh, nn.Identity, Rectified, nn.ReLU],
    ]
    large = nn.Sequential(relu, nn.MaxPool2d(16))
    assert [type(node.layer) for node in joined(trace(large, (3, 16, 16)))] == [nn.ReLU, nn.MaxPool2d]


class Twice(nn.Module):
    """A ReLU with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.pool, self.other = nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(x)
        return self.pool(x) + self.other(x)


def test_a_relu_that_others_read_stays() -> None:
    nodes = trace(Twice(), (3, 8, 8))
    assert all(a is b for a, b in itertools.zip_longest(joined(nodes), nodes))
