"""Convolutions of clients side by side: each client has the same bits among any number of others."""

from __future__ import annotations

import os
from collections import defaultdict

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.training.fused.grouped import Grouped, How, most_alike

EXAMPLES = 3 * int(os.environ.get("FEDSIM_TEST_EXAMPLES", "10"))
CPU, ALL = torch.device("cpu"), (True, True, True)
PARTS = ("y", "dx", "dw", "db")
Shape = tuple[int, int, int, int, int, int, int, int, int, int]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Groups of a client, channels in and out of each, kernel, stride, padding, batch, height, width, and slots."""
    n_groups, n_in, n_out = (draw(st.sampled_from(some)) for some in ((1, 1, 1, 2, 3), (1, 2, 3, 4, 8, 16), (1, 3, 8)))
    kernel, stride, padding = draw(st.integers(1, 5)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    height, width = draw(st.integers(kernel, 12)), draw(st.integers(kernel, 12))
    batch, n_slots = draw(st.integers(1, 10)), draw(st.sampled_from((3, 4, 5, 8, 16)))
    return n_groups, n_in, n_out, kernel, stride, padding, batch, height, width, n_slots


@settings(max_examples=EXAMPLES, deadline=None)
@given(shapes())
@example((1, 1, 3, 3, 1, 0, 5, 13, 11, 3))  # three channels in all: the colours of an image, oneDNN thinks
@example((1, 32, 32, 5, 1, 1, 10, 14, 15, 5))
@example((3, 3, 1, 1, 1, 2, 10, 1, 1, 16))
def test_a_client_among_any_others(shape: Shape) -> None:
    n_groups, n_in, n_out, kernel, stride, padding, batch, height, width, most = shape
    how = How((stride, stride), (padding, padding), (1, 1), n_groups)
    x_size, w_size = (batch, n_groups * n_in, height, width), (n_groups * n_out, n_in, kernel, kernel)
    draws = torch.Generator().manual_seed(sum(shape))
    x, w = (torch.randn((most, *size), generator=draws) for size in (x_size, w_size))
    b = torch.randn((most, w_size[0]), generator=draws)
    y_size = how.forward(x[0], w[0], None, 1).shape
    dy = torch.randn((most, *y_size), generator=draws)
    bits = defaultdict[tuple[str, int], set[bytes]](set)
    for n in sorted({2, 3, most - 1, most}):
        grouped = Grouped(how, n, x_size, w_size, has_bias=True, wanted=ALL, dtype=torch.float32, device=CPU)
        x_n, dy_n = (
            torch.cat(list(maps[:n]), 1).contiguous(memory_format=torch.channels_last) for maps in (x, dy)
        )  # fmt: skip
        found = (
            grouped.forward(x_n, w[:n].flatten(0, 1), b[:n].flatten()),
            *grouped.backward(dy_n, x_n, w[:n].flatten(0, 1)),
        )
        for name, axis, values in zip(PARTS, (1, 1, 0, 0), found, strict=True):
            assert values is not None
            for slot, part in enumerate(values.chunk(n, axis)):
                bits[name, slot].add(part.contiguous().numpy().tobytes())
    assert {key: len(each) for key, each in bits.items()} == dict.fromkeys(bits, 1)


def test_most_clients_are_taken_together() -> None:
    """What was tried on noise is the exception."""
    how, x_size, w_size = How((1, 1), (1, 1), (1, 1), 1), (10, 4, 9, 9), (8, 4, 3, 3)
    for wanted in (None, ALL):
        assert [most_alike(how, n, x_size, w_size, True, wanted, torch.float32) for n in (1, 2, 4, 6)] == [1, 2, 4, 6]
