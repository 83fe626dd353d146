"""The networks of `fedsim.models`, made of torch's own layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fedsim.errors import ConfigError


def perceptron(sample_shape: tuple[int, ...], hidden: Sequence[int], n_outputs: int) -> nn.Module:
    """Linear layers with ReLU between them; one `nn.Linear` alone where samples are vectors and nothing is hidden.

    Samples of other shapes are flattened first.
    """
    layers: list[nn.Module] = [] if len(sample_shape) == 1 else [nn.Flatten()]
    for n_in, n_out in pairwise([math.prod(sample_shape), *hidden, n_outputs]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    layers.pop()  # nothing after the outputs
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def convolutional(sample_shape: tuple[int, ...], channels: Sequence[int], kernel: int, n_outputs: int) -> nn.Module:
    """For each of `channels` a convolution (padding kernel // 2), ReLU and 2x2 max pooling; then one linear layer.

    Samples are images (channels, height, width), or (height, width) for one channel.
    Raises ConfigError for other shapes, and for images that pooling leaves nothing of.
    """
    if len(sample_shape) not in (2, 3):
        raise ConfigError(
            f"model.kind: cnn takes samples of shape (channels, height, width) or (height, width), "
            f"got {sample_shape}; use mlp or logistic"
        )
    depth, height, width = sample_shape if len(sample_shape) == 3 else (1, *sample_shape)
    layers: list[nn.Module] = [] if len(sample_shape) == 3 else [nn.Unflatten(1, (1, height))]
    for n_channels in channels:
        layers += [nn.Conv2d(depth, n_channels, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = n_channels, _pooled(height, kernel), _pooled(width, kernel)
    if not height * width:
        raise ConfigError(
            f"model.channels: {len(channels)} poolings leave nothing of samples of shape {sample_shape}; "
            "give fewer channels, or use mlp"
        )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, n_outputs))


def _pooled(length: int, kernel: int) -> int:
    """Height or width after one convolution and pooling; an even kernel with this padding adds one pixel."""
    return (length + 1 - kernel % 2) // 2 if length else 0
