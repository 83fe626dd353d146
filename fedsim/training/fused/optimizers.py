"""Steps of stacked optimisers, which do what torch's do one client at a time.

Shapes: `g` slots at work, `Q` floats of a client's part of a slab. Learning rates are a column: clients of one group
may start from different versions, whose rates differ.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fedsim.config import AdamOptimizer, OptimizerConfig, ProximalObjective, SgdOptimizer, TrainingConfig
from fedsim.training.fused.memory import Slab
from fedsim.training.fused.values import Target


class Stepper(Protocol):
    """What happens to the weights. Gradients go to `target`; `carries_rate`: scaled by the rate already."""

    target: Target
    carries_rate: bool

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        """Forgets the former clients; the weights hold the new ones' bases."""

    def step(self, n_slots: int) -> None:
        """Takes the step of the first slots, whose gradients are in `target`."""


class PlainSgd:
    """W <- W - lr g, done by the products of the backward pass."""

    carries_rate = True

    def __init__(self, weights: Slab) -> None:
        self.target = Target(weights, beta=1.0, alpha=-1.0)

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        pass

    def step(self, n_slots: int) -> None:
        pass


class MomentumSgd:
    """M <- momentum M + g by the products, then M <- M + decay W and W <- W - lr M."""

    carries_rate = False

    def __init__(self, weights: Slab, momenta: Slab, config: SgdOptimizer) -> None:
        self.target = Target(momenta, beta=config.momentum, alpha=1.0)
        self._w_GQ, self._m_GQ = weights.data_GQ, momenta.data_GQ
        self._weight_decay = config.weight_decay
        self._rates_G1: Tensor

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rates_G1 = rates_G1
        self._m_GQ[:n_slots].zero_()

    def step(self, n_slots: int) -> None:
        w_gQ, m_gQ = self._w_GQ[:n_slots], self._m_GQ[:n_slots]
        if self._weight_decay:
            m_gQ.add_(w_gQ, alpha=self._weight_decay)
        w_gQ.addcmul_(m_gQ, self._rates_G1[:n_slots], value=-1.0)


class GradientStep:
    """Gradients in memory of their own: the proximal term, then clipping, then the optimiser."""

    carries_rate = False

    def __init__(self, weights: Slab, training: TrainingConfig) -> None:
        places, data_GQ = weights.places, weights.data_GQ
        self._places, self._w_GQ = places, data_GQ
        gradients = Slab(places, torch.zeros_like(data_GQ))
        self.target = Target(gradients, beta=0.0, alpha=1.0)
        self._d_GQ, self._t_GQ = gradients.data_GQ, torch.zeros_like(data_GQ)
        objective = training.objective
        self._mu = objective.mu if isinstance(objective, ProximalObjective) else 0.0
        self._base_GQ = torch.zeros_like(data_GQ) if self._mu else None
        self._clip_norm = training.clip_norm
        self._rule = _rule(training.optimizer, data_GQ)

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rule.start(n_slots, rates_G1)
        if self._base_GQ is not None:
            self._base_GQ[:n_slots].copy_(self._w_GQ[:n_slots])

    def step(self, n_slots: int) -> None:
        w_gQ, d_gQ, t_gQ = self._w_GQ[:n_slots], self._d_GQ[:n_slots], self._t_GQ[:n_slots]
        if self._base_GQ is not None:
            torch.sub(w_gQ, self._base_GQ[:n_slots], out=t_gQ)
            d_gQ.add_(t_gQ.mul_(self._mu))
        if self._clip_norm is not None:
            _clip(d_gQ, t_gQ, self._clip_norm)
        self._rule.step(w_gQ, d_gQ, t_gQ)


def _clip(d_gQ: Tensor, t_gQ: Tensor, norm: float) -> None:
    """Shortens each client's gradient to the norm, as `torch.nn.utils.clip_grad_norm_` does."""
    norms_g1 = torch.mul(d_gQ, d_gQ, out=t_gQ).sum(1, keepdim=True).sqrt_()
    d_gQ.mul_(norms_g1.add_(1e-6).reciprocal_().mul_(norm).clamp_(max=1.0))


