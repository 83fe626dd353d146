"""What a module computes, as a list of nodes that the fused layers can be built from.

torch.fx runs the module's own code once with symbols for tensors. Functions that do what a layer does, such as
`torch.relu`, become that layer, so the builders know layers only.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fedsim.errors import FedsimError


class UnsupportedError(FedsimError):
    """A layer that a training path cannot take; the message names the layer and says what is missing."""


class Add(nn.Module):
    """The sum of two values of one shape, as in a residual connection."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Tokens(nn.Module):
    """Numbers as whole ones, which an embedding takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()


class TokenMean(nn.Module):
    """The mean over the last axis but one, such as the tokens of a text."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-2)


@dataclass(frozen=True)
class Node:
    """A layer applied to earlier values: `inputs` are their numbers, 0 the samples, i + 1 the output of node i.

    `shape` is the output's without the batch, `name` the layer's name in its module (with a dot after it unless empty,
    as parameters have it).
    """

    layer: nn.Module
    inputs: tuple[int, ...]
    name: str
    shape: tuple[int, ...]

    @property
    def title(self) -> str:
        """The layer as errors name it."""
        kind = type(self.layer).__name__
        return f"layer '{self.name}' ({kind})" if self.name else kind


def trace(module: nn.Module, sample_shape: tuple[int, ...]) -> list[Node]:
    """The nodes of a module in the order of computation; the last one's output is the module's.

    Raises UnsupportedError for what is no chain or graph of layers.
    """
    module = copy.deepcopy(module).train()  # what a function such as dropout is told of training is part of the graph
    graph = _symbolic(module)
    values: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    shapes = [sample_shape]
    for found in graph.nodes:
        if found.op == "placeholder":
            _require(not values, found.name, "the module takes more than one input")
            values[found] = 0
        elif found.op == "output":
            _require(values.get(found.args[0]) == len(nodes) > 0, "output", "the output is not that of the last layer")
        else:
            layer, name = _layer(module, found)
            inputs = tuple(values[a] for a in found.args if isinstance(a, fx.Node) and a in values)
            layer = _means_tokens(layer, found.name, [shapes[i] for i in inputs])
            nodes.append(Node(layer, inputs, name, _shape(layer, name, [shapes[i] for i in inputs])))
            shapes.append(nodes[-1].shape)
            values[found] = len(nodes)
    return nodes


def _symbolic(module: nn.Module) -> fx.Graph:
    """The module's graph, in which torch's layers are leaves; a lone layer is a graph of one leaf."""
    inner = module if list(module.children()) else _Alone(module)
    try:
        return fx.Tracer().trace(inner)
    except Exception as error:  # whatever the module's code does with a symbol that only tensors can do
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"{type(module).__name__} cannot be traced by torch.fx: {reason}") from error


class _Alone(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.alone = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.alone(x)


def _layer(module: nn.Module, found: fx.Node) -> tuple[nn.Module, str]:
    """The layer of a node and its name."""
    if found.op == "call_module":
        name = str(found.target)
        return (module.get_submodule(name), name) if list(module.children()) else (module, "")
    make = _FUNCTIONS.get(found.target) if found.op in ("call_function", "call_method") else None
    n_tensors = sum(isinstance(a, fx.Node) for a in found.args)
    is_plain = n_tensors == (2 if make is Add else 1) and not any(isinstance(a, fx.Node) for a in found.kwargs.values())
    _require(make is not None and is_plain, found.name, f"'{found.target}' has no fused form")
    assert make is not None
    extra = [a for a in found.args if not isinstance(a, fx.Node)]
    try:
        layer = make(*extra, **found.kwargs)
    except TypeError as error:
        raise UnsupportedError(f"'{found.name}': {error}") from error
    return layer, found.name


def _relu(inplace: bool = False) -> nn.Module:
    return nn.ReLU()


def _dropout(kind: type[nn.Dropout] | type[nn.Dropout1d] | type[nn.Dropout2d]) -> Callable[..., nn.Module]:
    def make(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
        return kind(p) if training else nn.Identity()

    return make


class _Mean(nn.Module):
    """A mean over an axis that is not looked at yet."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def _means_tokens(layer: nn.Module, name: str, shapes: list[tuple[int, ...]]) -> nn.Module:
    """The layer, if it is no mean or one over the last axis but one."""
    if not isinstance(layer, _Mean):
        return layer
    (shape,) = shapes
    is_met = len(shape) > 1 and layer.dim in (-2, len(shape) - 1)
    _require(is_met, name, f"a mean over axis {layer.dim} has no fused form; only one over the last axis but one has")
    return TokenMean()


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    torch.relu: nn.ReLU,
    functional.relu: _relu,
    "relu": nn.ReLU,
    torch.tanh: nn.Tanh,
    functional.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    functional.gelu: nn.GELU,
    torch.flatten: _flatten,
    "flatten": _flatten,
    functional.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    functional.avg_pool2d: nn.AvgPool2d,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    functional.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    functional.dropout: _dropout(nn.Dropout),
    functional.dropout1d: _dropout(nn.Dropout1d),
    functional.dropout2d: _dropout(nn.Dropout2d),
    "long": Tokens,
    "mean": _Mean,
    torch.mean: _Mean,
    operator.add: Add,
    operator.iadd: Add,
    torch.add: Add,
}


def _shape(layer: nn.Module, name: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The output's shape without the batch, found by running the layer on zeros."""
    was_training = layer.training
    try:
        with torch.no_grad():
            out = layer.eval()(*(torch.zeros((2, *shape), dtype=_input_type(layer)) for shape in shapes))
    except Exception as error:  # a layer's own complaint about its input
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"layer '{name}' ({type(layer).__name__}): {reason}") from error
    finally:
        layer.train(was_training)
    _require(isinstance(out, torch.Tensor) and out.shape[0] == 2, name, "it does not give one value a sample")
    return tuple(out.shape[1:])


def _input_type(layer: nn.Module) -> torch.dtype:
    if isinstance(layer, nn.Embedding):
        return torch.int64
    return next((p.dtype for p in layer.parameters()), torch.float32)


def _require(is_met: bool, name: str, what: str) -> None:
    if not is_met:
        raise UnsupportedError(f"layer '{name}': {what}")
