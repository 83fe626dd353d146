"""The benchmark of local training: what it counts, and that it compares what it says it compares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedsim import models
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
    kind, shape, n_classes = bench.MODELS[model]
    config = bench._config(model, "plain", "loop", None)
    assert config.model.kind == kind["kind"]
    module = models.build_initial(config.model, shape, n_classes, 0)
    assert bench.operations(module, shape) == 2 * 40 * products


def test_plain_loop_does_what_the_paths_do() -> None:
    """In order and without momentum, the sum of its models is the sum of the loop's updates and of the bases."""
    torch.set_num_threads(1)
    _, shape, n_classes = bench.MODELS["tiny"]
    clients = bench.Clients(3, shape, n_classes)
    config = bench._config("tiny", "plain", "loop", 3)
    module = models.build_initial(config.model, shape, n_classes, 0)
    base_P = Layout.of(module).flatten(module)
    plain = bench.PlainLoop(module, clients, 0.0, shuffles=False)
    module = models.build_initial(config.model, shape, n_classes, 0)
    path = bench.Path(config, clients, module)
    plain.train(range(3))
    path.train(range(3))
    assert np.allclose(plain._sum_P.numpy(), path._out_GP.sum(0) + 3 * base_P, atol=1e-5)
    assert not np.allclose(path._out_GP, 0.0, atol=1e-3)


def test_report_has_ratios_against_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_S", 1e-6)
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 64)
    report = json.loads(bench.measure("tiny", ["fused"], repeat=1, group_size=32).json())
    assert report["settings"]["group size, plain, fused"] == 32
    figures = {figure["name"]: figure for figure in report["figures"]}
    for variant in bench.VARIANTS:
        ratio = figures[f"{variant}: fused"]["median"] / figures[f"{variant}: PyTorch"]["median"]
        assert figures[f"{variant}: fused / PyTorch"]["median"] == pytest.approx(ratio)
        assert figures[f"{variant}: fused / PyTorch"]["target"] is not None
    assert len(report["runs"]) == 2 and all(run["product"] > 0 for run in report["runs"])
