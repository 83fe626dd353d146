"""The first layer of a block of steps at once, where it is linear and the optimiser is SGD.

Its inputs are the samples, which no step changes, and SGD's weights are sums of what they were and of the gradients.
With the weights W and momenta M of the block's start, step k therefore has

    W_k = p_k W + q_k M + sum over j < k of c_kj dY_j^T X_j
    X_k W_k^T = p_k X_k W^T + q_k X_k M^T + sum over j < k of c_kj (X_k X_j^T) dY_j

So a block takes one product of all its samples with the weights, one of the samples with each other, and one for the
change of the weights; a step takes products of dY only, which are small. The weights are read once and written once a
block instead of three times a step, by products of many rows, and clients that start from one version read the same
memory. A bias is the weight of a column of ones: one more in each number of X X^T.

Whatever touches weights does it one client at a time, so a client's bits do not depend on the others.
Shapes: `G` slots, `g` slots at work, `K` steps of a block, `B` batch, `R` = K B rows, `I` inputs, `O` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.config import PlainObjective, SgdOptimizer, TrainingConfig
from fedsim.training.flat import Flat
from fedsim.training.fused import products
from fedsim.training.fused.graph import Node
from fedsim.training.fused.memory import ROW, Place, Places, Slab, padded
from fedsim.training.fused.values import Context, Form, Value
from fedsim.training.groupbatches import GroupBatches
from fedsim.types import Float64

LEAST_BYTES = 1 << 17  # of float32 weights: below it a step is overhead, and more products are more overhead
MOST_ROWS = 128  # of a block: products of so many run at the machine's rate

_Terms = Sequence[tuple[float, Tensor]]


def first_layer(nodes: Sequence[Node]) -> Node | None:
    """The linear layer that alone reads the samples as vectors, if there is one, and no layer has maps."""
    i = 0
    while True:
        readers = [node for node in nodes if i in node.inputs]
        if len(readers) != 1:
            return None
        node = readers[0]
        if isinstance(node.layer, nn.Linear):
            return node if len(node.shape) == 1 else None
        if not isinstance(node.layer, nn.Flatten | nn.Identity):
            return None
        i = next(j for j, other in enumerate(nodes, 1) if other is node)


def block_steps(training: TrainingConfig, node: Node | None, *, has_linear: bool) -> int:
    """Steps of a block of the layer, from configuration and model alone; 0 where taking them singly is better.

    The samples' products with each other cost K B / 2 O of the others: a quarter at most.
    """
    optimizer = training.optimizer
    is_bare = training.clip_norm is None and isinstance(training.objective, PlainObjective) and not has_linear
    if node is None or not is_bare or not isinstance(optimizer, SgdOptimizer):
        return 0
    assert isinstance(node.layer, nn.Linear)
    n_outputs, n_inputs = node.layer.weight.shape
    n_steps = min(n_outputs // 2, MOST_ROWS) // training.batch_size
    return n_steps if 4 * n_outputs * n_inputs >= LEAST_BYTES and n_steps >= 2 else 0


def coefficients(n_steps: int, rate: float, momentum: float, decay: float) -> tuple[Float64, Float64]:
    """What weights and momenta consist of after 0 to K steps of torch's SGD: float64 (K + 1, 2 + K) each.

    The columns stand for the weights and the momenta before the first step, then for the gradient of each step.
    """
    w, m = np.zeros((2, n_steps + 1, 2 + n_steps))
    w[0, 0] = m[0, 1] = 1.0
    for i in range(n_steps):
        m[i + 1] = momentum * m[i] + decay * w[i]
        m[i + 1, 2 + i] += 1.0
        w[i + 1] = w[i] - rate * m[i + 1]
    return w, m


class Rates(NamedTuple):
    """The coefficients of a block at one learning rate, as the products need them; None stands for ones, or no term.

    `w` and `m` are rows a number of steps, `gradients_w` and `gradients_m` the same as columns (R, 1) over samples;
    `between` (R - B, R - B) belongs to the samples' products with each other; where it is None, they are subtracted.
    """

    w: Float64
    m: Float64
    gradients_w: list[Tensor]
    gradients_m: list[Tensor]
    between: Tensor | None
    weights_R1: Tensor | None
    momenta_R1: Tensor | None


def rates(n_steps: int, n_batch: int, rate: float, optimizer: SgdOptimizer, dtype: torch.dtype) -> Rates:
    """The coefficients of blocks of up to `n_steps`."""
    w, m = coefficients(n_steps, rate, optimizer.momentum, optimizer.weight_decay)

    def columns(table: Float64) -> list[Tensor]:
        return [_tensor(table[n, 2 : 2 + n].repeat(n_batch)[:, None], dtype) for n in range(n_steps + 1)]

    between = w[1:-1, 2 : 1 + n_steps].repeat(n_batch, 0).repeat(n_batch, 1)
    earlier = [w[:-1, i].repeat(n_batch)[:, None] for i in (0, 1)]
    is_plain = not optimizer.weight_decay
    return Rates(
        w, m, columns(w), columns(m),
        None if is_plain and not optimizer.momentum else _tensor(between, dtype),
        None if is_plain else _tensor(earlier[0], dtype),
        _tensor(earlier[1], dtype) if optimizer.momentum else None,
    )  # fmt: skip


def _tensor(values: Float64, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(dtype)


class Ahead:
    """Weights and momenta of the layer for all slots, and what a block computes before and after its steps."""

    def __init__(
        self, node: Node, places: Places, training: TrainingConfig, batches: GroupBatches, *, carries_rate: bool
    ) -> None:
        assert isinstance(node.layer, nn.Linear) and isinstance(training.optimizer, SgdOptimizer)
        n_slots, self.n_steps, self.n_batch, stride = batches.x_GKBF.shape
        dtype, device = batches.x_GKBF.dtype, batches.x_GKBF.device
        self.prefix = f"{node.name}." if node.name else ""
        self.k = 0
        self.sign = 1.0 if training.optimizer.momentum or training.optimizer.weight_decay else -1.0
        self._optimizer, self._batches, self._carries_rate = training.optimizer, batches, carries_rate
        self._names = [f"{self.prefix}{name}" for name, _ in node.layer.named_parameters()]
        self._places = [places.by_name[name] for name in self._names]
        self._one, self._n_bytes = (np.float32(1) if dtype is torch.float32 else np.float64(1)), dtype.itemsize
        self._no_bias = torch.zeros(padded(node.layer.out_features), dtype=dtype, device=device)
        self._x_GRI = batches.x_GKBF.view(n_slots, self.n_steps * self.n_batch, stride)
        self._base = places.slab(n_slots, dtype, device)
        self._given: Flat | None = None  # the bases, where they are read from where they lie
        self._reads_given = _is_bare(training.optimizer) and _lies_alike(self._places[0], dtype)
        self._room = places.slab(1, dtype, device)
        self._later: tuple[Slab, Slab] | None = None  # weights and momenta, only if tasks take more than one block
        self._is_first, self._is_shared, self._rates_G = True, False, [1.0]
        n_rows, n_outputs = self.n_steps * self.n_batch, padded(node.layer.out_features)
        self.y_GRO = torch.zeros((n_slots, n_rows, n_outputs), dtype=dtype, device=device)
        self.dy_GRO = torch.zeros_like(self.y_GRO)
        n_earlier = n_rows - self.n_batch
        self.between_GRR = torch.zeros((n_slots, n_earlier, padded(n_earlier)), dtype=dtype, device=device)
        self._scaled_RO = torch.zeros_like(self.y_GRO[0])
        self._ones_1R = torch.ones((1, padded(n_rows)), dtype=dtype, device=device)
        self._rates = lru_cache(64)(
            lambda rate: rates(self.n_steps, self.n_batch, rate, training.optimizer, dtype)  # type: ignore[arg-type]
        )

    def start(self, base: Flat, rates_G1: Tensor) -> None:
        """Takes new clients; a base that all share is kept once, and none is that can be read where it lies."""
        self._is_first, self._is_shared = True, base.is_one or len(base) == 1
        self._given = base if self._reads_given and base.dtype == np.dtype(type(self._one)) else None
        if self._given is None:
            self._load(base)
        self._rates_G = [1.0] * len(base) if self._carries_rate else rates_G1.flatten().tolist()

    def _load(self, base: Flat) -> None:
        self._base.load(base.one(0) if self._is_shared else base)

    def begin(self, n_slots: int, n_block: int) -> None:
        """What all steps of the block need of the weights and of the samples."""
        n_steps_g = (self._batches.n_valid_GK[:n_slots, :n_block] > 0).sum(axis=1).tolist()
        for slot, n in enumerate(n_steps_g):
            n_rows, found = n * self.n_batch, self._rates(self._rates_G[slot])
            x_RI = self._x_GRI[slot, :n_rows]
            self._outputs(slot, x_RI, found)
            if n > 1:
                between = self.between_GRR[slot, : n_rows - self.n_batch, : n_rows - self.n_batch]
                self._product(x_RI[self.n_batch :], x_RI[: -self.n_batch].T, self._ones_1R[:, :1], between)
                if found.between is not None:
                    between.mul_(found.between[: between.shape[0], : between.shape[1]])

    def _outputs(self, slot: int, x_RI: Tensor, found: Rates) -> None:
        """The outputs that the weights of the block's start give."""
        y_RO, n_rows = self.y_GRO[slot, : x_RI.shape[0]], x_RI.shape[0]
        if self._given is not None:
            self._forward(x_RI, self._given_addresses(slot), y_RO)
        else:
            self._forward(x_RI, _addresses(self._views(self._weights, self._slot(slot))), y_RO)
        if found.weights_R1 is not None:
            y_RO.mul_(found.weights_R1[:n_rows])
        if found.momenta_R1 is not None and not self._is_first:
            momenta = self._views(self._momenta, slot)
            by_momenta_RO = self._scaled_RO[:n_rows]
            self._forward(x_RI, _addresses(momenta), by_momenta_RO)
            y_RO.addcmul_(by_momenta_RO, found.momenta_R1[:n_rows])

    def _given_addresses(self, slot: int) -> list[int]:
        """Where weight and bias of a slot's base lie."""
        assert self._given is not None
        first = int(self._given.addresses_G[slot])
        return [first + self._n_bytes * place.source for place in self._places]

    def _forward(self, x_RI: Tensor, weights: Sequence[int], out_RO: Tensor) -> None:
        """The layer's outputs, by the addresses of weights and biases with padding."""
        bias = weights[1] if len(weights) == 2 else self._no_bias.data_ptr()
        products.forward(
            self._one, 1, x_RI.shape[0], x_RI.stride(0), self._places[0].n_rows, x_RI.data_ptr(), 0, x_RI.stride(0),
            weights[0], 0, bias, 0, out_RO.data_ptr(), 0, out_RO.stride(0), self._n_bytes,
        )  # fmt: skip

    def _product(self, a: Tensor, b: Tensor, bias: Tensor, out: Tensor) -> None:
        if len(self._names) == 2:
            torch.addmm(bias, a, b, out=out)
        else:
            torch.mm(a, b, out=out)

    def end(self, n_slots: int) -> None:
        """Weights and momenta after a whole block, for tasks that go on."""
        if self._later is None:
            self._later = (self._base.like(), self._base.like())
        if self._given is not None:
            self._load(self._given)
            self._given = None
        for slot in range(n_slots):
            self._go_on(slot)
        self._is_first = False

    def _go_on(self, slot: int) -> None:
        assert self._later is not None
        found, n = self._rates(self._rates_G[slot]), self.n_steps
        new_w, new_m = (self._views(slab, slot) for slab in self._later)
        old_w = self._views(self._weights, self._slot(slot))
        old_m = [] if self._is_first else new_m
        if self._optimizer.momentum:
            room = self._views(self._room, 0)
            self._combine(room, slot, n, found.gradients_m[n], (found.m[n, 0], old_w), (found.m[n, 1], old_m))
        self._combine(new_w, slot, n, found.gradients_w[n], (found.w[n, 0], old_w), (found.w[n, 1], old_m))
        if self._optimizer.momentum:
            for m, new in zip(new_m, room, strict=True):
                m.copy_(new)

    def finish(self) -> None:
        """All are through: their bases may go."""
        self._given = None

    def subtract(self, first: int, out: Flat) -> None:
        """Writes weights less base of slots `first` and on, which are through."""
        self._write(first, out, less=1.0)

    def read(self, first: int, out: Flat) -> None:
        """Writes the weights of slots `first` and on, which are through."""
        self._write(first, out, less=0.0)

    def _write(self, first: int, out: Flat, less: float) -> None:
        n = self.k + 1
        for i in range(len(out)):
            slot = first + i
            found = self._rates(self._rates_G[slot])
            p, q = found.w[n, :2].tolist()
            is_direct = self._is_first and self._is_direct(out)
            if is_direct and (p == less or self._given is not None):
                self._write_sums(int(out.addresses_G[i]), slot, n, found.gradients_w[n], p - less)
                continue
            base = self._views(self._base, 0 if self._is_shared else slot)
            terms = [(p - less, base)]
            if not self._is_first:
                terms = [(p, self._views(self._weights, slot)), (q, self._views(self._momenta, slot)), (-less, base)]
            room = self._views(self._room, 0)
            self._combine(room, slot, n, found.gradients_w[n], *terms)
            self._room.read(0, out.one(i))

    def _is_direct(self, out: Flat) -> bool:
        """Whether gradients can be summed up where they are asked for: rows of whole vectors, without padding."""
        return self._places[0].n_columns % ROW == 0 and out.dtype == np.dtype(type(self._one))

    def _write_sums(self, start: int, slot: int, n: int, factors_R1: Tensor, keep: float) -> None:
        """Writes the gradients of `n` steps times their factors, and `keep` times the base, to a vector's address."""
        n_rows, (weight, *biases), one = n * self.n_batch, self._places, self._one
        scaled_RO = torch.mul(self.dy_GRO[slot, :n_rows], factors_R1, out=self._scaled_RO[:n_rows])
        x_RI, to = self._x_GRI[slot], [start + self._n_bytes * place.source for place in self._places]
        kept = self._given_addresses(slot) if keep else to
        place, factor = (scaled_RO.data_ptr(), 0, scaled_RO.stride(0)), type(one)(keep)
        products.backward(
            one, 1, n_rows, weight.n_columns, weight.n_rows, False, *place, 0, 0, x_RI.data_ptr(), 0, x_RI.stride(0),
            0, 0, 0, to[0], kept[0], factor, one, self._n_bytes,
        )  # fmt: skip
        for i, bias in enumerate(biases, 1):
            products.add_sums(one, 1, n_rows, bias.n_columns, *place, to[i], kept[i], 0, factor, one, self._n_bytes)

    def _combine(
        self, out: list[Tensor], slot: int, n: int, factors_R1: Tensor, *terms: tuple[float, list[Tensor]]
    ) -> None:
        """Puts the gradients of `n` steps times their factors, and other terms times theirs, into `out`."""
        n_rows = n * self.n_batch
        scaled_RO = torch.mul(self.dy_GRO[slot, :n_rows], factors_R1, out=self._scaled_RO[:n_rows])
        sums = ((scaled_RO.T, self._x_GRI[slot, :n_rows]), (self._ones_1R[:, :n_rows], scaled_RO))
        for i, (to, (a, b)) in enumerate(zip(out, sums, strict=False)):
            _add_product(to, a, b, [(float(factor), part[i]) for factor, part in terms if factor and part])

    @property
    def _weights(self) -> Slab:
        if self._is_first:
            return self._base
        assert self._later is not None
        return self._later[0]

    @property
    def _momenta(self) -> Slab:
        assert self._later is not None
        return self._later[1]

    def _slot(self, slot: int) -> int:
        return 0 if self._is_first and self._is_shared else slot

    def _views(self, slab: Slab, slot: int) -> list[Tensor]:
        """Weight and bias of a slot, with padding."""
        return [slab.full(name, slot + 1)[slot] for name in self._names]


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _is_bare(optimizer: SgdOptimizer) -> bool:
    return not optimizer.momentum and not optimizer.weight_decay


