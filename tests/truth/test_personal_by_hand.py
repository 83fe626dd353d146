"""Models of the clients' own on quadratics: first steps by hand, and where they come to rest.

Client k minimises (a_k / 2) |w - b_k|^2 by gradient descent, with the slope and the quadratic term that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from fedsim import aggregation
from fedsim.aggregation import Arrival, Facts
from fedsim.config import (
    AsoFedObjective,
    DittoPersonalization,
    FedAvgRule,
    FineTunePersonalization,
    ProximalObjective,
    RunConfig,
)
from fedsim.layout import Layout
from fedsim.training.clients import ClientStates
from fedsim.training.clients.evaluator import PersonalEvaluator
from fedsim.training.clients.methods import BalancedGradients, Method, Received, Tools, methods_of
from fedsim.training.clients.personal import TUNING, Ditto, FineTuning, LocalParts
from fedsim.training.clients.trainer import MethodTrainer
from fedsim.types import EvaluationRow, Float32, Int64, Task, TaskReport, Update

Make = Callable[..., Any]
A, B = np.array([1.0, 2.0]), np.array([[4.0, -1.0], [8.0, 3.0]])
LR = 0.25


class Quadratics:
    """A trainer of the clients, with two parameters each; notes the tasks that it was given."""

    path, group_size = "by hand", 2

    def __init__(self, mu: float = 0.0, payload: str = "delta") -> None:
        self._mu = mu
        self._payload = payload
        self.given: list[Task] = []

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> list[TaskReport]:
        reports = []
        assert len(tasks) <= self.group_size
        for i, task in enumerate(tasks):
            self.given.append(task)
            start = base_of(task.base_version).astype(np.float64)
            w, slope = start.copy(), 0.0 if linear_GP is None else linear_GP[i]
            for _ in range(task.n_steps):
                w -= task.learning_rate * (A[task.client] * (w - B[task.client]) + slope + self._mu * (w - start))
            out_GP[i] = w - start if self._payload == "delta" else w
            reports.append(TaskReport(task.task, 0, task.n_samples, task.n_steps, 0.0, 0.0, 99.0, 0.0))
        return reports


class Sizes:
    """The samples of the clients, of which the second has none."""

    def n_samples(self, clients: Int64) -> Int64:
        return np.array([10, 10, 0])[clients]


def tools(config: RunConfig) -> tuple[Tools, list[Quadratics]]:
    """Tools whose trainers are quadratics; those that were made."""
    made: list[Quadratics] = []

    def make(config: RunConfig, has_linear: bool) -> Any:
        objective = config.training.objective
        made.append(Quadratics(objective.mu if isinstance(objective, ProximalObjective) else 0.0, "model"))
        return made[-1]

    return Tools(config, Sizes(), make), made  # type: ignore[arg-type]


def run(
    make_task: Make, config: RunConfig, methods: Sequence[Method], n_rounds: int, steps: int = 1
) -> tuple[list[Any], ClientStates]:
    """The versions from (0, 0) on by FedAvg, both clients in every round, and what the clients keep."""
    states = ClientStates(sum(method.n_values for method in methods))
    trainer: Any = MethodTrainer(Quadratics(), methods, states, 2)
    rule = aggregation.build(FedAvgRule(rule="fedavg", weighting="uniform"), Facts(2))
    state, versions = rule.init(np.zeros(2, np.float32)), [np.zeros(2)]
    for version in range(n_rounds):
        tasks = [
            make_task(config, k, 1, task=2 * version + k, base_version=version, n_steps=steps, learning_rate=LR)
            for k in (0, 1)
        ]
        sent, out_GP = rule.publish(state), np.empty((2, 2), np.float32)
        reports = trainer.train(tasks, lambda _, sent=sent: sent, out_GP, lambda: None)
        for task, report, out_P in zip(tasks, reports, out_GP, strict=True):
            state, _ = rule.accumulate(state, Update(report, out_P), Arrival(0, task, version))
        states.commit([task.task for task in tasks] if states.n_values else [])
        state = rule.commit(state)
        versions.append(state.weights_P.copy())
    return versions, states


def kept(states: ClientStates, client: int) -> list[float]:
    state = states.committed(client)
    assert state is not None
    return [float(value) for value in state]


def test_ditto_pulls_towards_the_version_received(make_task: Make, make_config: Make) -> None:
    strength = 0.5
    ditto = Ditto(2, DittoPersonalization(kind="ditto", strength=strength))
    ditto.bind(tools(make_config())[0])
    versions, states = run(make_task, make_config(), [ditto], 2)
    # both begin at 0: v = 1/4 b_0 and 1/2 b_1; the version is their mean, (2.5, .625)
    first = [np.array([1.0, -0.25]), np.array([4.0, 1.5])]
    assert versions[1].tolist() == [2.5, 0.625]
    second = [v - LR * (A[k] * (v - B[k]) + strength * (v - versions[1])) for k, v in enumerate(first)]
    assert [kept(states, k) for k in (0, 1)] == [pytest.approx(v, rel=1e-6) for v in second]


def test_ditto_leaves_the_federation_alone_and_rests_between_it_and_the_client(
    make_task: Make, make_config: Make
) -> None:
    strength = 2.0
    ditto = Ditto(2, DittoPersonalization(kind="ditto", strength=strength, steps=3, learning_rate=0.1))
    given, made = tools(make_config())
    ditto.bind(given)
    versions, states = run(make_task, make_config(), [ditto], 120, steps=2)
    plain, _ = run(make_task, make_config(), [], 120, steps=2)
    assert np.array_equal(versions, plain)
    assert {(task.n_steps, task.learning_rate) for task in made[0].given} == {(3, 0.1)}
    for k in (0, 1):  # grad F_k(v) + lambda (v - w) = 0
        assert kept(states, k) == pytest.approx((A[k] * B[k] + strength * versions[-1]) / (A[k] + strength), abs=1e-4)


def test_ditto_without_a_pull_is_training_alone(make_task: Make, make_config: Make) -> None:
    ditto = Ditto(2, DittoPersonalization(kind="ditto", strength=0.0))
    ditto.bind(tools(make_config())[0])
    _, states = run(make_task, make_config(), [ditto], 5)
    _, alone = run(make_task, make_config(), [LocalParts([slice(0, 2)], "delta")], 5)
    for k in (0, 1):
        assert kept(states, k) == pytest.approx(B[k] * (1 - (1 - LR * A[k]) ** 5), rel=1e-6)
        assert kept(states, k) == pytest.approx(kept(alone, k), rel=1e-6)


def test_what_stays_local_is_trained_and_never_sent(make_task: Make, make_config: Make) -> None:
    versions, states = run(make_task, make_config(), [LocalParts([slice(1, 2)], "delta")], 60)
    assert versions[1].tolist() == [2.5, 0.0]
    expected = (A * B[:, 0]).sum() / A.sum()
    assert versions[-1].tolist() == [pytest.approx(expected, abs=1e-5), 0.0]
    assert [kept(states, k) for k in (0, 1)] == [[pytest.approx(B[k, 1], abs=1e-5)] for k in (0, 1)]


@pytest.mark.parametrize("payload", ["delta", "model"])
def test_an_update_is_measured_without_what_stays_local(payload: Any, make_task: Make, make_config: Make) -> None:
    states = ClientStates(1)
    trainer = MethodTrainer(Quadratics(payload=payload), [LocalParts([slice(0, 1)], payload)], states, 2, payload)
    out_GP, version = np.empty((1, 2), np.float32), np.array([1.0, 1.0], np.float32)
    task = make_task(make_config(), 1, 10, task=0, n_steps=1, learning_rate=LR)
    (report,) = trainer.train([task], lambda _: version, out_GP, lambda: None)
    assert report.update_norm == 1.0  # (3 - 1)/2
    assert out_GP.tolist() == ([[0.0, 1.0]] if payload == "delta" else [[1.0, 2.0]])
    states.commit([0])
    assert kept(states, 1) == [4.5]


class Scores:
    """An evaluator whose loss is a model's first parameter."""

    def client_row(self, client: int, vector_P: Float32) -> EvaluationRow:
        return EvaluationRow(client, 1, float(vector_P[0]), {})

    def central_rows(self, vector_P: Float32) -> list[EvaluationRow]:
        return [EvaluationRow(-1, 1, float(vector_P[0]), {})]


