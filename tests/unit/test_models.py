"""The reference networks: shapes, initial weights, and the shapes that they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import models
from fedsim.config import CnnModel, LogisticModel, MlpModel, ModelConfig, ResidualModel, TextModel
from fedsim.errors import ConfigError
from fedsim.layout import Layout

LOGISTIC = LogisticModel(kind="logistic")
MLP = MlpModel(kind="mlp", hidden=[200])
CNN = CnnModel(kind="cnn", channels=[16, 32], kernel=5)


def test_heart_starts_from_exactly_linear_13_1() -> None:
    ours = models.build_initial(LOGISTIC, (13,), 2, seed=42)
    torch.manual_seed(42)
    plain = nn.Linear(13, 1)
    assert type(ours) is nn.Linear
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)


def test_flattening_draws_nothing() -> None:
    flat = models.build_initial(LOGISTIC, (12,), 10, seed=1)
    image = models.build_initial(LOGISTIC, (3, 2, 2), 10, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(flat.parameters(), image.parameters(), strict=True))


def test_initial_weights_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    models.build_initial(MLP, (4,), 3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_largest_seed_is_taken() -> None:
    models.build_initial(LOGISTIC, (2,), 2, seed=2**63 - 1)


def test_cnn_is_the_network_written_by_hand() -> None:
    ours = models.build_initial(CNN, (1, 28, 28), 62, seed=0)
    torch.manual_seed(0)
    c1, c2, last = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2), nn.Linear(32 * 49, 62)
    x = torch.randn(3, 1, 28, 28)
    hidden = functional.max_pool2d(functional.relu(c1(x)), 2)
    hidden = functional.max_pool2d(functional.relu(c2(hidden)), 2)
    assert torch.equal(ours(x), last(hidden.flatten(1)))


@pytest.mark.parametrize(
    ("config", "shape", "n_classes", "n_outputs"),
    [
        (LOGISTIC, (13,), 2, 1),
        (LOGISTIC, (8, 8), 10, 10),
        (MLP, (1, 28, 28), 62, 62),
        (MLP, (13,), 2, 2),
        (MlpModel(kind="mlp", hidden=[5, 4, 3]), (7,), 2, 2),
        (CNN, (1, 28, 28), 62, 62),
        (CNN, (28, 28), 10, 10),
        (CNN, (3, 9, 6), 2, 2),
        (CnnModel(kind="cnn", channels=[4], kernel=4), (1, 7, 8), 3, 3),
        (CnnModel(kind="cnn", channels=[4, 5, 6], kernel=2), (2, 5, 5), 3, 3),
        (CnnModel(kind="cnn", channels=[4], kernel=1), (2, 2, 2), 3, 3),
        (ResidualModel(kind="residual", channels=[4, 6, 6], blocks=2, groups=2, dropout=0.1), (3, 9, 7), 10, 10),
        (ResidualModel(kind="residual", channels=[8]), (28, 28), 2, 2),
        (TextModel(kind="text", vocabulary=20), (9,), 4, 4),
        (TextModel(kind="text", vocabulary=20, embedding=3, hidden=[], dropout=0.5), (1,), 2, 2),
    ],
)
def test_outputs(config: ModelConfig, shape: tuple[int, ...], n_classes: int, n_outputs: int) -> None:
    module = models.build(config, shape, n_classes)
    assert module(torch.zeros(6, *shape)).shape == (6, n_outputs)
    assert models.n_outputs(config, n_classes) == n_outputs
    assert Layout.of(module).n_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("shape", "word"), [((13,), "(13,)"), ((1, 2, 3, 4), "mlp"), ((1, 3, 3), "leave nothing")])
def test_cnn_refuses_shapes_in_one_line(shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=r"^model") as caught:
        models.build(CNN, shape, 10)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_residual_is_the_network_written_by_hand() -> None:
    config = ResidualModel(kind="residual", channels=[4, 6], groups=2)
    ours = models.build_initial(config, (1, 9, 7), 3, seed=0).double()
    torch.manual_seed(0)
    stem, stem_norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
    a1, an1 = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.GroupNorm(2, 4)
    a2, an2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.GroupNorm(2, 4)
    b1, bn1, b2 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, 1, 1, bias=False)
    bn2, fit, last = nn.GroupNorm(2, 6), nn.Conv2d(4, 6, 1, 2, bias=False), nn.Linear(6, 3)
    every = nn.ModuleList([stem, stem_norm, a1, an1, a2, an2, b1, bn1, b2, bn2, fit, last]).double()
    assert sum(p.numel() for p in every.parameters()) == sum(p.numel() for p in ours.parameters())
    x = torch.randn(3, 1, 9, 7, dtype=torch.float64)
    y = functional.relu(stem_norm(stem(x)))
    y = functional.relu(an2(a2(functional.relu(an1(a1(y))))) + y)
    y = functional.relu(bn2(b2(functional.relu(bn1(b1(y))))) + fit(y))
    assert torch.allclose(ours(x), last(y.mean((2, 3))), rtol=1e-12)


def test_text_is_the_mean_of_word_vectors() -> None:
    ours = models.build_initial(TextModel(kind="text", vocabulary=9, embedding=3, hidden=[4]), (5,), 2, seed=0)
    torch.manual_seed(0)
    words, first, last = nn.Embedding(9, 3, padding_idx=0), nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.tensor([[3, 8, 3, 0, 0], [1, 2, 3, 4, 5]])
    assert not words.weight[0].any()
    expected = last(functional.relu(first(words(x).mean(1))))
    assert torch.equal(ours(x.float()), expected)


@pytest.mark.parametrize(
    ("config", "shape", "word"),
    [
        (ResidualModel(kind="residual"), (13,), "residual takes samples"),
        (ResidualModel(kind="residual", channels=[16, 20]), (1, 8, 8), "groups is 8, which does not divide .*20"),
        (TextModel(kind="text", vocabulary=9), (1, 8, 8), "text takes samples that are vectors"),
    ],
)
def test_others_refuse_in_one_line(config: ModelConfig, shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\..*{word}"):
        models.build(config, shape, 10)
