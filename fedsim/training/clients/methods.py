"""The methods: what each does before and after a client's local training, and the state that it keeps.

Shapes: `P` parameters, `S` values of a client's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from fedsim.config import (
    AflCsObjective,
    AsoFedObjective,
    CyclicRule,
    FedDynRule,
    RunConfig,
    ScaffoldRule,
)
from fedsim.layout import Layout
from fedsim.training import Payload, Trainer
from fedsim.types import Float32, Task

if TYPE_CHECKING:
    from fedsim.population.population import Population


class Received(NamedTuple):
    """What a client has when its task starts: the version's weights (P,), what was sent with them (E, P), its state.

    `state_S` is None before the client's first task; all of them are only read.
    """

    task: Task
    weights_P: Float32
    extras_EP: Float32
    state_S: Float32 | None


@dataclass(frozen=True)
class Tools:
    """What a method gets at a worker, if it trains by itself.

    `make_trainer(config, has_linear=...)` is a trainer of another configuration, which gives local models.
    """

    config: RunConfig
    population: Population
    make_trainer: Callable[..., Trainer]


class Method(Protocol):
    """One thing that clients do; several follow each other. `n_values` is the length of its state, 0 for none.

    `has_linear`: it adds a slope to each gradient. `is_personal`: a client's own model differs from the version, and is
    scored in its place. `has_second`: the client has a second model besides. `n_withheld` counts the values of an
    update that are not sent, since they stay with the client.
    """

    n_values: int
    has_linear: bool
    is_personal: bool
    has_second: bool
    n_withheld: int

    def bind(self, tools: Tools) -> None:
        """Called once at each worker, before anything else."""

    def rate(self, received: Received) -> float:
        """What the task's learning rate is multiplied by."""

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        """Where local training starts, (P,), and the slope that is added to its gradients, (P,) or None.

        `start_P` is what the methods before this one made of the version; it is not changed in place.
        """

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        """The state that the task leads to, a new vector (S,); may change the update `out_P` in place."""

    def finish_group(
        self,
        received: Sequence[Received],
        starts: Sequence[Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[Float32 | None]:
        """`finish` of each task of a group, for those that train by themselves."""

    def second(self, received: Sequence[Received], models: Sequence[Float32]) -> list[Float32]:
        """The second models of some clients, where `models` are those that they would use of the version, each (P,)."""

    def personal(self, received: Received, model_P: Float32) -> Float32:
        """The client's own model, (P,), where `received` holds the version that is scored; a new vector if changed."""


class BaseMethod:
    """A method that keeps nothing and changes nothing."""

    n_values = 0
    has_linear = False
    is_personal = False
    has_second = False
    n_withheld = 0

    def bind(self, tools: Tools) -> None:
        pass

    def rate(self, received: Received) -> float:
        return 1.0

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P, None

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        return None

    def finish_group(
        self,
        received: Sequence[Received],
        starts: Sequence[Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[Float32 | None]:
        return [self.finish(*one) for one in zip(received, starts, out_GP, strict=True)]

    def second(self, received: Sequence[Received], models: Sequence[Float32]) -> list[Float32]:
        return list(models)

    def personal(self, received: Received, model_P: Float32) -> Float32:
        return model_P


class ControlVariates(BaseMethod):
    """SCAFFOLD's client: gradients g - c_k + c, and c_k <- c_k - c - D_k / (K lr) afterwards.

    Reference: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020,
    algorithm 1, lines 10 to 13, option II. c comes with the version; D_k = y_k - x, so (x - y_k) / (K lr) is
    -D_k / (K lr). The server needs no second payload: it knows K, lr, D_k and the c that it sent.
    """

    has_linear = True

    def __init__(self, n_parameters: int) -> None:
        self.n_values = n_parameters

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        control_P = received.extras_EP[0]
        own_P = received.state_S
        return start_P, control_P.copy() if own_P is None else control_P - own_P

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        task = received.task
        change_P: Float32 = out_P / np.float32(-task.n_steps * task.learning_rate) - received.extras_EP[0]
        return change_P if received.state_S is None else received.state_S + change_P


class DualVariables(BaseMethod):
    """FedDyn's client: the loss less <g_k, w>, plus alpha/2 ||w - w_t||^2; g_k <- g_k - alpha D_k afterwards.

    Reference: Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, algorithm 1: g_k is their
    gradient of L_k at the client's last model. The quadratic term is the objective's (`local_training`).
    """

    has_linear = True

    def __init__(self, n_parameters: int, alpha: float) -> None:
        self.n_values = n_parameters
        self._alpha = np.float32(alpha)

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P, None if received.state_S is None else -received.state_S

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        change_P: Float32 = out_P * -self._alpha
        return change_P if received.state_S is None else received.state_S + change_P


class OwnModel(BaseMethod):
    """Each client goes on with the model that its last task came to, whatever the version; needs local models."""

    def __init__(self, n_parameters: int) -> None:
        self.n_values = n_parameters

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P if received.state_S is None else received.state_S, None

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        return out_P.copy()


class WayOfTheModel(BaseMethod):
    """AFL-CS' client keeps the version that it had last: the way since then is what its objective compares with.

    Reference: Yan et al., "AFL-CS", ICPADS 2023; `objectives.AflCs` has the formula, and takes the way where others
    have a slope. In a client's first task there is none: zeros, which the objective skips.
    """

    has_linear = True

    def __init__(self, n_parameters: int) -> None:
        self.n_values = n_parameters

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P, None if received.state_S is None else received.weights_P - received.state_S

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        return received.weights_P.copy()


class BalancedGradients(BaseMethod):
    """ASO-Fed's client: gradients g - g_prev + h, and h <- beta h + (1 - beta) g_prev, g_prev <- g afterwards.

    g is the gradient of the loss plus (mu/2) ||w - w_t||^2 (`local_training`), here the mean over the steps of a task;
    g_prev that of the client's former task; both g_prev and h are zero at first. The mean gradient follows from the
    update: -D_k / (K r lr) less the slope that was added. The learning rate is multiplied by r = max(1, log(mean of the
    client's delays)), in seconds, over its former tasks.
    Reference: Chen et al., "Asynchronous online federated learning for edge devices with non-IID data", IEEE BigData
    2020 (arXiv:1911.02134), algorithm 2. Reconstructed: neither the paper's text nor its authors' code was at hand. One
    port goes by the algorithm's line numbers (AFL-Lib) and agrees with this: one gradient a task, g - g_prev + h with
    the old h, which is then updated from g_prev, not from g. Two others contradict it and each other: by epoch and with
    g in h (FedOpt), by step and with the new h (a Keras optimiser). r has base ten and a delay in versions in one of
    them (FedOpt), and is left out by the others.
    Not confirmed by any: the defaults mu = 1 and beta = .001 (AFL-Lib has .01 and .5), the natural logarithm, seconds.
    """

    has_linear = True

    def __init__(self, n_parameters: int, n_trained: int, objective: AsoFedObjective, payload: Payload) -> None:
        self.n_values = 2 * n_parameters + 2  # g_prev, h, and the number and the sum of the delays
        self._n_parameters = n_parameters
        self._n_trained = n_trained
        self._beta = np.float32(objective.beta)
        self._is_dynamic = objective.dynamic_step
        self._is_delta = payload == "delta"

    def rate(self, received: Received) -> float:
        if received.state_S is None or not self._is_dynamic:
            return 1.0
        n, total_s = received.state_S[-2:].tolist()
        return max(1.0, math.log(total_s / n)) if total_s > 0.0 else 1.0

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P, None if received.state_S is None else self._slope(received.state_S)

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        task, former_S, n = received.task, received.state_S, self._n_parameters
        change_P = out_P if self._is_delta else out_P - start_P
        scale = -task.n_steps * task.learning_rate * self.rate(received)
        new_S = np.zeros(self.n_values, np.float32)
        new_S[:n] = change_P / np.float32(scale)
        if former_S is not None:
            new_S[:n] -= self._slope(former_S)
            new_S[n : 2 * n] = self._beta * former_S[n : 2 * n] + (np.float32(1.0) - self._beta) * former_S[:n]
            new_S[-2:] = former_S[-2:]
        new_S[self._n_trained : n] = 0.0  # buffers have no gradient
        delay_s = task.arrival_s - task.dispatch_s
        new_S[-2:] += (1.0, delay_s if self._is_dynamic else 0.0)
        return new_S

    def _slope(self, state_S: Float32) -> Float32:
        """h - g_prev, (P,)."""
        n = self._n_parameters
        slope_P: Float32 = state_S[n : 2 * n] - state_S[:n]
        return slope_P


def methods_of(config: RunConfig, layout: Layout, payload: Payload = "delta") -> tuple[Method, ...]:
    """The methods of a configuration, in the order in which they act; `payload` is what its rule takes.

    Raises ConfigError for layers that the model does not have.
    """
    from fedsim.training.clients.personal import local_tensors, personal_methods

    methods = personal_methods(config, layout, payload)  # what stays here is taken out of updates before they are read
    match config.aggregation:
        case ScaffoldRule():
            methods.append(ControlVariates(layout.n_parameters))
        case FedDynRule(alpha=alpha):
            methods.append(DualVariables(layout.n_parameters, alpha))
        case CyclicRule(released=True):
            methods.append(OwnModel(layout.n_parameters))
    objective = config.training.objective
    if isinstance(objective, AflCsObjective) and objective.penalty == "directions":
        methods.append(WayOfTheModel(layout.n_parameters))
    if isinstance(objective, AsoFedObjective):
        balanced = BalancedGradients(layout.n_parameters, layout.n_trained, objective, payload)
        # It reads gradients off what was trained, so it goes first where parameters are taken out. Elsewhere it stays
        # behind, since a client's state lies in the order of its methods, and checkpoints hold it so.
        has_local = not set(local_tensors(config, layout)) <= set(layout.buffers)
        methods.insert(0 if has_local else len(methods), balanced)
    return tuple(methods)


def n_state_values(methods: Sequence[Method]) -> int:
    """Values that a client keeps: S."""
    return sum(method.n_values for method in methods)
