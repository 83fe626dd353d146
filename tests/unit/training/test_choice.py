"""Which path and group size follow from a configuration and a module, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import models, training
from fedsim.errors import ClientError, ConfigError
from fedsim.layout import Layout
from fedsim.training.choice import choose_path
from fedsim.training.footprint import group_bytes
from fedsim.training.fused import machine
from fedsim.training.fused.graph import trace
from fedsim.training.objectives import task_loss

Make = Callable[..., Any]
TINY = ({"kind": "mlp", "hidden": [32]}, (64,), 10)
MLP = ({"kind": "mlp", "hidden": [200]}, (784,), 62)
CNN = ({"kind": "cnn", "channels": [16, 32], "kernel": 5}, (28, 28), 62)


def choose(make_config: Make, case: Any, **section: Any) -> tuple[str, int, str]:
    kind, shape, n_classes = case
    config = make_config(model=kind, training={"path": "auto", "batch_size": 10} | section)
    module = models.build_initial(config.model, shape, n_classes, 0)
    return choose_path(config, module, shape, task_loss(models.n_outputs(config.model, n_classes)))


@pytest.mark.parametrize(("case", "group_size"), [(TINY, 64), (MLP, 16), (CNN, 4)], ids=["tiny", "mlp", "cnn"])
def test_group_fills_the_cache(make_config: Make, case: Any, group_size: int) -> None:
    path, n, reason = choose(make_config, case)
    assert (path, n) == ("fused", group_size) and "bytes a client" in reason
    momentum = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    assert choose(make_config, case, optimizer=momentum)[1] <= group_size


def test_what_is_configured_counts(make_config: Make) -> None:
    assert choose(make_config, TINY, group_size=8)[:2] == ("fused", 8)
    assert choose(make_config, TINY, path="loop")[:2] == ("loop", 1)
    assert choose(make_config, TINY, path="loop", group_size=8)[:2] == ("loop", 8)


class Odd(nn.Module):
    """A module whose second layer has no fused form."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.middle = nn.Softsign()
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


