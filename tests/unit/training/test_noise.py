"""Masks of dropout: keyed, the same in bulk as one at a time, and the same wherever they are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import seeding
from fedsim.training import noise
from fedsim.training.noise import Dropout, Keys, Masks, TaskMasks

CPU = torch.device("cpu")


def keys(*pairs: tuple[int, int], n_steps: int = 9) -> Keys:
    clients, tasks = np.array(pairs, dtype=np.int64).T
    return Keys(7, clients, tasks, [n_steps] * len(pairs))


@pytest.mark.parametrize("part", [0, 3])
def test_long_streams_are_the_generators_whatever_the_keys_beside(part: int) -> None:
    clients, tasks = np.array([5, 2**40, 5]), np.array([8, 1, 2**33])
    bulk = seeding.long_bits(7, seeding.Purpose.DROPOUT, clients, tasks, 37, 8, part)
    for row, client, task in zip(bulk, clients, tasks, strict=True):
        alone = seeding.long_bits(7, seeding.Purpose.DROPOUT, np.array([client]), np.array([task]), 37, 8, part)
        assert np.array_equal(row, alone[0])
        key = np.array([seeding.stream_key(7, seeding.Purpose.DROPOUT, part), client], np.uint64)
        stream = np.random.Philox(key=key, counter=np.array([0, 0, 0, task], np.uint64))
        assert np.array_equal(stream.random_raw(45)[8:], row)
        if part == 0:
            generator = seeding.generator(7, seeding.Purpose.DROPOUT, int(client), int(task))
            assert np.array_equal(generator.bit_generator.random_raw(45)[8:], row)
    assert len({row.tobytes() for row in bulk}) == 3


@pytest.mark.parametrize("shape", [(13,), (1,), (3, 2, 5), (4, 1, 1)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_a_group_and_a_block_have_the_masks_of_each_task_and_step(shape: tuple[int, ...], rate: float) -> None:
    every, dropout = keys((3, 4), (3, 5), (1, 4)), Dropout(rate, shape)
    bulk = noise.kept(every, 2, dropout, 10, 10, range(2, 6))
    assert bulk.shape == (3, 4, 10, *shape)
    for slot, pair in enumerate([(3, 4), (3, 5), (1, 4)]):
        for i, step in enumerate(range(2, 6)):
            alone = noise.kept(keys(pair), 2, dropout, 10, 7, range(step, step + 1))  # a short batch
            assert np.array_equal(bulk[slot, i, :7], alone[0, 0])
    assert rate == 1.0 or len({bulk[s, i].tobytes() for s in range(3) for i in range(4)}) > 1
    assert not bulk.any() if rate == 1.0 else bulk.any()


def test_rates_are_met() -> None:
    kept = noise.kept(keys((0, 0)), 0, Dropout(0.3, (1000,)), 100, 100, range(1))
    assert kept.mean() == pytest.approx(0.7, abs=0.01)  # seven standard deviations of a hundred thousand draws


def test_masks_of_slots_are_those_of_tasks_alone() -> None:
    """What a group's memory holds, step by step and as slots leave, is what the loop multiplies by."""
    dropouts = (Dropout(0.5, (6,)), Dropout(0.25, (2, 1)))
    masks, alone = Masks(dropouts, 4, 5, torch.float32, CPU), TaskMasks(5, CPU)
    pairs = [(3, 4), (9, 5), (1, 6)]
    masks.start(keys(*pairs))
    found: list[list[Any]] = []
    for step in range(9):
        masks.advance(3 if step < 4 else 2)
        found.append([mask.clone() for mask in masks.now])
    for slot, pair in enumerate(pairs[:2]):
        alone.start(keys(pair))
        for step in range(9):
            with alone:
                first = functional.dropout(torch.ones(3, 6), 0.5)
                second = functional.dropout1d(torch.ones(3, 2, 7), 0.25)
            assert torch.equal(first, found[step][0][slot, :3])
            assert torch.equal(second, found[step][1][slot, :3].expand(3, 2, 7))


class Functions(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.dropout(x, 0.25, self.training)
        return functional.dropout(functional.dropout(x, 0.0, self.training), p=0.5, training=self.training)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(3, 2), (3,), noise.Noise((), False)),
        (nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.0)), (3,), noise.Noise((Dropout(0.2, (3,)),), False)),
        (Functions(), (4,), noise.Noise((Dropout(0.25, (4,)), Dropout(0.5, (4,))), False)),
        (nn.Dropout2d(0.5), (3, 5, 5), noise.Noise((Dropout(0.5, (3, 1, 1)),), False)),
        (nn.RReLU(), (3,), noise.Noise((), True)),
        (nn.AlphaDropout(0.5), (3,), noise.Noise((), True)),
        (nn.Sequential(nn.Flatten(0), nn.Dropout(0.5)), (3,), noise.Noise((), True)),
        (nn.Sequential(nn.Linear(5, 5), nn.RReLU()), (3,), noise.Noise((), True)),
    ],
    ids=["none", "layers", "functions", "channels", "rrelu", "alpha", "no batch", "unfit"],
)
def test_what_a_module_draws(module: nn.Module, shape: tuple[int, ...], expected: noise.Noise) -> None:
    state = torch.get_rng_state()
    assert noise.find(module.eval(), shape) == expected
    assert torch.equal(state, torch.get_rng_state()) and not module.training
