"""Compiled kernels of the fused path against torch, over random shapes, and that they leave padding alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedsim.layout import Layout
from fedsim.training import noise, objectives
from fedsim.training.flat import Flat
from fedsim.training.fused import entropy, images, products
from fedsim.training.fused.convolution import joined
from fedsim.training.fused.graph import trace
from fedsim.training.fused.machine import FusedMachine
from fedsim.training.fused.memory import padded
from fedsim.training.fused.pooled import FirstMaps
from fedsim.training.fused.pooled import joined as joined_first

SETTINGS = settings(max_examples=25, deadline=None)
ONES: dict[torch.dtype, Any] = {torch.float32: np.float32(1), torch.float64: np.float64(1)}
NEAR = {torch.float32: 3e-5, torch.float64: 1e-12}
dtypes = st.sampled_from(list(ONES))


def random(rng: np.random.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).to(dtype)


def with_padding(x: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """A copy (g, n_rows, n_columns), zeros where x has nothing."""
    room = x.new_zeros((x.shape[0], n_rows, n_columns))
    room[:, : x.shape[1], : x.shape[2]] = x
    return room


def place(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


@SETTINGS
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 600), st.integers(1, 40)),
    factors=st.sampled_from([(1.0, -1.0), (0.9, 1.0), (0.0, 1.0)]),
    has_dx=st.booleans(),
    is_apart=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
@example((2, 10, 300, 33), (1.0, -1.0), True, False, torch.float32, 0)
@example((2, 16, 20, 10), (0.0, 1.0), True, False, torch.float32, 0)
@example((1, 23, 20, 10), (0.9, 1.0), False, True, torch.float64, 0)
def test_products_are_those_of_a_linear_layer(
    sizes: tuple[int, int, int, int],
    factors: tuple[float, float],
    has_dx: bool,
    is_apart: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Also where what is kept lies apart from where the step goes (`is_apart`)."""
    (g, n_rows, n_in, n_out), (beta, alpha), rng = sizes, factors, np.random.default_rng(seed)
    x, w, b, dy = (
        random(rng, dtype, g, *shape) for shape in ((n_rows, n_in), (n_out, n_in), (1, n_out), (n_rows, n_out))
    )
    width, outputs, one, size = padded(n_in), padded(n_out), ONES[dtype], dtype.itemsize
    px, pw, pb = with_padding(x, n_rows, width), with_padding(w, outputs, width), with_padding(b, 1, outputs)
    pdy, y, dx = with_padding(dy, n_rows, outputs), x.new_zeros((g, n_rows, outputs)), torch.zeros_like(px)
    rows, strides = (one, g, n_rows, width, n_out), (pw.data_ptr(), pw.stride(0))
    products.forward(*rows, *place(px), *strides, pb.data_ptr(), pb.stride(0), *place(y), size)
    kept_w, kept_b = torch.full_like(pw, torch.nan) if beta == 0 else pw.clone(), pb.clone()
    to_w, to_b = (torch.full_like(kept_w, torch.nan), torch.zeros_like(pb)) if is_apart else (kept_w, kept_b)
    to_w[:, n_out:] = 0.0
    products.backward(
        *rows, has_dx, *place(pdy), *strides, *place(px), *place(dx), to_w.data_ptr(), kept_w.data_ptr(), one * beta,
        one * alpha, size,
    )  # fmt: skip
    products.add_sums(
        one, g, n_rows, n_out, *place(pdy), to_b.data_ptr(), kept_b.data_ptr(), to_b.stride(0), one * beta, one * alpha,
        size,
    )  # fmt: skip
    before = torch.zeros_like(w) if beta == 0 else beta * w
    expected = [
        (y, x @ w.transpose(1, 2) + b), (dx, dy @ w if has_dx else torch.zeros_like(x)),
        (to_w, before + alpha * dy.transpose(1, 2) @ x), (to_b, beta * b + alpha * dy.sum(1, keepdim=True)),
    ]  # fmt: skip
    for found, wanted in expected:
        torch.testing.assert_close(
            found[:, : wanted.shape[1], : wanted.shape[2]], wanted, rtol=NEAR[dtype], atol=NEAR[dtype] * 30
        )  # fmt: skip
    for found in (y[:, :, n_out:], dx[:, :, n_in:], to_w[:, n_out:], to_w[:, :n_out, n_in:], to_b[:, :, n_out:]):
        assert not found.any()


