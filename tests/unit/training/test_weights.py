"""Parameters and flat vectors: copies both ways, and the norm of what changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.training import Payload, weights
from fedsim.training.flat import Flat
from fedsim.training.weights import Finisher, Weights


def test_load_and_read_copy_and_leave_the_given_module_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    before = [p.detach().clone() for p in module.parameters()]
    held = Weights(module, torch.device("cpu"))
    vector_P = np.arange(held.layout.n_parameters, dtype=np.float32)
    held.load(vector_P)
    assert held.parameters[1].tolist() == [15.0, 16.0, 17.0, 18.0, 19.0]
    out_P = np.empty_like(vector_P)
    held.read(out_P)
    assert np.array_equal(out_P, vector_P)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert all(p.is_contiguous() and p.data_ptr() % 64 == 0 for p in held.parameters)


@pytest.mark.parametrize("payload", ["delta", "model"])
@pytest.mark.parametrize("n", [1, 7, 8, 30])
def test_finish(payload: Payload, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_BLOCK", 8)
    rng = np.random.default_rng(n)
    base_P, trained_P = rng.standard_normal((2, n), dtype=np.float32)
    out_P = trained_P.copy()
    norm = Finisher(payload).finish(out_P, base_P)
    assert norm == pytest.approx(math.dist(trained_P, base_P), rel=1e-6)
    assert np.array_equal(out_P, trained_P - base_P if payload == "delta" else trained_P)


def test_norm_of_large_values_does_not_overflow() -> None:
    out_P = np.full(4, 3e38, np.float32)
    assert Finisher("delta").finish(out_P, np.zeros(4, np.float32)) == pytest.approx(6e38, rel=1e-6)


@pytest.mark.parametrize("n", [1, 5, 15, 16, 17, 1025, 5000])
def test_norms_of_a_group(n: int) -> None:
    rng = np.random.default_rng(n)
    rows_GP, base_GP = rng.normal(size=(2, 3, n)).astype(np.float32)
    rows, base = Flat(rows_GP), Flat(list(base_GP))
    exact = np.linalg.norm(rows_GP.astype(np.float64), axis=1)
    np.testing.assert_allclose(weights.update_norms(rows, None), exact, rtol=1e-12)
    difference = np.linalg.norm((rows_GP - base_GP).astype(np.float64), axis=1)
    np.testing.assert_allclose(weights.update_norms(rows, base), difference, rtol=1e-12)
    assert weights.update_norms(rows.one(1), None)[0] == weights.update_norms(rows, None)[1]
    assert weights.update_norms(rows, rows).tolist() == [0.0] * 3
