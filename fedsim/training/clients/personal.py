"""Models of the clients' own: parts that stay with them, and second models beside the version.

Shapes: `G` tasks in a group, `P` parameters, `S` values of a client's state.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedsim.config import (
    DittoPersonalization,
    FedBnPersonalization,
    FineTunePersonalization,
    LocalPersonalization,
    PlainObjective,
    ProximalObjective,
    RecordConfig,
    RunConfig,
)
from fedsim.errors import ConfigError
from fedsim.layout import Layout
from fedsim.training import Payload, Trainer
from fedsim.training.clients.methods import BaseMethod, Method, Received, Tools
from fedsim.types import Float32, Task

TUNING = 1 << 41  # numbers of tasks from here on are those of fine-tuning, by version: no other task has them


def _nothing() -> None:
    pass


class LocalParts(BaseMethod):
    """Some of the values stay with the client: training starts from its own, and the server never sees them change.

    FedBN keeps normalisation layers (Li et al., "FedBN: federated learning on non-IID features via local batch
    normalization", ICLR 2021), SiloBN their statistics alone (Andreux et al. 2020), FedPer the last layers (Arivazhagan
    et al. 2019), and the local-only baseline everything. Before its first task a client has the version's.
    """

    is_personal = True

    def __init__(self, parts: Sequence[slice], payload: Payload) -> None:
        self._parts = parts
        self._is_delta = payload == "delta"
        self.n_values = self.n_withheld = sum(part.stop - part.start for part in parts)

    def start(self, received: Received, start_P: Float32) -> tuple[Float32, Float32 | None]:
        return self._with_own(received.state_S, start_P), None

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        kept = []
        for part in self._parts:
            kept.append(start_P[part] + out_P[part] if self._is_delta else out_P[part].copy())
            out_P[part] = 0.0 if self._is_delta else received.weights_P[part]
        return np.concatenate(kept)

    def personal(self, received: Received, model_P: Float32) -> Float32:
        return self._with_own(received.state_S, model_P)

    def _with_own(self, state_S: Float32 | None, vector_P: Float32) -> Float32:
        if state_S is None:
            return vector_P
        own_P, start = vector_P.copy(), 0
        for part in self._parts:
            stop = start + part.stop - part.start
            own_P[part] = state_S[start:stop]
            start = stop
        return own_P


class _SecondModel(BaseMethod):
    """Trains further models by local training of its own."""

    has_second = True
    _trainer: Trainer

    def _train(
        self,
        tasks: Sequence[Task],
        starts: Sequence[Float32],
        linear_GP: Float32 | None,
        progress: Callable[[], None],
    ) -> list[Float32]:
        """Where the tasks come to from these starts, with these slopes; in groups of the trainer's size."""
        found: list[Float32] = []
        size = self._trainer.group_size
        for first in range(0, len(tasks), size):
            some = [task._replace(base_version=i) for i, task in enumerate(tasks[first : first + size])]
            models_GP = np.empty((len(some), starts[0].size), np.float32)
            slopes_GP = None if linear_GP is None else linear_GP[first : first + size]
            bases = starts[first : first + size]
            self._trainer.train(some, bases.__getitem__, models_GP, progress, slopes_GP)
            found += list(models_GP)
        return found


class FineTuning(_SecondModel):
    """From each version that is tested every client takes some steps on its samples, and is scored; nothing is kept.

    Reference: Yu, Bagdasaryan and Shmatikov, "Salvaging federated learning by local adaptation", 2020
    (arXiv:2002.04758), fine-tuning. The batches follow from seed, client and version.
    """

    def __init__(self, config: FineTunePersonalization) -> None:
        self._config = config

    def bind(self, tools: Tools) -> None:
        self._rate = self._config.learning_rate or tools.config.training.optimizer.learning_rate
        self._n_samples = tools.population.n_samples
        self._trainer = tools.make_trainer(_silent(tools.config, PlainObjective(kind="plain")), has_linear=False)

    def second(self, received: Sequence[Received], models: Sequence[Float32]) -> list[Float32]:
        clients = np.array([one.task.client for one in received], dtype=np.int64)
        sizes = self._n_samples(clients).tolist()
        tasks = [
            one.task._replace(
                task=TUNING + one.task.base_version,
                n_samples=size,
                n_steps=self._config.steps,
                learning_rate=self._rate,
            )
            for one, size in zip(received, sizes, strict=True)
        ]
        with_data = [i for i, size in enumerate(sizes) if size]
        tuned = list(models)
        for i, model_P in zip(
            with_data,
            self._train([tasks[i] for i in with_data], [models[i] for i in with_data], None, _nothing),
            strict=True,
        ):
            tuned[i] = model_P
        return tuned