def test_fine_tuning_takes_its_steps_from_the_version(make_config: Make) -> None:
    tuning = FineTuning(FineTunePersonalization(kind="fine-tune", steps=2, learning_rate=LR))
    given, made = tools(make_config())
    tuning.bind(given)
    inner: Any = Scores()
    evaluator = PersonalEvaluator(inner, [tuning], ClientStates(0), 2, [0, 1, 2], has_central=True)
    rows = evaluator.evaluate(np.array([0.5, 0.0], np.float32), number=7)
    tuned = [B[k, 0] + (0.5 - B[k, 0]) * (1 - LR * A[k]) ** 2 for k in (0, 1)]
    expected = [(0, 0.5, False), (1, 0.5, False), (2, 0.5, False), (-1, 0.5, False)]
    expected += [(0, tuned[0], True), (1, tuned[1], True), (2, 0.5, True)]  # client 2 has no samples to tune on
    assert [(row.client, row.loss, row.is_personal) for row in rows] == expected
    assert {task.task for task in made[0].given} == {TUNING + 7}  # a stream of batches that no task has


def test_a_second_model_is_scored_beside_the_version(make_task: Make, make_config: Make) -> None:
    ditto = Ditto(2, DittoPersonalization(kind="ditto"))
    ditto.bind(tools(make_config())[0])
    versions, states = run(make_task, make_config(), [ditto], 1)
    inner: Any = Scores()
    evaluator = PersonalEvaluator(inner, [ditto], states, 2, [0, 1, 2])
    rows = evaluator.evaluate(versions[1].astype(np.float32), number=1)
    assert [(row.loss, row.is_personal) for row in rows[3:]] == [(1.0, True), (4.0, True), (2.5, True)]


