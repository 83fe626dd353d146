"""AFL-CS' local objective: its written-down gradients against autograd's, and what its bound is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config import AflCsObjective
from fedsim.training.objectives import AflCs

PENALTIES = ("directions", "weights", "released", "none")


def penalty(kind: str, w: Tensor, base: Tensor, way: Tensor) -> Tensor:
    """The formula, a layer."""
    d = w - base
    if kind == "weights":
        return 1 - (w * base).sum() / (w.norm() * base.norm())
    if kind == "released":
        return 1 + (w * base).sum() / (w.norm() * base.norm())
    if kind == "none" or not way.norm() > 0 or way.norm() < 1e-6 * w.norm():
        return torch.zeros((), dtype=w.dtype)
    return 1 - (d * way).sum() / (way.norm() * torch.maximum(d.norm(), way.norm()))


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("reach", [0.1, 10.0])  # shorter and longer than the way
def test_gradients_are_autograds(kind: Any, reach: float) -> None:
    generator = torch.Generator().manual_seed(3)
    base, way, step = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    parameters = [nn.Parameter(base.clone()), nn.Parameter(bias.clone())]
    config = AflCsObjective(kind="afl-cs", penalty=kind, norm_weight=0.3, similarity_weight=0.7)
    objective = AflCs(config, parameters)
    objective.take([way, torch.ones(4, dtype=torch.float64)])
    objective.start()
    with torch.no_grad():
        parameters[0] += step * (reach * way.norm() / step.norm())
        parameters[1] += 1.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    objective.add_gradient()
    w = parameters[0].detach().clone().requires_grad_()
    (0.3 * (w - base).norm() + 0.7 * penalty(kind, w, base, way)).backward()
    assert parameters[0].grad is not None and w.grad is not None and parameters[1].grad is not None
    torch.testing.assert_close(parameters[0].grad, w.grad, rtol=1e-12, atol=1e-12)
    assert not parameters[1].grad.any(), "a bias is no weight"


@pytest.mark.parametrize("kind", PENALTIES)
def test_at_the_base_nothing_explodes(kind: Any) -> None:
    base = torch.full((5, 5), 0.1)
    parameter = nn.Parameter(base.clone())
    objective = AflCs(AflCsObjective(kind="afl-cs", penalty=kind, similarity_weight=1.0), [parameter])
    way = torch.full((5, 5), 1e-3)
    for start, bound in ((torch.zeros(5, 5), 0.0), (way, 1.0 / way.norm())):
        objective.take([start])
        objective.start()
        parameter.grad = torch.zeros_like(parameter)
        objective.add_gradient()
        least = 0.0 if kind != "directions" else float(bound)
        assert float(parameter.grad.norm()) == pytest.approx(least, abs=1e-5)
