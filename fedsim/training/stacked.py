"""The stacked path: torch.func over any module that allows it, `vmap` of the gradient of `functional_call`.

What torch does with stacked operands depends, to the last bit, on where each client's part begins and on how many there
are. `Steady` sits below torch.func and gives each operation a form in which it does not, for the reasons that
`fedsim.training.fused.memory` tells. Shapes: `g` slots at work, `B` batch, `F` features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedsim.config import TrainingConfig
from fedsim.layout import Layout
from fedsim.training import noise
from fedsim.training.fused.graph import UnsupportedError
from fedsim.training.fused.grouped import Grouped, How
from fedsim.training.fused.memory import BLOCK, Places, padded
from fedsim.training.groupbatches import Batch
from fedsim.training.objectives import TaskLoss
from fedsim.training.slabmachine import SlabMachine
from fedsim.types import Float64

_aten = torch.ops.aten
_MIN_SLOTS = 2  # a convolution of one client is another kernel's work
_EXACT = {
    _aten.mul.Tensor,
    _aten.sub.Tensor,
    _aten.div.Tensor,
    _aten.neg.default,
    _aten.where.self,
    _aten.clone.default,
    _aten.relu.default,
    _aten.threshold_backward.default,
    _aten.clamp_min.default,
    _aten.ne.Scalar,
}  # elementwise operations whose results have no rounding, or one: nothing is left to choose


class Steady(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations whose results for a client depend on no other: products over padded rows, whole elementwise blocks.

    `n_slots` are at work, with so many groups of channels in a convolution.
    """

    def __init__(self, n_slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_slots = n_slots

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is _aten.bmm.default:
            return _product(*args)
        if func is _aten.baddbmm.default:
            return _product(args[1], args[2]) * kwargs.get("alpha", 1) + args[0] * kwargs.get("beta", 1)
        if func in (_aten.convolution.default, _aten.convolution_backward.default):
            # vmap cannot normalise what lies channels last: its results go back to planes
            found = self._convolved(func, [_channels_last(a) for a in args], kwargs)
            return tree_map_only(Tensor, Tensor.contiguous, found)
        elif torch.Tag.pointwise in func.tags and func not in _EXACT:
            return _in_blocks(func, args, kwargs)
        return func(*args, **kwargs)

    def _convolved(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A convolution, or its gradients; of images in groups as few clients at a time as their bits take."""
        is_forward = func is _aten.convolution.default
        x, w = args[:2] if is_forward else args[1:3]
        b, (stride, padding, dilation, is_transposed, _, n_groups) = args[2], args[3:9] if is_forward else args[4:10]
        g = self.n_slots
        if kwargs or is_transposed or x.dim() != 4 or n_groups % g:
            return func(*args, **kwargs)
        wanted = (False, False, False) if is_forward else tuple(args[10])
        grouped = Grouped(
            How(tuple(stride), tuple(padding), tuple(dilation), n_groups // g), g,
            (x.shape[0], x.shape[1] // g, *x.shape[2:]), (w.shape[0] // g, *w.shape[1:]),
            has_bias=is_forward and b is not None, wanted=wanted, dtype=x.dtype, device=x.device,
        )  # fmt: skip
        return grouped.forward(x, w, b) if is_forward else grouped.backward(args[0], x, w)


def _product(a_gMK: Tensor, b_gKN: Tensor) -> Tensor:
    """Stacked products of operands with padded rows on 64-byte boundaries."""
    n = b_gKN.shape[2]
    return torch.bmm(_padded_rows(a_gMK), _padded_rows(b_gKN, padded(a_gMK.shape[2])))[:, :, :n]


def _padded_rows(x_gMN: Tensor, n_rows: int | None = None) -> Tensor:
    g, m, n = x_gMN.shape
    room = x_gMN.new_zeros((g, n_rows or m, padded(n)))
    room[:, :m, :n] = x_gMN
    return room


def _channels_last(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.dim() == 4:
        return argument.contiguous(memory_format=torch.channels_last)
    return argument


def _in_blocks(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An elementwise operation over vectors that end on a whole block, so that no client is in a scalar tail."""
    tensors = [a for a in args if isinstance(a, Tensor) and a.dim()]
    if not tensors or not any(a.is_floating_point() for a in tensors):
        return func(*args, **kwargs)
    shape = np.broadcast_shapes(*(tuple(a.shape) for a in tensors))
    n = int(np.prod(shape))
    flat = [_block(a.expand(shape), n) if isinstance(a, Tensor) and a.dim() else a for a in args]
    result: Tensor = func(*flat, **kwargs)[:n].view(shape)
    if func._schema.is_mutable:
        args[0].copy_(result)
        return args[0]
    return result


def _block(x: Tensor, n: int) -> Tensor:
    room = x.new_ones(padded(n, BLOCK))
    room[:n].view(x.shape).copy_(x)
    return room


class StackedMachine(SlabMachine):
    """Stacked parameters of `n_slots` clients, and torch.func's gradient of the module over them."""

    def __init__(
        self,
        module: nn.Module,
        sample_shape: tuple[int, ...],
        training: TrainingConfig,
        loss: TaskLoss,
        n_slots: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        has_linear: bool = False,
        is_fixed: bool = False,
    ) -> None:
        dropouts = check(module, sample_shape, loss)
        places = Places(Layout.of(module), [])
        super().__init__(
            places, sample_shape, training, loss, n_slots, _MIN_SLOTS, device, dtype, has_linear, None, dropouts,
            is_fixed,
        )  # fmt: skip
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self._sample_shape = sample_shape
        self._gradient = gradient_of(copy.deepcopy(module).train(), loss)
        self._parameters = cache(self._views)
        self._steady = Steady(_MIN_SLOTS)

    def compute(self, batch: Batch) -> None:
        """See `SlabMachine.compute`."""
        targets_gB, scale_gB, target = batch.targets_gB, batch.scale_gB, self.stepper.target
        g, n_batch = scale_gB.shape
        x = batch.samples_gBF.reshape(g, n_batch, *self._sample_shape).contiguous()
        masks = tuple(mask[:g] for mask in self.masks.now)
        self._steady.n_slots = g
        with self._steady:
            gradients, each_gB = self._gradient(self._parameters(g), x, targets_gB.clone(), scale_gB.clone(), masks)
        batch.pieces_gB.copy_(each_gB)
        for name, gradient in gradients.items():
            target.add_vector(target.slab.flat(name, g), gradient.reshape(g, -1))

    def sample_losses(self, n_slots: int, n_steps: int) -> Float64:
        """See `fedsim.training.group.Machine.sample_losses`."""
        return self.batches.kept(n_slots, n_steps)[0].astype(np.float64)

    def _views(self, n_slots: int) -> dict[str, Tensor]:
        return {
            name: self.weights.flat(name, n_slots).unflatten(1, shape or (1,)).view(n_slots, *shape)  # type: ignore[no-untyped-call]
            for name, shape in self._shapes.items()
        }


def gradient_of(module: nn.Module, loss: TaskLoss) -> Callable[..., tuple[dict[str, Tensor], Tensor]]:
    """Gradients by parameter and losses (g, B), of stacked parameters, samples, targets, scales (g, B) and masks."""

    def scaled(
        parameters: dict[str, Tensor], x_B: Tensor, y_B: Tensor, scale_B: Tensor, masks: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        with noise.Masked(lambda number, rate, shape: masks[number]) if masks else nullcontext():
            outputs = functional_call(module, parameters, (x_B,))
        each_B = loss.each(outputs, y_B)
        return (each_B * scale_B).sum(), each_B

    gradient: Callable[..., tuple[dict[str, Tensor], Tensor]] = vmap(grad(scaled, has_aux=True))
    return gradient


def check(module: nn.Module, sample_shape: tuple[int, ...], loss: TaskLoss) -> tuple[noise.Dropout, ...]:
    """The uses of dropout of a module that torch.func can train with padded batches.

    Raises UnsupportedError, naming the layer, for one that it cannot train.
    """
    for name, layer in reversed(list(module.named_modules())):  # what is inside comes first
        reason = _reason(layer)
        if reason is not None:
            raise UnsupportedError(f"layer '{name}' ({type(layer).__name__}): {reason}" if name else reason)
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(every) > len(list(module.parameters())):
        raise UnsupportedError("two layers share a parameter")
    parameters = {name: p.detach().expand(2, *p.shape) for name, p in module.named_parameters()}
    x, y = torch.zeros((2, 2, *sample_shape)), loss.padding.expand(2, 2, *loss.padding.shape)
    found = noise.find(module, sample_shape)
    if found.is_global:
        raise UnsupportedError(f"{type(module).__name__} draws random numbers other than those of dropout")
    masks = tuple(torch.ones(2, 2, *dropout.shape) for dropout in found.dropouts)
    try:
        with Steady(2):
            gradient_of(copy.deepcopy(module).train(), loss)(parameters, x, y, torch.ones(2, 2), masks)
    except Exception as error:  # whatever the module's code does that torch.func cannot
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"torch.func cannot train {type(module).__name__}: {reason}") from error
    return found.dropouts


def _reason(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return "its statistics would count the padding of short batches; use GroupNorm or LayerNorm"
    if any(buffer.is_floating_point() for buffer in layer.buffers(recurse=False)):
        return "it keeps values that are no parameters, which torch.func would share among clients"
    if isinstance(layer, nn.modules.conv._ConvNd) and not isinstance(layer, nn.Conv2d):
        return "only two-dimensional convolutions give a client the same bits in any group"
    if noise.draws(layer):
        return "it draws random numbers other than those of dropout"
    if any(not p.requires_grad for p in layer.parameters(recurse=False)):
        return "it has parameters that are not trained"
    return None