class Ditto(_SecondModel):
    """A second model v_k for each client: v <- v - eta (grad F_k(v) + lambda (v - w_t)), w_t the version received.

    Reference: Li, Hu, Beirami and Smith, "Ditto: fair and robust federated learning through personalization", ICML
    2021 (arXiv:2012.04221), algorithm 1; lambda is `strength`. The pull is the quadratic term about where v_k begins,
    and the slope lambda (v_begin - w_t), so that it is computed as any other local training.
    Deviations: v_k begins as the first version that the client received, which is the paper's w_0 only for those of
    the first round. The same batches as the task's, as far as its steps go.
    """

    def __init__(self, n_parameters: int, config: DittoPersonalization) -> None:
        self.n_values = n_parameters
        self._config = config

    def bind(self, tools: Tools) -> None:
        objective = ProximalObjective(kind="proximal", mu=self._config.strength)
        self._trainer = tools.make_trainer(_silent(tools.config, objective), has_linear=True)

    def finish_group(
        self,
        received: Sequence[Received],
        starts: Sequence[Float32],
        out_GP: Float32,
        progress: Callable[[], None],
    ) -> list[Float32 | None]:
        begins = [
            start_P if one.state_S is None else one.state_S for one, start_P in zip(received, starts, strict=True)
        ]
        slopes_GP = np.stack(begins) - np.stack(starts)
        slopes_GP *= np.float32(self._config.strength)
        tasks = [
            one.task._replace(
                n_steps=self._config.steps or one.task.n_steps,
                learning_rate=self._config.learning_rate or one.task.learning_rate,
            )
            for one in received
        ]
        return list(self._train(tasks, begins, slopes_GP, progress))

    def second(self, received: Sequence[Received], models: Sequence[Float32]) -> list[Float32]:
        return [m if one.state_S is None else one.state_S for one, m in zip(received, models, strict=True)]


def _silent(config: RunConfig, objective: PlainObjective | ProximalObjective) -> RunConfig:
    """The configuration with another objective, and without losses that nobody reads."""
    training = config.training.model_copy(update={"objective": objective})
    return config.model_copy(update={"training": training, "record": RecordConfig(losses="none")})


def nothing_due(client: int, version: int) -> Task:
    """The task of a client that is only evaluated."""
    nan = math.nan
    return Task(0, client, version, 0, 0, 0, 0, nan, nan, nan, nan, nan, nan, False, False)


def personal_methods(config: RunConfig, layout: Layout, payload: Payload) -> list[Method]:
    """What `personalization` and `model.buffers` ask of the clients."""
    methods: list[Method] = []
    local = local_tensors(config, layout)
    if local:
        slices = layout.slices
        methods.append(LocalParts([slices[name] for name in local], payload))
    match config.personalization:
        case FineTunePersonalization():
            methods.append(FineTuning(config.personalization))
        case DittoPersonalization():
            methods.append(Ditto(layout.n_parameters, config.personalization))
    return methods


def local_tensors(config: RunConfig, layout: Layout) -> list[str]:
    """The names of the tensors that stay with the clients, in the layout's order.

    Raises ConfigError for layers that the model does not have.
    """
    personal = config.personalization
    if isinstance(personal, LocalPersonalization):
        return list(layout.names)
    local = set(layout.buffers) if getattr(config.model, "buffers", "refuse") == "local" else set()
    if isinstance(personal, FedBnPersonalization):
        patterns = personal.layers or layout.norm_layers
        if not patterns:
            raise ConfigError(
                "personalization fedbn keeps normalisation layers with their clients, and this model has none: set "
                "model.norm, or name the layers to keep in personalization.layers"
            )
        for pattern in patterns:
            found = {name for name in layout.names if fnmatch.fnmatchcase(name.rpartition(".")[0], pattern)}
            if not found:
                layers = dict.fromkeys(name.rpartition(".")[0] for name in layout.names)
                raise ConfigError(
                    f"personalization.layers: '{pattern:.80}' matches no layer; allowed: {', '.join(layers)}"
                )
            local |= found
        if len(local) == len(layout.names):
            raise ConfigError("personalization.layers: all layers stay with the clients; use kind: local")
    return [name for name in layout.names if name in local]
