"""Adaptive average pooling as a GPU has it, on a CPU: products with matrices of means, there and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.layout import Layout
from fedsim.training.fused import convolution
from fedsim.training.fused.memory import Places
from fedsim.training.fused.values import Arena, Context, Form, Memory, Target, Value


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 5), (7, 6)])
def test_products_are_the_means_and_their_gradients(size: tuple[int, int]) -> None:
    device, dtype = torch.device("cpu"), torch.float64
    slab = Places(Layout.of(nn.Linear(1, 1)), []).slab(2, dtype, device)
    ctx = Context(2, 3, Arena(dtype, device), slab, Target(slab, 1.0, -1.0))
    x = Value(Form.MAPS, (4, 7, 6), Memory(needs_grad=True, is_fixed=False))
    pool = convolution.AveragePool2d(ctx, nn.AdaptiveAvgPool2d(size), x, (4, *size))
    assert not pool.by_products
    pool.by_products = True
    x.m.t = torch.randn(3, 8, 7, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    pool.forward()
    by_torch = x.m.t.clone().requires_grad_()
    expected = functional.adaptive_avg_pool2d(by_torch, size)
    pool.y.m.grad = torch.randn_like(expected)
    pool.backward()
    expected.backward(pool.y.m.grad)
    assert torch.allclose(pool.y.m.t, expected, rtol=1e-13, atol=1e-15)
    assert torch.allclose(x.m.grad, by_torch.grad, rtol=1e-13, atol=1e-15)