# ------------------------------------------------------------------------------------------------ ASO-Fed


def aso(beta: float, is_dynamic: bool = False) -> BalancedGradients:
    return BalancedGradients(2, 2, AsoFedObjective(kind="aso-fed", beta=beta, dynamic_step=is_dynamic), "delta")


def test_aso_fed_balances_gradients_by_hand(make_task: Make, make_config: Make) -> None:
    beta, states = 0.25, ClientStates(6)
    trainer: Any = MethodTrainer(Quadratics(), [aso(beta)], states, 2)
    w, g_prev, h, config = np.zeros(2), np.zeros(2), np.zeros(2), make_config()
    for number in range(4):
        # two steps with gradients g - g_prev + h; their mean gradient is the next g_prev
        at, gradients = w.copy(), []
        for _ in range(2):
            gradients.append(A[1] * (at - B[1]))
            at -= LR * (gradients[-1] - g_prev + h)
        task = make_task(config, 1, 10, task=number, n_steps=2, learning_rate=LR)
        base, out_GP = w.astype(np.float32), np.empty((1, 2), np.float32)
        trainer.train([task], lambda _, base=base: base, out_GP, lambda: None)
        assert out_GP[0] == pytest.approx(at - w, rel=1e-5, abs=1e-6)
        h, g_prev, w = beta * h + (1 - beta) * g_prev, np.mean(gradients, axis=0), at
        states.commit([number])
        assert kept(states, 1)[:4] == pytest.approx([*g_prev, *h], rel=1e-4, abs=1e-5)


