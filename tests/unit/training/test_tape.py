"""Operations that follow one another in one compiled call: the same bits as by the layers' own methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.config import TrainingConfig
from fedsim.layout import Layout
from fedsim.training import noise
from fedsim.training.flat import Flat
from fedsim.training.fused import tape
from fedsim.training.fused.machine import FusedMachine
from fedsim.training.fused.memory import Places
from fedsim.training.fused.pointwise import Relu
from fedsim.training.fused.tape import Tape
from fedsim.training.fused.values import Arena, Context, Form, Target
from fedsim.training.groupbatches import Batch, GroupBatches
from fedsim.training.objectives import BinaryCrossEntropy, CrossEntropy, TaskLoss

Make = Callable[..., Any]
CPU, SLOTS, BATCH = torch.device("cpu"), 3, 5
MODULES: dict[str, tuple[nn.Module, TaskLoss, list[bool]]] = {  # and which parts of a step are tapes
    "whole": (nn.Sequential(nn.Linear(13, 9), nn.ReLU(), nn.Linear(9, 4, bias=False)), CrossEntropy(), [True]),
    "logistic": (nn.Linear(13, 4), CrossEntropy(), [True]),
    "activation": (
        nn.Sequential(nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 4)), CrossEntropy(), [True, False, True, False, True],
    ),
    "loss": (nn.Sequential(nn.Linear(13, 9), nn.ReLU(), nn.Linear(9, 1)), BinaryCrossEntropy(), [True, False, True]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODULES)
def test_a_step_is_what_its_layers_do(make_config: Make, name: str, dtype: torch.dtype) -> None:
    module, loss, kinds = MODULES[name]
    section = {"batch_size": BATCH, "path": "fused"}
    found = []
    for is_recorded in (True, False):
        machine = _machine(make_config(training=section).training, module, loss, dtype)
        work = machine._program(SLOTS)._work
        assert [isinstance(part, Tape) for part in work] == kinds
        if not is_recorded:
            for n, program in machine._programs.items():
                machine._programs[n] = _Plain(program)  # type: ignore[assignment]
        for k in range(3):
            machine.step(k, SLOTS)
        out_GP = torch.empty((SLOTS, machine.weights.n_values), dtype=dtype)
        machine.read(0, Flat.of(out_GP))
        found.append((out_GP.numpy().tobytes(), machine.batches.pieces_GKB[:, :3].numpy().tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
@pytest.mark.parametrize("name", MODULES)
def test_steps_taken_together_are_those_taken_one_by_one(
    make_config: Make, name: str, optimizer: dict[str, float]
) -> None:
    module, loss, kinds = MODULES[name]
    section = {"batch_size": BATCH, "path": "fused", "optimizer": {"kind": "sgd", "learning_rate": 0.1, **optimizer}}
    together = kinds == [True] and not optimizer
    found = []
    for n_most in (1, 8):
        machine = _machine(make_config(training=section).training, module, loss, torch.float32)
        n_calls = 0
        k = n_calls = 0
        for n_slots, stop in ((SLOTS, 4), (SLOTS - 1, 6), (1, 9)):  # some are through before others
            while k < stop:
                k += machine.step(k, n_slots, min(n_most, stop - k))
                n_calls += 1
        assert n_calls == (3 if together and n_most > 1 else 9)
        out_GP = torch.empty((SLOTS, machine.weights.n_values))
        machine.read(0, Flat.of(out_GP))
        found.append((out_GP.numpy().tobytes(), machine.batches.pieces_GKB[:, :9].numpy().tobytes()))
    assert found[0] == found[1]


def test_steps_of_much_work_are_taken_one_by_one(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loss, _ = MODULES["whole"]
    n_operations = SLOTS * BATCH * (2 * (16 * 9 + 16 * 4) + 9 + 4 + 2 * 16)  # rows have 16 numbers
    for n_fitting in (0, 1, 2):
        monkeypatch.setattr(tape, "_MOST_OPERATIONS", n_fitting * n_operations)
        machine = _machine(make_config(training={"batch_size": BATCH, "path": "fused"}).training, module, loss)
        assert machine.step(0, SLOTS, 8) == max(n_fitting, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODULES)
def test_slots_go_through_a_few_at_a_time(make_config: Make, name: str, dtype: torch.dtype) -> None:
    module, loss, _ = MODULES[name]
    found = set[tuple[bytes, bytes]]()
    for n_at_once in (SLOTS, 2, 1):
        machine = _machine(make_config(training={"batch_size": BATCH, "path": "fused"}).training, module, loss, dtype)
        k = 0
        for n_slots, stop in ((SLOTS, 4), (SLOTS - 1, 6)):  # one is through before the others
            for part in machine._program(n_slots)._work:
                if isinstance(part, Tape):
                    part._n_slots = n_slots, n_at_once
            while k < stop:
                k += machine.step(k, n_slots, stop - k)
        out_GP = torch.empty((SLOTS, machine.weights.n_values), dtype=dtype)
        machine.read(0, Flat.of(out_GP))
        found.add((out_GP.numpy().tobytes(), machine.batches.pieces_GKB[:, :6].numpy().tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize("n_slots", [2, BATCH, 7])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU()], ids=["tanh", "gelu"])
def test_maps_are_no_rows(make_config: Make, activation: nn.Module, n_slots: int) -> None:
    """Slots lie side by side in maps, so that work on some slots' numbers alone would be on others', too."""
    module = nn.Sequential(
        nn.Unflatten(1, (1, 13, 1)), nn.Conv2d(1, 4, (3, 1)), activation, nn.ReLU(), nn.Flatten(), nn.Linear(44, 4)
    )
    training = make_config(training={"batch_size": BATCH, "path": "fused"}).training
    found = set[tuple[bytes, bytes]]()
    for n_at_once in (None, n_slots, 1):
        machine = _machine(training, module, CrossEntropy(), n_slots=n_slots)
        program = machine._program(n_slots)
        tapes = [part for part in program._work if isinstance(part, Tape)]
        assert tapes and all(not isinstance(layer, Relu) or layer.rows() is None for layer in program._built)
        assert any(isinstance(layer, Relu) for layer in program._built)
        for part in tapes:
            part._n_slots = n_slots, n_at_once or n_slots
        if n_at_once is None:
            machine._programs[n_slots] = _Plain(program)  # type: ignore[assignment]
        for k in range(3):
            machine.step(k, n_slots)
        out_GP = torch.empty((n_slots, machine.weights.n_values))
        machine.read(0, Flat.of(out_GP))
        found.add((out_GP.numpy().tobytes(), machine.batches.pieces_GKB[:, :3].numpy().tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize(("n_fitting", "n_at_once"), [(0.5, 1), (1.0, 1), (2.9, 2), (9.0, 9)])
def test_as_many_slots_go_through_together_as_fit_a_cache(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, n_fitting: float, n_at_once: int
) -> None:
    n_values = 16 * 9 + BATCH * (16 + 9) + 16 * 4 + BATCH * (16 + 4)  # of both layers: weights, inputs, outputs
    monkeypatch.setattr(tape, "_SLOTS_BYTES", int(n_fitting * 4 * n_values))
    machine = _machine(make_config(training={"batch_size": BATCH, "path": "fused"}).training, *MODULES["whole"][:2])
    whole = machine._program(SLOTS).whole
    assert whole is not None and whole._n_slots == (SLOTS, n_at_once)


def _machine(
    training: TrainingConfig, module: nn.Module, loss: TaskLoss, dtype: torch.dtype = torch.float32,
    n_slots: int = SLOTS,
) -> FusedMachine:  # fmt: skip
    """A machine with a block of batches, ready for its first step."""
    machine = FusedMachine(module, (13,), training, loss, n_slots, device=CPU, dtype=dtype)
    draws, n = torch.Generator().manual_seed(3), machine.weights.n_values
    base_GP = torch.randn((n_slots, n), generator=draws, dtype=dtype)
    keys = noise.Keys(0, np.arange(n_slots), np.arange(n_slots), [3] * n_slots)
    machine.start(Flat.of(base_GP), np.full(n_slots, 0.1), keys)
    batches = machine.batches
    batches.x_GKBF[..., :13] = torch.randn(batches.x_GKBF[..., :13].shape, generator=draws, dtype=dtype)
    batches.targets_GKB.copy_(torch.randint(0, 2, batches.targets_GKB.shape, generator=draws))
    batches.scale_GKB.fill_(0.1 / BATCH)
    return machine


class _Plain:
    """A program whose layers are called one by one."""

    whole = None

    def __init__(self, program: Any) -> None:
        self._program = program

    def forget(self) -> None:
        self._program.forget()

    def step(self, batch: Batch) -> None:
        program = self._program
        program._input.full, program._input.t = batch.x_gBF, batch.samples_gBF
        for layer in program._built:
            layer.forward()
        program._loss.step(*batch.columns)
        for layer in reversed(program._built):
            layer.backward()


def test_relu_as_torchs_to_the_sign_of_a_zero() -> None:
    special = torch.tensor([0.0, -0.0, 1.5, -1.5, torch.nan, torch.inf, -torch.inf, 1e-45])
    slab = Places(Layout.of(nn.Linear(2, 2)), []).slab(2, torch.float32, CPU)
    ctx = Context(2, 4, Arena(torch.float32, CPU), slab, Target(slab, 1.0, -1.0), is_compiled=True)
    x = ctx.new("x", Form.ROWS, (16,), needs_grad=True)
    layer = Relu(ctx, "relu", x)
    rows = layer.rows()
    nothing = GroupBatches(2, 4, 16, torch.float32, torch.zeros(()), CPU, 1).at(2, 0)
    assert rows is not None
    found = []
    for is_recorded in (True, False):
        x.m.flat.copy_(special.repeat(16))
        if is_recorded:
            Tape(ctx, rows[0])(nothing)
        else:
            layer.forward()
        y = layer.y.m.flat.clone()
        layer.y.m.flat_grad.copy_(special.repeat_interleave(8).repeat(2))
        if is_recorded:
            Tape(ctx, rows[1])(nothing)
        else:
            layer.backward()
        found.append((y.numpy().tobytes(), x.m.flat_grad.numpy().tobytes()))
    assert found[0] == found[1]
