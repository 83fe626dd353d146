"""AFL-CS' local penalty over stacked weights; `objectives.AflCs` has the formulas, and is the reference.

Whole blocks for what is alike for all slots, rows with a factor a slot for what is not: see `memory`.
Shapes: `g` slots at work, `Q` floats of a parameter with its padding, which holds zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.config import AflCsObjective
from fedsim.training.fused.memory import Slab
from fedsim.training.objectives import LEAST_MOVE


class LayerPenalty:
    """Adds the gradient of lambda ||d_l|| + c_s penalty_l over weight tensors l, with d_l = w_l - base_l."""

    def __init__(self, config: AflCsObjective, weights: Slab) -> None:
        self._config = config
        self._weights = weights
        self._base = weights.like()
        self._way = weights.like() if config.penalty == "directions" else None

    def start(self, n_slots: int, way_GP: Tensor | None) -> None:
        """Takes the bases from the weights, and the way that the model went since each client had it last."""
        for base_gQ, w_gQ in zip(self._base.parts(n_slots), self._weights.parts(n_slots), strict=True):
            base_gQ.copy_(w_gQ)
        if self._way is not None:
            assert way_GP is not None
            self._way.put(way_GP)

    def add(self, n_slots: int, gradients: Slab, room: Slab) -> None:
        """Adds the gradients of the first slots; `room` is overwritten."""
        for i in self._weights.matrices:
            w, base, t = (slab.blocks(n_slots)[i] for slab in (self._weights, self._base, room))
            d_gQ, t_gQ = gradients.parts(n_slots)[i], room.parts(n_slots)[i]
            if self._config.penalty in ("weights", "released"):
                self._add_cosine(i, n_slots, d_gQ, t, t_gQ)
            squares_g1 = _sum(torch.sub(w, base, out=t).square_(), t_gQ)
            factor_g1 = _inverse(squares_g1.sqrt()).mul_(self._config.norm_weight)
            if self._way is not None:
                factor_g1 += self._add_way(i, n_slots, d_gQ, (w, base, t), t_gQ, squares_g1)
            torch.sub(w, base, out=t)
            d_gQ.addcmul_(t_gQ, factor_g1)

    def _add_cosine(self, i: int, n_slots: int, d_gQ: Tensor, t: Tensor, t_gQ: Tensor) -> None:
        """Adds -+ c_s (base / (|w| |base|) - cos w / |w|^2), of the cosine between weights and base."""
        weights, base = self._weights, self._base
        w, b = weights.blocks(n_slots)[i], base.blocks(n_slots)[i]
        ww_g1 = _sum(torch.mul(w, w, out=t), t_gQ)
        bb_g1 = _sum(torch.mul(b, b, out=t), t_gQ)
        wb_g1 = _sum(torch.mul(w, b, out=t), t_gQ)
        scale_g1 = _inverse(ww_g1.sqrt() * bb_g1.sqrt())
        strength = self._config.similarity_weight * (-1.0 if self._config.penalty == "weights" else 1.0)
        d_gQ.addcmul_(base.parts(n_slots)[i], scale_g1, value=strength)
        d_gQ.addcmul_(weights.parts(n_slots)[i], wb_g1 * scale_g1 * _inverse(ww_g1), value=-strength)

    def _add_way(
        self, i: int, n_slots: int, d_gQ: Tensor, blocks: tuple[Tensor, Tensor, Tensor], t_gQ: Tensor, dd_g1: Tensor
    ) -> Tensor:
        """Adds what points along the way g; the factor (g, 1) of what points along d comes back."""
        assert self._way is not None
        (w, base, t), way = blocks, self._way.blocks(n_slots)[i]
        ww_g1 = _sum(torch.mul(w, w, out=t), t_gQ)
        gg_g1 = _sum(torch.mul(way, way, out=t), t_gQ)
        dg_g1 = _sum(torch.sub(w, base, out=t).mul_(way), t_gQ)
        counts_g1 = (gg_g1 > 0.0) & (gg_g1.sqrt() >= LEAST_MOVE * ww_g1.sqrt())
        is_near_g1 = dd_g1 <= gg_g1
        far_g1 = _inverse(gg_g1.sqrt() * dd_g1.sqrt())
        strength_g1 = counts_g1 * self._config.similarity_weight
        along_g1 = torch.where(is_near_g1, _inverse(gg_g1), far_g1) * strength_g1
        d_gQ.addcmul_(self._way.parts(n_slots)[i], along_g1, value=-1.0)
        return torch.where(is_near_g1, torch.zeros_like(far_g1), dg_g1 * far_g1 * _inverse(dd_g1)) * strength_g1


def _sum(block: Tensor, rows_gQ: Tensor) -> Tensor:
    """The sums (g, 1) of rows, of the block that was just written into their memory."""
    assert block.data_ptr() == rows_gQ.data_ptr()
    return rows_gQ.sum(1, keepdim=True)


def _inverse(values_g1: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(values_g1 > 0.0, values_g1.reciprocal(), torch.zeros_like(values_g1))
