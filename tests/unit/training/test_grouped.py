"""Convolutions of some clients at a time, where all together would have other bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.training.fused import grouped
from fedsim.training.fused.grouped import Grouped, How

CPU, B, C, OUT = torch.device("cpu"), 3, 4, 6
HOW, X_SIZE, W_SIZE = How((2, 1), (1, 0), (1, 1), 2), (B, C, 9, 7), (OUT, C // 2, 3, 3)


def _operands(n_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(n_slots)
    x, w, b = (torch.randn((n_slots, *size), generator=draws) for size in (X_SIZE, W_SIZE, (OUT,)))
    return x, w, b


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False)], ids=str)
@pytest.mark.parametrize(("n_slots", "n_at_once"), [(5, 2), (5, 3), (4, 2), (3, 2), (7, 6)])
def test_parts_are_put_side_by_side(
    monkeypatch: pytest.MonkeyPatch, n_slots: int, n_at_once: int, wanted: tuple[bool, bool, bool]
) -> None:
    taken = list[int]()
    for name in ("forward", "backward"):
        monkeypatch.setattr(How, name, _noted(getattr(How, name), taken))
    monkeypatch.setattr(grouped, "most_alike", lambda *_: n_at_once)
    layer = Grouped(HOW, n_slots, X_SIZE, W_SIZE, has_bias=True, wanted=wanted, dtype=torch.float32, device=CPU)
    x, w, b = _operands(n_slots)
    for tensor in (x, w, b):
        tensor.requires_grad_()
    y = torch.stack(
        [
            functional.conv2d(*each, HOW.stride, HOW.padding, HOW.dilation, HOW.groups)
            for each in zip(x, w, b, strict=True)
        ]
    )
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y.backward(dy)
    with torch.no_grad():
        x_g, w_g, b_g = torch.cat(list(x), 1), w.flatten(0, 1), b.flatten()
        y_g = layer.forward(x_g.contiguous(memory_format=torch.channels_last), w_g, b_g)
        gradients = layer.backward(torch.cat(list(dy), 1), x_g, w_g)
    assert set(taken) == {n_at_once} and len(taken) == 2 * -(-n_slots // n_at_once)
    assert y_g.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y_g, torch.cat(list(y.detach()), 1))
    assert [gradient is not None for gradient in gradients] == list(wanted)
    expected = torch.cat(list(x.grad), 1), w.grad.flatten(0, 1), b.grad.flatten()  # type: ignore[arg-type, union-attr]
    for gradient, known in zip(gradients, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, known, rtol=1e-4, atol=1e-4)


def _noted(method: object, taken: list[int]) -> object:
    def call(*args: object) -> object:
        taken.append(args[-1])  # type: ignore[arg-type]
        return method(*args)  # type: ignore[operator]

    return call


@pytest.mark.parametrize("is_backward", [False, True])
def test_the_most_whose_bits_are_those_of_two(monkeypatch: pytest.MonkeyPatch, is_backward: bool) -> None:
    """A library that sums otherwise for three clients, and from five on."""
    name = "backward" if is_backward else "forward"
    real = getattr(How, name)

    def other(self: How, *args: object) -> object:
        found, is_off = real(self, *args), args[-1] == 3 or args[-1] >= 5  # type: ignore[operator]
        if is_off and not is_backward:
            found = found * (1 + 2**-20)
        elif is_off:
            found = found[0], found[1] * (1 + 2**-20), found[2]
        return found

    monkeypatch.setattr(How, name, other)
    grouped.most_alike.cache_clear()
    wanted = (True, True, True) if is_backward else None
    most = [grouped.most_alike(HOW, n, X_SIZE, W_SIZE, True, wanted, torch.float32) for n in range(1, 8)]
    grouped.most_alike.cache_clear()
    assert most == [1, 2, 2, 4, 4, 4, 4]


def test_other_devices_take_all_slots_each_time() -> None:
    layer = Grouped(
        HOW, 5, X_SIZE, W_SIZE, has_bias=False, wanted=(False, True, False), dtype=torch.float32,
        device=torch.device("meta"),
    )  # fmt: skip
    x, w = torch.empty((B, 5 * C, 9, 7), device="meta"), torch.empty((5 * OUT, *W_SIZE[1:]), device="meta")
    assert layer.forward(x, w, None).shape[1] == 5 * OUT
