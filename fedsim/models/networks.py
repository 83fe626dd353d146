"""The networks of `fedsim.models`, made of torch's own layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsim.config import ResidualModel, TextModel
from fedsim.errors import ConfigError


def perceptron(sample_shape: tuple[int, ...], hidden: Sequence[int], n_outputs: int, norm: str = "none") -> nn.Module:
    """Linear layers with ReLU between them; one `nn.Linear` alone where samples are vectors and nothing is hidden.

    Samples of other shapes are flattened first. `norm` batch: batch normalisation before each ReLU.
    """
    layers: list[nn.Module] = [] if len(sample_shape) == 1 else [nn.Flatten()]
    widths = [math.prod(sample_shape), *hidden]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), *([nn.BatchNorm1d(n_out)] if norm == "batch" else []), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], n_outputs))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def convolutional(
    sample_shape: tuple[int, ...], channels: Sequence[int], kernel: int, n_outputs: int, norm: str = "none"
) -> nn.Module:
    """For each of `channels` a convolution (padding kernel // 2), ReLU and 2x2 max pooling; then one linear layer.

    `norm` batch: batch normalisation before each ReLU.

    Samples are images (channels, height, width), or (height, width) for one channel.
    Raises ConfigError for other shapes, and for images that pooling leaves nothing of.
    """
    (depth, height, width), layers = _images(sample_shape, "cnn")
    for n_channels in channels:
        layers.append(nn.Conv2d(depth, n_channels, kernel, padding=kernel // 2))
        layers += [*([nn.BatchNorm2d(n_channels)] if norm == "batch" else []), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = n_channels, _pooled(height, kernel), _pooled(width, kernel)
    if not height * width:
        raise ConfigError(
            f"model.channels: {len(channels)} poolings leave nothing of samples of shape {sample_shape}; "
            "give fewer channels, or use mlp"
        )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, n_outputs))


def _images(sample_shape: tuple[int, ...], kind: str) -> tuple[tuple[int, int, int], list[nn.Module]]:
    """Channels, height and width of image samples, and the layers that give them that shape."""
    if len(sample_shape) not in (2, 3):
        raise ConfigError(
            f"model.kind: {kind} takes samples of shape (channels, height, width) or (height, width), "
            f"got {sample_shape}; use mlp or logistic"
        )
    if len(sample_shape) == 3:
        depth, height, width = sample_shape
        return (depth, height, width), []
    height, width = sample_shape
    return (1, height, width), [nn.Unflatten(1, (1, height))]


def _pooled(length: int, kernel: int) -> int:
    """Height or width after one convolution and pooling; an even kernel with this padding adds one pixel."""
    return (length + 1 - kernel % 2) // 2 if length else 0


class Residual(nn.Module):
    """Two 3x3 convolutions with normalisation, added to the input, which a 1x1 convolution fits to their shape.

    Reference: He et al., "Deep residual learning for image recognition", CVPR 2016, with the group normalisation of Wu
    and He, ECCV 2018, in place of batch normalisation, whose statistics clients do not share, unless `n_groups` is 0.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, n_groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = _normalisation(n_groups, n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.second_norm = _normalisation(n_groups, n_out)
        is_same = n_in == n_out and stride == 1
        self.fit = nn.Identity() if is_same else nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return torch.relu(y + self.fit(x))


def _normalisation(n_groups: int, n_channels: int) -> nn.Module:
    return nn.GroupNorm(n_groups, n_channels) if n_groups else nn.BatchNorm2d(n_channels)


def residual(sample_shape: tuple[int, ...], config: ResidualModel, n_outputs: int) -> nn.Module:
    """A convolution, a stage of residual blocks for each of the channels, and one linear layer of the channels' means.

    Each stage but the first halves height and width. Raises ConfigError for samples that are no images, and for
    channels that the groups do not divide.
    """
    (depth, _, _), layers = _images(sample_shape, "residual")
    n_groups = 0 if config.norm == "batch" else config.groups
    odd = [n for n in config.channels if n_groups and n % n_groups]
    if odd:
        raise ConfigError(f"model.groups is {config.groups}, which does not divide model.channels ({odd[0]})")
    n_in = config.channels[0]
    layers += [nn.Conv2d(depth, n_in, 3, padding=1, bias=False), _normalisation(n_groups, n_in), nn.ReLU()]
    for stage, n_channels in enumerate(config.channels):
        for block in range(config.blocks):
            layers.append(Residual(n_in, n_channels, 2 if stage and not block else 1, n_groups))
            n_in = n_channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *_dropout(config.dropout), nn.Linear(n_in, n_outputs))


class Text(nn.Module):
    """The mean of a sample's word vectors, then a perceptron. Token 0 is padding: its vector is zero and stays so.

    Reference: Iyyer et al., "Deep unordered composition rivals syntactic methods for text classification", ACL 2015;
    the mean is over all tokens, padding included.
    """

    def __init__(self, config: TextModel, n_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.embedding, padding_idx=0)
        layers: list[nn.Module] = [*_dropout(config.dropout)]
        for n_in, n_out in pairwise([config.embedding, *config.hidden]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), *_dropout(config.dropout)]
        last = config.hidden[-1] if config.hidden else config.embedding
        self.head = nn.Sequential(*layers, nn.Linear(last, n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.embedding(x.long()).mean(1))
        return y


def text(sample_shape: tuple[int, ...], config: TextModel, n_outputs: int) -> nn.Module:
    """A classifier of token numbers. Raises ConfigError for samples that are no vectors."""
    if len(sample_shape) != 1:
        raise ConfigError(f"model.kind: text takes samples that are vectors of token numbers, got shape {sample_shape}")
    return Text(config, n_outputs)


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []
