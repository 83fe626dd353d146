"""Steps of stacked optimisers, which do what torch's do one client at a time.

Learning rates are a column: clients of one group may start from different versions, whose rates differ. Vectors without
a suffix are whole blocks of a parameter of all slots at work; what follows the last of them is overwritten with rubbish
that nobody reads. Shapes: `G` slots, `g` slots at work, `Q` floats of a parameter with its padding.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from fedsim.config import AdamOptimizer, AflCsObjective, PlainObjective, ProximalObjective, SgdOptimizer, TrainingConfig
from fedsim.training.fused.memory import Slab
from fedsim.training.fused.penalties import LayerPenalty
from fedsim.training.fused.values import Target


class Stepper(Protocol):
    """What happens to the weights. Gradients go to `target`; `carries_rate`: scaled by the rate already."""

    target: Target
    carries_rate: bool

    def start(self, n_slots: int, rates_G1: Tensor, linear_GP: Tensor | None = None) -> None:
        """Forgets the former clients; the weights hold the new ones' bases. `linear_GP` is added to their gradients."""

    def advance(self) -> None:
        """Counts a step that is to come. What depends on the count is put into memory that `step` reads."""

    def step(self, n_slots: int) -> None:
        """Takes the step of the first slots, whose gradients are in `target`."""


class PlainSgd:
    """W <- W - lr g, done by the products of the backward pass."""

    carries_rate = True

    def __init__(self, weights: Slab) -> None:
        self.target = Target(weights, beta=1.0, alpha=-1.0)

    def start(self, n_slots: int, rates_G1: Tensor, linear_GP: Tensor | None = None) -> None:
        pass

    def advance(self) -> None:
        pass

    def step(self, n_slots: int) -> None:
        pass


class LinearSgd:
    """W <- W - lr g by the products, then W <- W - lr l with the slope l of each client's linear term."""

    carries_rate = True

    def __init__(self, weights: Slab) -> None:
        self.target = Target(weights, beta=1.0, alpha=-1.0)
        self._moves = weights.like()  # lr l, which no step changes
        self._blocks = cache(lambda g: list(zip(weights.blocks(g), self._moves.blocks(g), strict=True)))

    def start(self, n_slots: int, rates_G1: Tensor, linear_GP: Tensor | None = None) -> None:
        assert linear_GP is not None
        self._moves.put(linear_GP * rates_G1[:n_slots])

    def advance(self) -> None:
        pass

    def step(self, n_slots: int) -> None:
        for w, move in self._blocks(n_slots):
            w.sub_(move)


class MomentumSgd:
    """M <- momentum M + g by the products, then M <- M + decay W and W <- W - lr M."""

    carries_rate = False

    def __init__(self, weights: Slab, momentum: float, weight_decay: float) -> None:
        self._momenta = weights.like()
        self.target = Target(self._momenta, beta=momentum, alpha=1.0)
        self._weight_decay = weight_decay
        self._rates_G1: Tensor
        self._blocks = cache(lambda g: list(zip(weights.blocks(g), self._momenta.blocks(g), strict=True)))
        self._parts = cache(lambda g: list(zip(weights.parts(g), self._momenta.parts(g), strict=True)))

    def start(self, n_slots: int, rates_G1: Tensor, linear_GP: Tensor | None = None) -> None:
        self._rates_G1 = rates_G1
        self._momenta.zero(n_slots)

    def advance(self) -> None:
        pass

    def step(self, n_slots: int) -> None:
        if self._weight_decay:
            for w, m in self._blocks(n_slots):
                m.add_(w, alpha=self._weight_decay)
        rates_g1 = self._rates_G1[:n_slots]
        for w_gQ, m_gQ in self._parts(n_slots):
            w_gQ.addcmul_(m_gQ, rates_g1, value=-1.0)


