"""Rules whose clients keep a state, on quadratics: first steps by hand, and the drift that they remove.

Client k minimises (a_k / 2) (w - b_k)^2 by gradient descent of learning rate lr, with the slope that its method adds.
The optimum of the mean is sum(a_k b_k) / sum(a_k); FedAvg with many local steps settles elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim import aggregation
from fedsim.aggregation import Arrival, Facts
from fedsim.config import FedAvgRule, FedDynRule, RunConfig, ScaffoldRule
from fedsim.training.clients import ClientStates
from fedsim.training.clients.methods import ControlVariates, DualVariables, Method, WayOfTheModel
from fedsim.training.clients.trainer import MethodTrainer
from fedsim.types import Float32, Float64, Task, TaskReport, Update

Make = Callable[..., Any]
A, B = np.array([1.0, 4.0]), np.array([-1.0, 2.0])
LR, STEPS = 0.1, 10
OPTIMUM = float((A * B).sum() / A.sum())  # 1.4


class Quadratics:
    """A trainer of the two clients, with one parameter each; `mu` is the quadratic term about the start."""

    path, group_size = "by hand", 2

    def __init__(self, mu: float = 0.0) -> None:
        self._mu = mu

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> list[TaskReport]:
        reports = []
        for i, task in enumerate(tasks):
            start = w = float(base_of(task.base_version)[0])
            slope = 0.0 if linear_GP is None else float(linear_GP[i, 0])
            for _ in range(task.n_steps):
                w -= LR * (A[task.client] * (w - B[task.client]) + slope + self._mu * (w - start))
            out_GP[i, 0] = w - start
            reports.append(TaskReport(task.task, 0, task.n_samples, task.n_steps, 0.0, 0.0, abs(w - start), 0.0))
        return reports


def rounds(
    make_task: Make, config: RunConfig, rule: Any, methods: Sequence[Method], n_rounds: int, mu: float = 0.0
) -> tuple[list[float], ClientStates]:
    """The versions' weights from 0 on, both clients in every round."""
    states = ClientStates(sum(method.n_values for method in methods))
    trainer: Any = Quadratics(mu)
    if methods:
        trainer = MethodTrainer(trainer, methods, states, 1)
    state = rule.init(np.zeros(1, np.float32))
    weights = [0.0]
    for version in range(n_rounds):
        tasks = [
            make_task(config, k, 1, task=2 * version + k, base_version=version, n_steps=STEPS, learning_rate=LR)
            for k in (0, 1)
        ]
        sent, out_GP = rule.publish(state), np.empty((2, 1), np.float32)
        reports = trainer.train(tasks, lambda _, sent=sent: sent, out_GP, lambda: None)
        for task, report, out_P in zip(tasks, reports, out_GP, strict=True):
            state, _ = rule.accumulate(state, Update(report, out_P), Arrival(0, task, version))
        states.commit([task.task for task in tasks] if methods else [])
        state = rule.commit(state)
        weights.append(float(state.weights_P[0]))
    return weights, states


def local(w: float, k: int, slope: float = 0.0, mu: float = 0.0) -> float:
    """Where client k ends that starts at w: it moves towards the optimum of its objective by a factor a step."""
    a = A[k] + mu
    target = (A[k] * B[k] - slope + mu * w) / a
    return float(target + (w - target) * (1.0 - LR * a) ** STEPS)


def test_fedavg_has_a_bias(make_task: Make, make_config: Make) -> None:
    weights, _ = rounds(make_task, make_config(), aggregation.build(FedAvgRule(rule="fedavg")), (), 60)
    pull: Float64 = 1.0 - (1.0 - LR * A) ** STEPS  # how far a client gets towards its own optimum
    settled = float((pull * B).sum() / pull.sum())
    assert weights[-1] == pytest.approx(settled, abs=1e-5) and abs(settled - OPTIMUM) > 0.5


