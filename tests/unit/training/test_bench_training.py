"""The benchmark of local training: what it counts, and that it compares what it says it compares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedsim.bench import groups, sidebyside, workload
from fedsim.bench import training as bench
from fedsim.layout import Layout


@pytest.mark.parametrize(
    ("model", "products"),
    [
        ("tiny", 2 * 64 * 32 + 3 * 32 * 10),
        ("mlp", 2 * 784 * 200 + 3 * 200 * 62),
        ("cnn", 2 * 784 * 16 * 25 + 3 * (196 * 32 * 16 * 25 + 32 * 49 * 62)),
    ],
)
def test_operations_are_those_of_the_products(model: str, products: int) -> None:
    kind, shape, _ = workload.MODELS[model]
    assert workload.config_of(model, "plain", "loop").model.kind == kind["kind"]
    module = workload.module_of(model)
    assert bench.operations(module, shape) == 2 * 40 * products


def test_plain_loop_does_what_the_paths_do() -> None:
    """In order and without momentum, the sum of its models is the sum of the loop's updates and of the bases."""
    torch.set_num_threads(1)
    _, shape, n_classes = workload.MODELS["tiny"]
    clients = workload.Clients(3, shape, n_classes)
    config = workload.config_of("tiny", "plain", "loop", 3)
    module = workload.module_of("tiny")
    base_P = Layout.of(module).flatten(module)
    plain = workload.PlainLoop(module, clients, "plain")
    path = workload.Path(config, clients, workload.module_of("tiny"))
    plain.train(range(3))
    path.train(range(3))
    assert np.allclose(plain._sum_P.numpy(), path._out_GP.sum(0) + 3 * base_P, atol=1e-5)
    assert not np.allclose(path._out_GP, 0.0, atol=1e-3)


def test_report_has_ratios_against_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidebyside, "LEAST_S", 1e-6)
    monkeypatch.setattr(sidebyside, "PRODUCT_SIZE", 64)
    report = json.loads(bench.measure("tiny", ["fused"], repeat=1, group_size=32).json())
    assert report["settings"]["group size, plain, fused"] == 32
    figures = {figure["name"]: figure for figure in report["figures"]}
    for variant in workload.VARIANTS:
        ratio = figures[f"{variant}: fused"]["median"] / figures[f"{variant}: PyTorch"]["median"]
        assert figures[f"{variant}: fused / PyTorch"]["median"] == pytest.approx(ratio)
        assert figures[f"{variant}: fused / PyTorch"]["target"] is not None
    assert len(report["runs"]) == 2 and all(run["product"] > 0 for run in report["runs"])


def test_the_limit_is_the_product_rate_over_the_operations() -> None:
    rounds = [{"product": 4e9, "PyTorch": 100.0, "fused": 300.0}, {"product": 2e9, "PyTorch": 50.0, "fused": 100.0}]
    figures = {figure.name: figure for figure in bench.figures_of("mlp", "plain", ["fused"], rounds, 10**7)}
    assert figures["plain: limit"].value == 300.0 and (figures["plain: limit"].least, figures["plain: limit"].most) == (
        200.0,
        400.0,
    )
    assert figures["plain: fused / PyTorch"].value == 2.5 and figures["plain: fused / PyTorch"].is_met
    assert figures["plain: fused / limit"].value == 0.625 and figures["plain: fused / limit"].is_met
    assert figures["plain: PyTorch / limit"].value == 0.25 and figures["plain: PyTorch / limit"].is_met is None


def test_processes_side_by_side_are_summed() -> None:
    ones = [{"product": 1.0, "fused": 10.0}, {"product": 2.0, "fused": 20.0}]
    twos = [{"product": 3.0, "fused": 30.0}, {"product": 4.0, "fused": 40.0}]
    assert sidebyside.summed([ones, twos]) == [{"product": 4.0, "fused": 40.0}, {"product": 6.0, "fused": 60.0}]


def test_two_processes_side_by_side() -> None:
    contest = sidebyside.Contest("tiny", "plain", True, {"fused": ("fused", 32)}, 2)
    found, sizes = sidebyside.side_by_side(contest, 2)
    assert sizes == {"fused": 32} and len(found) == 2
    assert all(set(one) == {"product", "PyTorch", "fused"} and min(one.values()) > 0 for one in found)


def test_how_near_the_rule_comes() -> None:
    found = [{"product": 1.0, "1": 50.0, "2": 90.0, "4": 100.0}, {"product": 1.0, "1": 60.0, "2": 80.0, "4": 100.0}]
    figure = groups.nearness("x", 2, found)
    assert (figure.name, figure.value, figure.is_met) == ("x: 2, best 4", pytest.approx(0.85), True)
    assert groups.nearness("x", 1, found).is_met is False and groups.nearness("x", 4, found).value == 1.0
    runs = [{"model": "m", "path": "p", "variant": "v", "rule": 2, **one} for one in found]
    assert groups.table(runs) == {"m, p, v": {1: 55.0, 2: 85.0, 4: 100.0}}


@pytest.mark.parametrize("model", workload.MODELS)
def test_the_rule_gives_a_group_size(model: str) -> None:
    assert all(groups.rule_of(model, variant, "fused") in groups.SIZES for variant in workload.OPTIMIZERS)
