"""Small reference networks, by family: logistic regression, multi-layer perceptron, convolutional networks, text.

The order in which a module's layers are constructed decides its initial weights, so it is part of every
published result: never reorder it, and add nothing that draws random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config import CnnModel, LogisticModel, LossKind, MlpModel, ModelConfig, ResidualModel, TextModel

if TYPE_CHECKING:
    import torch


def n_outputs(config: ModelConfig, n_classes: int, loss: LossKind = "auto") -> int:
    """How many values a model gives for a sample: one a class, or 1 (a logit) for a logistic model of two classes.

    Binary cross-entropy asks for a logit of any model. For values and survival `n_classes` counts the values.
    """
    is_logit = loss == "auto" and isinstance(config, LogisticModel) and n_classes == 2
    return 1 if is_logit or loss == "binary-cross-entropy" else n_classes


def build(
    config: ModelConfig, sample_shape: tuple[int, ...], n_classes: int, loss: LossKind = "auto"
) -> torch.nn.Module:
    """A new module, on the CPU, that maps float32 (B, *sample_shape) to (B, n_outputs).

    Its weights are drawn from torch's global generator, as torch's constructors do: see `build_initial`.
    Raises ConfigError for a sample shape that the model cannot take.
    """
    from fedsim.models import networks

    outputs = n_outputs(config, n_classes, loss)
    match config:
        case LogisticModel():
            return networks.perceptron(sample_shape, [], outputs)
        case MlpModel(hidden=hidden, norm=norm):
            return networks.perceptron(sample_shape, hidden, outputs, norm)
        case CnnModel(channels=channels, kernel=kernel, norm=norm):
            return networks.convolutional(sample_shape, channels, kernel, outputs, norm)
        case ResidualModel():
            return networks.residual(sample_shape, config, outputs)
        case TextModel():
            return networks.text(sample_shape, config, outputs)


def build_initial(
    config: ModelConfig, sample_shape: tuple[int, ...], n_classes: int, seed: int, loss: LossKind = "auto"
) -> torch.nn.Module:
    """The model of version 0: what `build` gives after `torch.manual_seed(seed)`, whose effect ends here."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, sample_shape, n_classes, loss)