class _Rule(Protocol):
    def start(self, n_slots: int, rates_G1: Tensor) -> None: ...

    def step(self, w_gQ: Tensor, d_gQ: Tensor, t_gQ: Tensor) -> None: ...


class _Sgd:
    def __init__(self, config: SgdOptimizer, like_GQ: Tensor) -> None:
        self._config = config
        self._m_GQ = torch.zeros_like(like_GQ) if config.momentum else None
        self._rates_G1: Tensor

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rates_G1 = rates_G1
        if self._m_GQ is not None:
            self._m_GQ[:n_slots].zero_()

    def step(self, w_gQ: Tensor, d_gQ: Tensor, t_gQ: Tensor) -> None:
        n_slots = w_gQ.shape[0]
        if self._config.weight_decay:
            d_gQ.add_(w_gQ, alpha=self._config.weight_decay)
        if self._m_GQ is not None:
            d_gQ = self._m_GQ[:n_slots].mul_(self._config.momentum).add_(d_gQ)
        w_gQ.addcmul_(d_gQ, self._rates_G1[:n_slots], value=-1.0)


class _Adam:
    """Adam, and AdamW, whose decay is no part of the gradient."""

    def __init__(self, config: AdamOptimizer, like_GQ: Tensor) -> None:
        self._config = config
        self._m_GQ, self._v_GQ = torch.zeros_like(like_GQ), torch.zeros_like(like_GQ)
        self._n_steps = 0
        self._rates_G1: Tensor

    def start(self, n_slots: int, rates_G1: Tensor) -> None:
        self._rates_G1, self._n_steps = rates_G1, 0
        self._m_GQ[:n_slots].zero_()
        self._v_GQ[:n_slots].zero_()

    def step(self, w_gQ: Tensor, d_gQ: Tensor, t_gQ: Tensor) -> None:
        config, n_slots = self._config, w_gQ.shape[0]
        m_gQ, v_gQ, rates_g1 = self._m_GQ[:n_slots], self._v_GQ[:n_slots], self._rates_G1[:n_slots]
        self._n_steps += 1
        first, second = (1.0 - beta**self._n_steps for beta in config.betas)
        if config.weight_decay and config.kind == "adamw":
            w_gQ.mul_(1.0 - rates_g1 * config.weight_decay)
        elif config.weight_decay:
            d_gQ.add_(w_gQ, alpha=config.weight_decay)
        m_gQ.lerp_(d_gQ, 1.0 - config.betas[0])
        v_gQ.mul_(config.betas[1]).addcmul_(d_gQ, d_gQ, value=1.0 - config.betas[1])
        torch.sqrt(v_gQ, out=t_gQ).mul_(second**-0.5).add_(config.eps)
        torch.div(m_gQ, t_gQ, out=t_gQ)
        w_gQ.addcmul_(t_gQ, rates_g1 / first, value=-1.0)


def _rule(config: OptimizerConfig, like_GQ: Tensor) -> _Rule:
    return _Sgd(config, like_GQ) if isinstance(config, SgdOptimizer) else _Adam(config, like_GQ)


def build(training: TrainingConfig, weights: Slab) -> Stepper:
    """The cheapest way of taking the configured step."""
    optimizer = training.optimizer
    is_bare = training.clip_norm is None and not isinstance(training.objective, ProximalObjective)
    if is_bare and isinstance(optimizer, SgdOptimizer):
        if not optimizer.momentum and not optimizer.weight_decay:
            return PlainSgd(weights)
        if optimizer.momentum:
            return MomentumSgd(weights, Slab(weights.places, torch.zeros_like(weights.data_GQ)), optimizer)
    return GradientStep(weights, training)