def test_scaffold_by_hand_and_without_drift(make_task: Make, make_config: Make) -> None:
    rule = aggregation.build(ScaffoldRule(rule="scaffold"), Facts(n_clients=2))
    weights, states = rounds(make_task, make_config(), rule, [ControlVariates(1)], 60)
    first = [local(0.0, k) for k in (0, 1)]  # all control variates are zero
    own = [-d / (STEPS * LR) for d in first]
    assert weights[1] == pytest.approx(np.mean(first), rel=1e-6)
    second = [local(weights[1], k, slope=float(np.mean(own)) - own[k]) for k in (0, 1)]
    assert weights[2] == pytest.approx(np.mean(second), rel=1e-5)
    assert weights[-1] == pytest.approx(OPTIMUM, abs=1e-4)
    kept = [states.committed(k) for k in (0, 1)]  # the clients' gradients at the optimum
    assert [float(c[0]) for c in kept if c is not None] == pytest.approx((A * (OPTIMUM - B)).tolist(), abs=1e-3)


def test_scaffold_by_samples_keeps_the_control_the_mean_of_the_clients(make_task: Make, make_config: Make) -> None:
    rule = aggregation.build(ScaffoldRule(rule="scaffold", weighting="samples"), Facts(n_clients=2))
    state = rule.init(np.zeros(1, np.float32))
    config = make_config()
    for k, (n, d) in enumerate([(3, 0.6), (1, -0.2)]):
        task = make_task(config, k, n, n_steps=4, learning_rate=0.5)
        report = TaskReport(k, 0, n, 4, 0.0, 0.0, abs(d), 0.0)
        state, told = rule.accumulate(state, Update(report, np.array([d], np.float32)), Arrival(0, task))
        assert told.weight == n
    published = rule.publish(rule.commit(state))
    assert published == pytest.approx([(3 * 0.6 - 0.2) / 4, (3 * -0.3 + 0.1) / 4], rel=1e-6)


def test_feddyn_by_hand_and_without_drift(make_task: Make, make_config: Make) -> None:
    alpha = 0.5
    rule = aggregation.build(FedDynRule(rule="feddyn", alpha=alpha), Facts(n_clients=2))
    weights, _ = rounds(make_task, make_config(), rule, [DualVariables(1, alpha)], 200, mu=alpha)
    first = [local(0.0, k, mu=alpha) for k in (0, 1)]
    dual = -alpha / 2 * sum(first)
    assert weights[1] == pytest.approx(np.mean(first) - dual / alpha, rel=1e-5)
    own = [-alpha * d for d in first]
    second = [local(weights[1], k, slope=-own[k], mu=alpha) for k in (0, 1)]
    dual -= alpha / 2 * sum(w - weights[1] for w in second)
    assert weights[2] == pytest.approx(np.mean(second) - dual / alpha, rel=1e-4)
    assert weights[-1] == pytest.approx(OPTIMUM, abs=1e-3)


def test_afl_cs_clients_are_given_the_way_of_the_model(make_task: Make, make_config: Make) -> None:
    """The version now less the version that the client had before; nothing in its first task."""
    given: list[list[float]] = []

    class Watching(Quadratics):
        def train(self, tasks: Any, base_of: Any, out_GP: Any, progress: Any, linear_GP: Any = None) -> Any:
            given.append(linear_GP[:, 0].tolist())
            return super().train(tasks, base_of, out_GP, progress, None)

    states = ClientStates(1)
    trainer = MethodTrainer(Watching(), [WayOfTheModel(1)], states, 1)
    versions = {v: np.array([w], np.float32) for v, w in enumerate([1.0, 3.0, 7.0])}
    config = make_config()
    for number, (client, version) in enumerate([(0, 0), (1, 1), (0, 2), (1, 2)]):
        task = make_task(config, client, 10, task=number)._replace(base_version=version)
        trainer.train([task], versions.__getitem__, np.empty((1, 1), np.float32), lambda: None)
        states.commit([number])
    assert given == [[0.0], [0.0], [6.0], [4.0]]
