"""The flat vector: order, offsets, round trips, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.layout import Layout


def test_lists_parameters_in_the_modules_order() -> None:
    layout = Layout.of(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)))
    assert layout.names == ("0.weight", "0.bias", "2.weight")
    assert layout.shapes == ((2, 3), (2,), (1, 2))
    assert layout.offsets == (0, 6, 8)
    assert layout.n_parameters == 10
    assert layout.slices == {"0.weight": slice(0, 6), "0.bias": slice(6, 8), "2.weight": slice(8, 10)}


def test_flatten_is_in_c_order_and_load_undoes_it() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(4, 2))
    conv = module[0]
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    layout = Layout.of(module)
    vector = layout.flatten(module)
    assert vector.dtype == np.float32 and vector.shape == (layout.n_parameters,)
    assert np.array_equal(vector[layout.slices["0.weight"]], conv.weight.detach().contiguous().numpy().ravel())
    weight = conv.weight
    layout.load(module, np.arange(layout.n_parameters, dtype=np.float32))
    assert conv.weight is weight and weight[0, 0, 0, 1].item() == 1.0
    layout.load(module, vector)
    assert np.array_equal(layout.flatten(module), vector)


def test_flatten_owns_its_memory() -> None:
    module = nn.Linear(2, 2)
    vector = Layout.of(module).flatten(module)
    vector[:] = 5.0
    assert not (module.weight == 5.0).any()


def test_checksum_tells_layouts_apart() -> None:
    same = Layout.of(nn.Linear(3, 2)).checksum
    assert Layout.of(nn.Linear(3, 2)).checksum == same
    assert Layout.of(nn.Linear(2, 3)).checksum != same
    assert Layout.of(nn.Sequential(nn.Linear(3, 2))).checksum != same


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)),
            ["layer '1' (BatchNorm1d)", "running_mean", "counts batches", "GroupNorm"],
        ),
        (nn.Linear(2, 2).double(), ["weight", "float64", "module.float()"]),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half()), ["layer '1' (Linear)", "float16"]),
        (nn.ReLU(), ["ReLU", "no parameters"]),
    ],
)
def test_refuses_what_the_vector_cannot_carry(module: nn.Module, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Layout.of(module)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_buffers_come_after_the_parameters() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1), nn.LayerNorm(1))
    layout = Layout.of(module)
    assert layout.names[-2:] == layout.buffers == ("0.running_mean", "0.running_var")
    assert (layout.n_parameters, layout.n_trained, layout.n_buffers) == (13, 9, 2)
    assert layout.norm_layers == ("0", "2")
    vector = np.arange(13, dtype=np.float32)
    layout.load(module, vector)
    assert module[0].running_var.tolist() == [11.0, 12.0] and np.array_equal(layout.flatten(module), vector)


def test_takes_batch_norm_without_running_statistics() -> None:
    assert Layout.of(nn.BatchNorm1d(4, track_running_stats=False)).n_parameters == 8


def test_a_tied_parameter_is_listed_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = module
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    second.weight = first.weight
    assert Layout.of(module).names == ("0.weight",)