def test_aso_fed_takes_longer_steps_after_long_delays(make_task: Make, make_config: Make) -> None:
    states, inner = ClientStates(6), Quadratics()
    trainer: Any = MethodTrainer(inner, [aso(0.001, is_dynamic=True)], states, 2)
    for number, delay_s in enumerate((40.0, 2.0, 6.0)):
        task = make_task(make_config(), 0, 10, task=number, n_steps=1, learning_rate=LR)
        task = task._replace(dispatch_s=100.0, arrival_s=100.0 + delay_s)
        trainer.train([task], lambda _: np.zeros(2, np.float32), np.empty((1, 2), np.float32), lambda: None)
        states.commit([number])
    rates = [task.learning_rate / LR for task in inner.given]
    assert rates == pytest.approx([1.0, math.log(40.0), math.log(21.0)], rel=1e-6)
    assert kept(states, 0)[4:] == [3.0, 48.0]


def test_aso_fed_rests_where_plain_clients_do(make_task: Make, make_config: Make) -> None:
    """With beta 0, h is the gradient before the last: at rest g_prev = h, and nothing is added."""
    versions, _ = run(make_task, make_config(), [aso(0.0)], 400)
    assert versions[-1] == pytest.approx((A[:, None] * B).sum(axis=0) / A.sum(), abs=1e-3)


@pytest.mark.parametrize("payload", ["delta", "model"])
@pytest.mark.parametrize("kind", ["fedbn", "local"])
def test_aso_fed_rests_where_parts_stay_with_clients(
    kind: str, payload: Literal["delta", "model"], make_task: Make, make_config: Make
) -> None:
    """What stays comes to the client's own optimum, the rest to that of the mean, whatever the rule takes."""
    personal = {"kind": kind, **({"layers": ["own"]} if kind == "fedbn" else {})}
    objective = {"kind": "aso-fed", "beta": 0.0, "dynamic_step": False}
    config = make_config(training={"objective": objective}, personalization=personal)
    layout = Layout(("own.weight", "shared.weight"), ((1,), (1,)), (0, 1), 2)
    methods = methods_of(config, layout, payload)
    states = ClientStates(sum(method.n_values for method in methods))
    trainer: Any = MethodTrainer(Quadratics(payload=payload), methods, states, 2, payload)
    version = np.zeros(2, np.float32)
    for number in range(200):
        tasks = [make_task(config, k, 1, task=2 * number + k, n_steps=1, learning_rate=LR) for k in (0, 1)]
        out_GP = np.empty((2, 2), np.float32)
        trainer.train(tasks, lambda _, base=version: base, out_GP, lambda: None)
        version = out_GP.mean(axis=0) + (version if payload == "delta" else 0.0)
        states.commit([task.task for task in tasks])
    received = [Received(make_task(config, k, 1), version, np.empty((0, 2)), states.committed(k)) for k in (0, 1)]
    models = [trainer._start(one, np.zeros(2, np.float32)) for one in received]
    shared = [(A * B[:, 1]).sum() / A.sum()] * 2 if kind == "fedbn" else B[:, 1].tolist()
    assert [float(model_P[0]) for model_P in models] == pytest.approx(B[:, 0].tolist(), abs=1e-3)
    assert [float(model_P[1]) for model_P in models] == pytest.approx(shared, abs=1e-3)


def test_aso_feds_state_lies_where_checkpoints_have_it(make_config: Make) -> None:
    """Last, but where parameters stay with the clients."""
    training = {"objective": {"kind": "aso-fed"}}
    layout = Layout(("own.weight", "own.mean"), ((1,), (1,)), (0, 1), 2, n_buffers=1)
    model = {"kind": "mlp", "hidden": [2], "norm": "batch", "buffers": "local"}
    for sections, place in (
        ({"personalization": {"kind": "ditto"}}, 1),
        ({"model": model}, 1),
        ({"personalization": {"kind": "local"}}, 0),
    ):
        methods = methods_of(make_config(training=training, **sections), layout)
        assert len(methods) == 2 and isinstance(methods[place], BalancedGradients)