class GradientStep:
    """Gradients in memory of their own: the proximal and the linear term, then clipping, then the optimiser."""

    carries_rate = False

    def __init__(self, weights: Slab, training: TrainingConfig, has_linear: bool = False) -> None:
        self._weights, self._gradients, self._room = weights, weights.like(), weights.like()
        self.target = Target(self._gradients, beta=0.0, alpha=1.0)
        objective = training.objective
        self._mu = objective.mu if isinstance(objective, ProximalObjective) else 0.0
        self._base = weights.like() if self._mu else None
        self._penalty = LayerPenalty(objective, weights) if isinstance(objective, AflCsObjective) else None
        self._linear = weights.like() if has_linear and self._penalty is None else None
        self._clip_norm = training.clip_norm
        optimizer = training.optimizer
        self._rule = _Sgd(optimizer, weights) if isinstance(optimizer, SgdOptimizer) else _Adam(optimizer, weights)

    def start(self, n_slots: int, rates_G1: Tensor, linear_GP: Tensor | None = None) -> None:
        self._rule.start(n_slots, rates_G1)
        if self._penalty is not None:
            self._penalty.start(n_slots, linear_GP)
        if self._linear is not None:
            assert linear_GP is not None
            self._linear.put(linear_GP)
        if self._base is not None:
            for base_gQ, w_gQ in zip(self._base.parts(n_slots), self._weights.parts(n_slots), strict=True):
                base_gQ.copy_(w_gQ)

    def advance(self) -> None:
        self._rule.advance()

    def step(self, n_slots: int) -> None:
        if self._base is not None:
            slabs = (self._weights, self._gradients, self._room, self._base)
            for w, d, t, base in zip(*(slab.blocks(n_slots) for slab in slabs), strict=True):
                torch.sub(w, base, out=t)
                d.add_(t.mul_(self._mu))
        if self._linear is not None:
            for d, slope in zip(self._gradients.blocks(n_slots), self._linear.blocks(n_slots), strict=True):
                d.add_(slope)
        if self._penalty is not None:
            self._penalty.add(n_slots, self._gradients, self._room)
        if self._clip_norm is not None:
            self._clip(n_slots, self._clip_norm)
        self._rule.step(n_slots, self._weights, self._gradients, self._room)

    def _clip(self, n_slots: int, norm: float) -> None:
        """Shortens each client's gradient to the norm, as `torch.nn.utils.clip_grad_norm_` does."""
        gradients, room = self._gradients, self._room
        for d, t in zip(gradients.blocks(n_slots), room.blocks(n_slots), strict=True):
            torch.mul(d, d, out=t)
        squares = [t_gQ.sum(1, keepdim=True) for t_gQ in room.parts(n_slots)]
        norms_g1 = torch.cat(squares, 1).sum(1, keepdim=True).sqrt_()
        factors_g1 = norms_g1.add_(1e-6).reciprocal_().mul_(norm).clamp_(max=1.0)
        for d_gQ in gradients.parts(n_slots):
            d_gQ.mul_(factors_g1)


class _Sgd:
    def __init__(self, config: SgdOptimizer, weights: Slab) -> None:
        self._config = config
        self._momenta = weights.like() if config.momentum else None
        self._rates_G1: Tensor

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rates_G1 = rates_G1
        if self._momenta is not None:
            self._momenta.zero(n_slots)

    def advance(self) -> None:
        pass

    def step(self, n_slots: int, weights: Slab, gradients: Slab, room: Slab) -> None:
        config, rates_g1 = self._config, self._rates_G1[:n_slots]
        if config.weight_decay:
            for w, d in zip(weights.blocks(n_slots), gradients.blocks(n_slots), strict=True):
                d.add_(w, alpha=config.weight_decay)
        if self._momenta is not None:
            for m, d in zip(self._momenta.blocks(n_slots), gradients.blocks(n_slots), strict=True):
                m.mul_(config.momentum).add_(d)
            gradients = self._momenta
        for w_gQ, d_gQ in zip(weights.parts(n_slots), gradients.parts(n_slots), strict=True):
            w_gQ.addcmul_(d_gQ, rates_g1, value=-1.0)


class _Adam:
    """Adam, and AdamW, whose decay is no part of the gradient."""

    def __init__(self, config: AdamOptimizer, weights: Slab) -> None:
        self._config = config
        self._first, self._second = weights.like(), weights.like()
        self._n_steps = 0
        some = weights.blocks(1)[0]
        self._correction, self._factor = some.new_ones(()), some.new_ones(())
        self._rates_G1: Tensor

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rates_G1, self._n_steps = rates_G1, 0
        self._first.zero(n_slots)
        self._second.zero(n_slots)

    def advance(self) -> None:
        self._n_steps += 1
        first, second = (1.0 - beta**self._n_steps for beta in self._config.betas)
        self._correction.fill_(first)
        self._factor.fill_(second**-0.5)

    def step(self, n_slots: int, weights: Slab, gradients: Slab, room: Slab) -> None:
        config, rates_g1 = self._config, self._rates_G1[:n_slots]
        if config.weight_decay and config.kind == "adamw":
            factors_g1 = 1.0 - rates_g1 * config.weight_decay
            for w_gQ in weights.parts(n_slots):
                w_gQ.mul_(factors_g1)
        slabs = (weights, gradients, room, self._first, self._second)
        for w, d, t, m, v in zip(*(slab.blocks(n_slots) for slab in slabs), strict=True):
            if config.weight_decay and config.kind == "adam":
                d.add_(w, alpha=config.weight_decay)
            m.lerp_(d, 1.0 - config.betas[0])
            v.mul_(config.betas[1]).addcmul_(d, d, value=1.0 - config.betas[1])
            torch.sqrt(v, out=t).mul_(self._factor).add_(config.eps)
            torch.div(m, t, out=t)
        for w_gQ, t_gQ in zip(weights.parts(n_slots), room.parts(n_slots), strict=True):
            w_gQ.addcmul_(t_gQ, rates_g1 / self._correction, value=-1.0)


def build(training: TrainingConfig, weights: Slab, has_linear: bool = False) -> Stepper:
    """The cheapest way of taking the configured step."""
    optimizer = training.optimizer
    is_bare = training.clip_norm is None and isinstance(training.objective, PlainObjective)
    if is_bare and isinstance(optimizer, SgdOptimizer):
        if has_linear:
            plain = not optimizer.momentum and not optimizer.weight_decay
            return LinearSgd(weights) if plain else GradientStep(weights, training, has_linear)
        if optimizer.momentum:
            return MomentumSgd(weights, optimizer.momentum, optimizer.weight_decay)
        if not optimizer.weight_decay:
            return PlainSgd(weights)
    return GradientStep(weights, training, has_linear)