class Looking(nn.Linear):
    """A layer whose forward pass looks at values, so that no graph can be made of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def twice() -> nn.Module:
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.ReLU(), shared)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    module[0].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Odd(), r"layer 'middle' \(Softsign\): it has no fused form"),
        (nn.Sequential(Looking(6, 3)), r"Sequential cannot be traced|layer '0' \(Looking\)"),
        (twice(), r"layer '0' \(Linear\): it is used more than once"),
        (frozen(), r"layer '0' \(Linear\): it has parameters that are not trained"),
        (nn.Sequential(nn.Linear(5, 3)), r"layer '0' \(Linear\): "),
    ],
    ids=["softsign", "looking", "twice", "frozen", "misfit"],
)
def test_what_cannot_be_fused_is_named(make_config: Make, module: nn.Module, reason: str) -> None:
    config = make_config(training={"path": "auto"})
    path, _, why = choose_path(config, module, (6,), task_loss(3))
    assert path != "fused" and re.search(rf"not fused: ({reason})", why)
    config = make_config(training={"path": "fused"})
    with pytest.raises(ConfigError, match=rf"training\.path: fused cannot train this model: ({reason})"):
        choose_path(config, module, (6,), task_loss(3))


@pytest.mark.parametrize("losses", ["running", "full", "none"])
@pytest.mark.parametrize("payload", ["delta", "model"])
def test_reports_are_those_of_the_loop(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, losses: str, payload: Any
) -> None:
    population = make_population([make_shard(n, (9,), 4, n) for n in (11, 5, 3)], 4)
    found = []
    for path in ("loop", "fused", "stacked"):
        config = make_config(
            model={"kind": "mlp", "hidden": [7]},
            record={"losses": losses},
            training={"path": path, "group_size": 2, "epochs": 2, "order": "continued"},
        )
        module = models.build_initial(config.model, (9,), 4, 1)
        base_P = Layout.of(module).flatten(module)
        trainer = training.build(
            config, population, module, payload=payload, device=torch.device("cpu"), worker=3, clock=lambda: 2.5
        )
        assert trainer.path == path
        tasks = [make_task(config, i, n, task=i, first_step=5 * i) for i, n in enumerate((11, 5, 3))]
        out_GP = np.empty((3, base_P.size), np.float32)
        found.append((list(trainer.train(tasks, lambda v, b=base_P: b, out_GP, lambda: None)), out_GP))
    (by_loop, loop_GP), *others = found
    for reports, out_GP in others:
        np.testing.assert_allclose(out_GP, loop_GP, atol=1e-6)
        np.testing.assert_allclose(np.array(reports), np.array(by_loop), rtol=1e-5)


def test_a_loss_that_explodes_is_named(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make
) -> None:
    shards = [make_shard(8, (9,), 4, i) for i in range(3)]
    shards[1].x[:] *= 1e30
    messages = []
    for path in ("loop", "fused", "stacked"):
        config = make_config(model={"kind": "mlp", "hidden": [7]}, training={"path": path, "epochs": 3})
        module = models.build_initial(config.model, (9,), 4, 1)
        base_P = Layout.of(module).flatten(module)
        population = make_population(shards, 4)
        trainer = training.build(
            config, population, module, payload="delta", device=torch.device("cpu"), worker=0, clock=lambda: 0.0
        )
        tasks = [make_task(config, i, 8, task=40 + i, base_version=6) for i in range(3)]
        with pytest.raises(
            ClientError, match=r"client 1, task 41, version 6, step \d of 6: loss is (nan|inf)"
        ) as error:
            trainer.train(tasks, lambda v, b=base_P: b, np.empty((3, base_P.size), np.float32), lambda: None)
        messages.append(str(error.value).partition(": loss")[0])
    assert len(set(messages)) == 1


@pytest.mark.parametrize(("n_operations", "n_calls"), [(0, 6), (8_000_000, 1)])
def test_progress_is_called_between_steps_that_take_a_while(
    make_population: Make,
    make_config: Make,
    make_task: Make,
    make_shard: Make,
    monkeypatch: pytest.MonkeyPatch,
    n_operations: int,
    n_calls: int,
) -> None:
    monkeypatch.setattr("fedsim.training.fused.tape._MOST_OPERATIONS", n_operations)
    config = make_config(model={"kind": "mlp", "hidden": [7]}, training={"path": "fused", "epochs": 3})
    module = models.build_initial(config.model, (9,), 4, 1)
    base_P = Layout.of(module).flatten(module)
    seconds = iter(range(1000))
    trainer = training.build(
        config, make_population([make_shard(8, (9,), 4)], 4), module,
        payload="delta", device=torch.device("cpu"), worker=0, clock=lambda: float(next(seconds)),
    )  # fmt: skip
    calls: list[int] = []
    task = make_task(config, 0, 8)
    trainer.train([task], lambda v: base_P, np.empty((1, base_P.size), np.float32), lambda: calls.append(1))
    assert task.n_steps == 6 and len(calls) == n_calls


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)),
            "use GroupNorm",
        ),
        (nn.Sequential(nn.Linear(6, 3), nn.RReLU()), r"layer '1' \(RReLU\): it draws random numbers other than"),
        (nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 6), nn.Flatten()), r"layer '1' \(Conv1d\)"),
        (nn.Sequential(Looking(6, 3)), "torch.func cannot train Sequential: .*vmap"),
        (twice(), "two layers share a parameter"),
    ],
    ids=["batchnorm", "rrelu", "conv1d", "looking", "twice"],
)
def test_what_cannot_be_stacked_is_named(make_config: Make, module: nn.Module, reason: str) -> None:
    config = make_config(training={"path": "auto"})
    assert "not stacked" in choose_path(config, module, (6,), task_loss(3)).reason
    with pytest.raises(ConfigError, match=rf"training\.path: stacked cannot train this model: .*({reason})"):
        choose_path(make_config(training={"path": "stacked"}), module, (6,), task_loss(3))


def test_a_module_that_cannot_be_fused_is_stacked(make_config: Make) -> None:
    path, _, why = choose_path(make_config(training={"path": "auto"}), Odd(), (6,), task_loss(3))
    assert path == "stacked" and why.startswith("not fused: layer 'middle' (Softsign): it has no fused form; ")


@pytest.mark.parametrize("payload", ["delta", "model"])
@pytest.mark.parametrize("path", ["fused", "stacked"])
def test_the_way_over_a_device_gives_the_same(
    make_population: Make, make_config: Make, make_task: Make, make_shard: Make, path: str, payload: Any
) -> None:
    """What a device other than the host's needs, rehearsed on the host: gathering by torch, transfers of groups."""
    population = make_population([make_shard(n, (1, 6, 6), 4, n) for n in (11, 5, 3)], 4)
    config = make_config(
        model={"kind": "cnn", "channels": [3], "kernel": 3}, training={"path": path, "group_size": 3, "epochs": 2}
    )
    module = models.build_initial(config.model, (1, 6, 6), 4, 1)
    base_P = Layout.of(module).flatten(module)
    found = []
    for is_on_host in (True, False):
        trainer = training.build(
            config, population, module, payload=payload, device=torch.device("cpu"), worker=0, clock=lambda: 0.0
        )
        trainer._machine.batches.is_on_host = is_on_host
        tasks = [make_task(config, i, n, task=i, base_version=i // 2) for i, n in enumerate((11, 5, 3))]
        bases = [base_P, base_P + np.float32(0.1)]
        out_GP = np.empty((3, base_P.size), np.float32)
        found.append((list(trainer.train(tasks, bases.__getitem__, out_GP, lambda: None)), out_GP))
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("layers", "shape", "section", "n_block"),
    [
        ([nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 62)], (784,), {}, 10),
        ([nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 62)], (28, 28), {}, 10),
        ([nn.Linear(784, 200)], (784,), {"batch_size": 32}, 3),
        ([nn.Linear(784, 2000)], (784,), {}, 12),
        ([nn.Linear(784, 200)], (784,), {"clip_norm": 1.0}, 0),
        ([nn.Linear(784, 200)], (784,), {"objective": {"kind": "proximal", "mu": 0.1}}, 0),
        ([nn.Linear(784, 200)], (784,), {"optimizer": {"kind": "adam", "learning_rate": 0.1}}, 0),
        ([nn.Linear(784, 200)], (784,), {"batch_size": 64}, 0),
        ([nn.Linear(64, 200)], (64,), {}, 0),
        ([nn.ReLU(), nn.Linear(784, 200)], (784,), {}, 0),
        ([nn.Linear(784, 200)], (3, 784), {}, 0),
    ],
    ids=["mlp", "images", "batches", "wide", "clipped", "proximal", "adam", "one step", "small", "relu", "rows"],
)
def test_which_first_layers_are_computed_ahead(
    make_config: Make, layers: list[nn.Module], shape: tuple[int, ...], section: dict[str, Any], n_block: int
) -> None:
    config = make_config(training={"batch_size": 10} | section)
    first, n = machine.block_of(config.training, trace(nn.Sequential(*layers), shape), has_linear=False)
    assert n == n_block and (first is not None) == (n_block > 0)
    assert machine.block_of(config.training, trace(nn.Sequential(*layers), shape), has_linear=True) == (None, 0)


