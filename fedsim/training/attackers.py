"""Clients that send something else than what they trained. Shapes: `G` tasks in a group, `P` parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedsim.config import GaussianAttack, RunConfig, ScaledAttack, SignFlip
from fedsim.seeding import Purpose, generator
from fedsim.training import Payload, Trainer
from fedsim.training.finite import require_finite
from fedsim.types import Float32, Int64, Task, TaskReport

Attack = SignFlip | GaussianAttack | ScaledAttack


def tampered(update_P: Float32, attack: Attack, seed: int, task: Task) -> Float32:
    """What an attacker sends in place of its update, float32 (P,): a function of these values alone.

    sign-flip: -scale D. scaled: factor D. gaussian: std times a standard normal draw of the task's own.
    References: Li et al., "RSA: Byzantine-robust stochastic aggregation methods", AAAI 2019 (sign flipping);
    Bagdasaryan et al., "How to backdoor federated learning", AISTATS 2020 (scaling); Blanchard et al., "Machine
    learning with adversaries", NeurIPS 2017, section 6 (Gaussian, of standard deviation 200 there).
    Deviation: scaling alone, without a second task that it would serve.

    >>> from fedsim.types import Task
    >>> tampered(np.array([1.0, -2.0], np.float32), SignFlip(kind="sign-flip", scale=3.0, fraction=0.5), 0, None)
    array([-3.,  6.], dtype=float32)
    """
    match attack:
        case SignFlip():
            return update_P * np.float32(-attack.scale)
        case ScaledAttack():
            return update_P * np.float32(attack.factor)
        case GaussianAttack():
            draws = generator(seed, Purpose.ATTACK_NOISE, task.client, task.task)
            return draws.standard_normal(update_P.size, dtype=np.float32) * np.float32(attack.std)


class AttackingTrainer:
    """A `Trainer` around another one: what attackers trained is replaced by what they send.

    It comes last, so what a client keeps for itself (a control variate, say) follows from what it trained. The losses
    in its report are its own; the norm is that of what it sends.
    """

    def __init__(self, inner: Trainer, attack: Attack, attacking: Int64, seed: int, payload: Payload) -> None:
        self.path, self.group_size = inner.path, inner.group_size
        self._inner = inner
        self._attack = attack
        self._attacking = frozenset(attacking.tolist())
        self._seed = seed
        self._payload = payload

    def train(
        self,
        tasks: Sequence[Task],
        base_of: Callable[[int], Float32],
        out_GP: Float32,
        progress: Callable[[], None],
        linear_GP: Float32 | None = None,
    ) -> list[TaskReport]:
        """See `fedsim.training.Trainer.train`."""
        reports = self._inner.train(tasks, base_of, out_GP, progress, linear_GP)
        for i, task in enumerate(tasks):
            if task.client in self._attacking:
                norm = self._replace(task, base_of, out_GP[i])
                reports[i] = reports[i]._replace(update_norm=norm)
        return reports

    def _replace(self, task: Task, base_of: Callable[[int], Float32], out_P: Float32) -> float:
        """Puts what is sent into the row; the norm of the difference that it makes."""
        if self._payload == "delta":
            sent_P = tampered(out_P, self._attack, self._seed, task)
            out_P[:] = sent_P
        else:
            base_P = base_of(task.base_version)[: out_P.size]
            sent_P = tampered(out_P - base_P, self._attack, self._seed, task)
            np.add(base_P, sent_P, out=out_P)
        norm = math.sqrt(float(np.square(sent_P, dtype=np.float64).sum()))
        require_finite(task, norm, f"norm of what the attack {self._attack.kind} sends", task.n_steps)
        return norm


def with_attack(trainer: Trainer, config: RunConfig, attacking: Int64 | None, payload: Payload) -> Trainer:
    """The trainer of a worker among whose clients there may be attackers; the same one where nothing is replaced."""
    if attacking is None or not isinstance(config.attack, Attack):
        return trainer
    return AttackingTrainer(trainer, config.attack, attacking, config.seed, payload)