def test_a_step_may_change_the_weights_that_it_reads() -> None:
    """Plain SGD: dx is that of the weights before the step, in any number of blocks of rows."""
    rng, one = np.random.default_rng(3), np.float32(1)
    for n_rows in (1, 7, 10, 16, 33):
        x, w, dy = (random(rng, torch.float32, 2, *shape) for shape in ((n_rows, 48), (16, 48), (n_rows, 16)))
        dx, expected = torch.zeros_like(x), dy @ w
        products.backward(
            one, 2, n_rows, 48, 16, True, *place(dy), w.data_ptr(), w.stride(0), *place(x), *place(dx), w.data_ptr(),
            w.data_ptr(), one, -one, 4,
        )  # fmt: skip
        torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-4)


@SETTINGS
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)), dtype=dtypes, seed=st.integers(0, 99))
def test_entropy_and_its_gradient(sizes: tuple[int, int, int], dtype: torch.dtype, seed: int) -> None:
    (g, n_batch, n_out), rng = sizes, np.random.default_rng(seed)
    logits = (8 * random(rng, dtype, g, n_batch, n_out)).requires_grad_()
    targets = torch.from_numpy(rng.integers(0, n_out, (g, n_batch)))
    scale = random(rng, dtype, g, n_batch).abs()
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    (expected,) = torch.autograd.grad((losses * scale).sum(), logits)
    y = with_padding(logits.detach(), n_batch, padded(n_out))
    dy, pieces = torch.zeros_like(y), torch.zeros_like(scale)
    columns = [(t.data_ptr(), t.stride(0)) for t in (targets, scale, pieces)]
    entropy.step(
        ONES[dtype], g, n_batch, n_out, y.data_ptr(), dy.data_ptr(), y.stride(0), y.stride(1),
        *columns[0], *columns[1], *columns[2], dtype.itemsize,
    )  # fmt: skip
    near = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(-pieces, losses.detach(), rtol=near, atol=near)
    torch.testing.assert_close(dy[:, :, :n_out], expected, rtol=near, atol=near)
    assert not dy[:, :, n_out:].any()


def test_what_is_not_a_number_stays_visible() -> None:
    y = torch.tensor([[[0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0]]])
    dy, pieces, scale, targets = torch.zeros_like(y), torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2).long()
    columns = [(t.data_ptr(), t.stride(0)) for t in (targets, scale, pieces)]
    entropy.step(
        np.float32(1), 1, 2, 3, y.data_ptr(), dy.data_ptr(), 6, 3, *columns[0], *columns[1], *columns[2], 4
    )  # fmt: skip
    assert pieces.isnan().all() and dy.isnan().any(2).all()