@pytest.mark.parametrize(
    ("module", "inner"),
    [
        (nn.Linear(6, 3), "the fused step as a CUDA graph"),
        (nn.Sequential(nn.Linear(6, 3), nn.SiLU()), r"not fused: layer '1' \(SiLU\): .*; the stacked step"),
    ],
    ids=["fused", "stacked"],
)
def test_captured_where_the_configuration_has_a_gpu(make_config: Make, module: nn.Module, inner: str) -> None:
    """A rule over the configuration: the rank that asks need have no GPU."""
    for config in (
        make_config(device="cuda", training={"path": "auto"}),
        make_config(training={"path": "captured"}),
    ):
        path, group_size, why = choose_path(config, module, (6,), task_loss(3))
        assert (path, group_size) == ("captured", 64) and re.search(inner, why)
    config = make_config(device="cuda", training={"path": "auto", "group_size": 96})
    assert choose_path(config, module, (6,), task_loss(3)).group_size == 96
    assert choose_path(make_config(training={"path": "auto"}), module, (6,), task_loss(3)).path != "captured"


def test_captured_that_cannot_be(make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"captured needs a GPU, but device is cpu; set device: cuda, or use auto"):
        choose_path(make_config(device="cpu", training={"path": "captured"}), nn.Linear(6, 3), (6,), task_loss(3))
    odd = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    config = make_config(training={"path": "captured"})
    with pytest.raises(ConfigError, match=r"cannot train this model: not fused: layer '1' \(BatchNorm1d\): "):
        choose_path(config, odd, (6,), task_loss(3))
    assert choose_path(make_config(device="cuda", training={"path": "auto"}), odd, (6,), task_loss(3)).path == "loop"


@pytest.mark.parametrize("path", ["fused", "stacked", "captured"])
@pytest.mark.parametrize("is_running", [True, False])
def test_batchnorm_is_named_with_what_to_use_instead(make_config: Make, path: str, is_running: bool) -> None:
    odd = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=is_running), nn.Linear(5, 3))
    config = make_config(training={"path": path})
    with pytest.raises(ConfigError, match=r"layer '1' \(BatchNorm1d\).*use GroupNorm"):
        choose_path(config, odd, (6,), task_loss(3))


def test_what_fits_a_group_decides(make_config: Make) -> None:
    """Of a group too large by the rule, as many clients as fit; of a configured one, a line that says how many do."""
    rule = choose(make_config, MLP)
    kind, shape, n_classes = MLP

    def bounded(bound: int, **section: Any) -> tuple[str, int, str]:
        config = make_config(
            model=kind, memory={"worker_group_bytes": bound}, training={"path": "auto", "batch_size": 10} | section
        )
        module = models.build_initial(config.model, shape, n_classes, 0)
        return choose_path(config, module, shape, task_loss(n_classes))

    config = make_config(model=kind, training={"path": "auto", "batch_size": 10})
    module = models.build_initial(config.model, shape, n_classes, 0)
    five = group_bytes(config.training, module, shape, "fused", 5).total
    assert bounded(five)[:2] == ("fused", 5) and "as many as fit memory.worker_group_bytes" in bounded(five)[2]
    assert bounded(2**40)[:2] == rule[:2]
    assert bounded(five, group_size=5)[1] == 5
    line = (
        rf"training\.group_size: 6 clients take [\d,]+ bytes, above memory\.worker_group_bytes {five:,}: 5 fit; "
        "set training.group_size to it, or memory.worker_group_bytes to more"
    )
    with pytest.raises(ConfigError, match=line):
        bounded(five, group_size=6)
    with pytest.raises(
        ConfigError, match=r"a group of 1 on the path fused takes .*: no group fits; set training\.path"
    ):
        bounded(1000)
    assert bounded(1000, path="loop")[:2] == ("loop", 1)
