"""The methods: what each does before and after a client's local training, and the state that it keeps.

Shapes: `P` parameters, `S` values of a client's state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from fedsim.config import AflCsObjective, CyclicRule, FedDynRule, RunConfig, ScaffoldRule
from fedsim.layout import Layout
from fedsim.training import Trainer
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

    `has_linear`: it adds a slope to each gradient. `is_personal`: a client's own model differs from the version.
    """

    n_values: int
    has_linear: bool
    is_personal: bool

    def bind(self, tools: Tools) -> None:
        """Called once at each worker, before anything else."""

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        """Where local training starts, (P,), and the slope that is added to its gradients, (P,) or None.

        `start_P` is what the methods before this one made of the version; it is not changed in place.
        """

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        """The state that the task leads to, a new vector (S,); may change the update `out_P` in place."""

    def personal(self, received: Received, model_P: Float32) -> Float32:
        """The client's own model, (P,), where `received` holds the version that is scored; a new vector if changed."""


class BaseMethod:
    """A method that keeps nothing and changes nothing."""

    n_values = 0
    has_linear = False
    is_personal = False

    def bind(self, tools: Tools) -> None:
        pass

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return start_P, None

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        return None

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


def methods_of(config: RunConfig, layout: Layout) -> tuple[Method, ...]:
    """The methods of a configuration, in the order in which they act."""
    methods: list[Method] = []
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
    return tuple(methods)


def n_state_values(methods: Sequence[Method]) -> int:
    """Values that a client keeps: S."""
    return sum(method.n_values for method in methods)