def _lies_alike(weight: Place, dtype: torch.dtype) -> bool:
    """Whether products can take the weights, and the bias behind them, from a flat vector: they need no padding."""
    is_whole = weight.n_columns % ROW == 0 and weight.n_rows % products.OUTPUTS == 0
    return is_whole and dtype in (torch.float32, torch.float64)


def _add_product(out: Tensor, a: Tensor, b: Tensor, terms: _Terms) -> None:
    """out <- a b + the terms; the first of them may be `out` itself."""
    if not terms:
        torch.mm(a, b, out=out)
        return
    (factor, first), *others = terms
    torch.addmm(first, a, b, beta=factor, out=out)
    for factor, other in others:
        out.add_(other, alpha=factor)


class LinearAhead:
    """The layer in a step: what the block's start gives, and what the steps before changed."""

    def __init__(self, ctx: Context, name: str, layer: nn.Linear, ahead: Ahead) -> None:
        self.y: Value = ctx.new(name, Form.ROWS, (layer.out_features,), needs_grad=True)
        self._y, self._dy = self.y.m.full, self.y.m.full_grad
        self._ahead, self._g = ahead, ctx.n_slots
        self._at = cache(self._views)

    def _views(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ahead, g, n = self._ahead, self._g, self._ahead.n_batch
        rows, before = slice(k * n, (k + 1) * n), slice(0, k * n)
        between_gBR = ahead.between_GRR[:g, (k - 1) * n : k * n, before] if k else ahead.between_GRR[:g, :0]
        return ahead.y_GRO[:g, rows], between_gBR, ahead.dy_GRO[:g, before], ahead.dy_GRO[:g, rows]

    def forward(self) -> None:
        y_gBO, between_gBR, before_gRO, _ = self._at(self._ahead.k)
        if self._ahead.k == 0:
            self._y.copy_(y_gBO)
        else:
            torch.baddbmm(y_gBO, between_gBR, before_gRO, alpha=self._ahead.sign, out=self._y)

    def backward(self) -> None:
        self._at(self._ahead.k)[3].copy_(self._dy)
