"""The trainer and the evaluator of a worker, with the methods of its clients around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedsim import training
from fedsim.config import RunConfig
from fedsim.training import Payload, Trainer
from fedsim.training.clients.evaluator import PersonalEvaluator, WeightsEvaluator
from fedsim.training.clients.methods import Method, Tools
from fedsim.training.clients.states import ClientStates
from fedsim.training.clients.trainer import MethodTrainer
from fedsim.training.evaluate import Evaluator
from fedsim.training.local import local_training
from fedsim.userfiles import UserFunction

if TYPE_CHECKING:
    import torch

    from fedsim.population.population import Population
    from fedsim.training.shards import ShardCache


def build_trainer(
    config: RunConfig,
    population: Population,
    module: torch.nn.Module,
    *,
    methods: Sequence[Method],
    states: ClientStates | None,
    n_parameters: int,
    payload: Payload,
    device: torch.device,
    worker: int,
    clock: Callable[[], float],
    shards: ShardCache,
    own: UserFunction | None = None,
) -> Trainer:
    """The trainer of a worker: the path's own where clients do nothing besides, else with their methods around it.

    The methods get what they need to train by themselves.
    """
    make = partial(
        training.build, population=population, module=module, device=device, clock=clock, shards=shards, own=own
    )
    has_linear = any(method.has_linear for method in methods)
    local = config.model_copy(update={"training": local_training(config)})
    trainer = make(local, payload=payload, worker=worker, has_linear=has_linear)
    if not methods:
        return trainer
    for method in methods:
        method.bind(Tools(config, population, partial(make, payload="model", worker=worker)))
    assert states is not None
    return MethodTrainer(trainer, methods, states, n_parameters, payload)


def build_evaluator(
    evaluator: Evaluator,
    methods: Sequence[Method],
    states: ClientStates | None,
    n_parameters: int,
    clients: Sequence[int],
    is_first: bool = True,
) -> Evaluator | WeightsEvaluator | PersonalEvaluator:
    """What scores versions at a worker; `clients` are those with a test set of their own that live there.

    The first worker scores the version on the central test set, too, where that is a model that somebody uses.
    """
    if any(method.is_personal or method.has_second for method in methods):
        assert states is not None
        has_central = is_first and not any(method.is_personal for method in methods)
        return PersonalEvaluator(evaluator, methods, states, n_parameters, clients, has_central)
    return WeightsEvaluator(evaluator, n_parameters) if methods else evaluator