@SETTINGS
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    kernel=st.sampled_from([(1, 1), (2, 3)]),  # code is written for each
    n_out=st.sampled_from([16, 32]),
    is_flat=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_the_first_convolution_with_its_pool(
    sizes: tuple[int, ...], kernel: tuple[int, int], n_out: int, is_flat: bool, dtype: torch.dtype, seed: int
) -> None:
    (g, n_batch, depth, height, width), rng, one = sizes, np.random.default_rng(seed), ONES[dtype]
    before = (kernel[0] // 2, kernel[1] // 2)
    x = random(rng, dtype, g, n_batch, depth, 2 * height + 1 - kernel[0] % 2, 2 * width + 1 - kernel[1] % 2)
    x = x.round() if is_flat else x  # with equal numbers in many windows
    w, b = random(rng, dtype, g, n_out, depth, *kernel), random(rng, dtype, g, n_out)
    w, b = (w.round(), (2 * b).round() / 2) if is_flat else (w, b)
    image = (depth, x.shape[3] + 2 * before[0], x.shape[4] + 2 * before[1])
    out = (image[1] - kernel[0] + 1) // 2, (image[2] - kernel[1] + 1) // 2
    room, n_taps = x.new_zeros((g, n_batch, *image)), w[0, 0].numel()
    y, which = x.new_zeros((n_batch, *out, g * n_out)), torch.zeros((n_batch, *out, g * n_out), dtype=torch.uint8)
    sums, dy = x.new_zeros((n_taps + depth, n_out)), random(rng, dtype, n_batch, *out, g * n_out)
    kernel_sizes = tuple((0,) * n for n in kernel)
    images.pad(
        one, g, n_batch, tuple(x.shape[2:]), x.data_ptr(), x.stride(0), x.stride(1), room.data_ptr(), image[1:],
        before, dtype.itemsize,
    )  # fmt: skip
    images.forward(
        one, kernel_sizes, g, n_batch, room.data_ptr(), image, w.data_ptr(), w.stride(0), b.data_ptr(), n_out,
        sums.data_ptr(), n_out, y.data_ptr(), which.data_ptr(), out, dtype.itemsize,
    )  # fmt: skip
    to_w, to_b = w.clone(), b.clone()
    images.backward(
        one, kernel_sizes, g, n_batch, room.data_ptr(), image, dy.data_ptr(), which.data_ptr(), out, sums.data_ptr(),
        n_out, to_w.data_ptr(), w.stride(0), to_b.data_ptr(), n_out, one, -one, dtype.itemsize,
    )  # fmt: skip
    for s in range(g):
        own = slice(s * n_out, (s + 1) * n_out)
        ws, bs = w[s].clone().requires_grad_(), b[s].clone().requires_grad_()
        expected = functional.max_pool2d(functional.conv2d(x[s], ws, bs, padding=before).relu(), 2)
        dw, db = torch.autograd.grad(expected, (ws, bs), dy[..., own].permute(0, 3, 1, 2))
        near = {"rtol": NEAR[dtype], "atol": NEAR[dtype] * 30}
        torch.testing.assert_close(y[..., own].permute(0, 3, 1, 2), expected.detach(), **near)
        torch.testing.assert_close(to_w[s], w[s] - dw, **near)
        torch.testing.assert_close(to_b[s], b[s] - db, **near)


def test_the_way_back_through_a_later_convolution(make_config: Callable[..., Any]) -> None:
    """Two convolutions with pools, as a model: after a step their weights are torch's, from flat images, too."""
    rng, dtype = np.random.default_rng(5), torch.float64
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, (3, 2), padding=(1, 1)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 3 * 2, 3),
    )  # fmt: skip
    config = make_config(model={"kind": "mlp"}, training={"batch_size": 4, "group_size": 3})
    loss = objectives.task_loss(3)
    machine = FusedMachine(module, (1, 12, 6), config.training, loss, 3, device=torch.device("cpu"), dtype=dtype)
    kinds = [type(node.layer).__name__ for node in machine._nodes]
    assert kinds.count("FirstMaps") == kinds.count("PooledMaps") == 1 and "Conv2d" not in kinds
    layout = Layout.of(module)
    base_GP = torch.from_numpy(np.stack([layout.flatten(module) * f for f in (1.0, 0.5, -1.0)])).to(dtype)
    x = torch.from_numpy(rng.normal(size=(3, 4, 1, 12, 6)).round(0))
    targets = torch.from_numpy(rng.integers(0, 3, (3, 4)))
    machine.start(Flat.of(base_GP), np.full(3, 0.1), noise.Keys(0, np.arange(3), np.arange(3), [1] * 3))
    batches = machine.batches
    batches.x_GKBF[:, 0] = 0.0
    batches.x_GKBF[:, 0, :, :72] = x.flatten(2)
    batches.targets_GKB[:, 0], batches.scale_GKB[:, 0] = targets, 0.1 / 4
    machine.step(0, 3)
    found = torch.empty_like(base_GP)
    machine.read(0, Flat.of(found))
    module.to(dtype)
    for s in range(3):
        parameters = torch.split(base_GP[s], [p.numel() for p in module.parameters()])
        own = {
            name: value.view_as(p).clone().requires_grad_()
            for (name, p), value in zip(module.named_parameters(), parameters, strict=True)
        }
        outputs = torch.func.functional_call(module, own, (x[s],))
        gradients = torch.autograd.grad(functional.cross_entropy(outputs, targets[s]), list(own.values()))
        expected = base_GP[s] - 0.1 * torch.cat([g.flatten() for g in gradients])
        torch.testing.assert_close(found[s], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "is_joined"),
    [
        ([nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)], True),
        ([nn.Conv2d(1, 16, (3, 5), padding=(1, 2)), nn.ReLU(), nn.MaxPool2d(2)], True),
        ([nn.Conv2d(1, 16, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)], False),  # too many taps
        ([nn.Conv2d(1, 16, 4, padding=2), nn.ReLU(), nn.MaxPool2d(2)], False),  # the pool leaves a row out
        ([nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)], False),
        ([nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, stride=1)], False),
        ([nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2)], False),
        ([nn.Conv2d(1, 16, 5, padding=2, stride=2), nn.ReLU(), nn.MaxPool2d(2)], False),
        ([nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)], False),
    ],
)
def test_what_becomes_one_layer(layers: list[nn.Module], is_joined: bool) -> None:
    nodes = trace(nn.Sequential(*layers, nn.Flatten()), (1, 12, 12))
    found = joined_first(joined(nodes), (1, 12, 12))
    assert [isinstance(node.layer, FirstMaps) for node in found].count(True) == is_joined
    assert len(found) == len(nodes) and found[-1].shape == nodes[-1].shape
