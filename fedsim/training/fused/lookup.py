"""Layers over tokens: embeddings, and the mean over a sample's tokens.

Shapes: `g` slots, `B` batch, `T` tokens of a sample, `V` tokens that there are, `D` numbers of a token with padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.training.fused.values import Context, Form, Value

_aten = torch.ops.aten


class Embedding:
    """The rows of each client's table that its samples, whole numbers, ask for."""

    def __init__(self, ctx: Context, name: str, layer: nn.Embedding, x: Value, prefix: str) -> None:
        g, weight = ctx.n_slots, f"{prefix}weight"
        self._x = x.m
        self.y = ctx.new(name, Form.ROWS, (*x.shape, layer.embedding_dim), needs_grad=True)
        self._target = ctx.target
        table_gVD = ctx.weights.full(weight, g)
        self._n_rows = g * table_gVD.shape[1]
        self._table = table_gVD.reshape(self._n_rows, -1)
        self._to_w = ctx.target.slab.full(weight, g)
        width = table_gVD.shape[2]
        self._y, self._dy = self.y.m.full.view(-1, width), self.y.m.full_grad.view(-1, width)
        self._first_g11 = torch.arange(0, self._n_rows, table_gVD.shape[1], device=table_gVD.device).view(g, 1, 1)
        self._padding = layer.padding_idx
        self._rows: Tensor

    def forward(self) -> None:
        tokens_gBT = self._x.t.to(torch.int64)
        self._rows = (tokens_gBT + self._first_g11).reshape(-1)
        torch.index_select(self._table, 0, self._rows, out=self._y)

    def backward(self) -> None:
        dy = self._dy
        if self._padding is not None:
            is_padding = (self._x.t == self._padding).reshape(-1, 1)
            dy = dy.masked_fill(is_padding, 0.0)
        gradient = _aten.embedding_dense_backward(dy, self._rows, self._n_rows, -1, False)
        self._target.add_vector(self._to_w, gradient.view(self._to_w.shape))


class TokenMean:
    """The mean over the last axis but one."""

    def __init__(self, ctx: Context, name: str, x: Value) -> None:
        *outer, self._n_tokens, _ = x.shape
        self._x = x.m
        self.y = ctx.new(name, Form.ROWS, (*outer, x.shape[-1]), needs_grad=x.m.needs_grad)
        self._y = self.y.m
        self._axes = (ctx.n_slots, ctx.n_batch * math.prod(outer), self._n_tokens)

    def forward(self) -> None:
        torch.sum(self._x.full.unflatten(1, self._axes[1:]), 2, out=self._y.full)  # type: ignore[no-untyped-call]
        self._y.full.div_(self._n_tokens)

    def backward(self) -> None:
        if self._x.needs_grad:
            part = self._y.full_grad / self._n_tokens
            self._x.full_grad.unflatten(1, self._axes[1:]).copy_(part.unsqueeze(2))  # type: ignore[no-untyped-call]
