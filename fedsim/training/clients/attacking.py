"""Clients that send something else than what they trained. Shape: `P` parameters."""

from __future__ import annotations

import math

import numpy as np

from fedsim.config import GaussianAttack, RunConfig, ScaledAttack, SignFlip
from fedsim.seeding import Purpose, generator
from fedsim.training import Payload
from fedsim.training.clients.methods import BaseMethod, Method, Received
from fedsim.training.finite import require_finite
from fedsim.types import Float32, Int64, Task

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


class Attacking(BaseMethod):
    """Replaces what attackers trained by what they send, after all other methods but the encoding.

    So what a client keeps for itself (a control variate, say) follows from what it trained, and what travels is encoded
    as everybody's. Losses and norm in an attacker's report are those of what it trained.
    """

    def __init__(self, attack: Attack, attacking: Int64, seed: int, payload: Payload) -> None:
        self._attack = attack
        self._attacking = frozenset(attacking.tolist())
        self._seed = seed
        self._payload = payload

    def finish(self, received: Received, start_P: Float32, out_P: Float32) -> Float32 | None:
        task = received.task
        if task.client not in self._attacking:
            return None
        update_P = out_P if self._payload == "delta" else out_P - received.weights_P
        with np.errstate(over="ignore"):
            sent_P = tampered(update_P, self._attack, self._seed, task)
            out_P[:] = sent_P if self._payload == "delta" else received.weights_P + sent_P
        norm = math.sqrt(float(np.square(out_P, dtype=np.float64).sum()))
        require_finite(task, norm, f"norm of what the attack {self._attack.kind} sends", task.n_steps)
        return None


def attack_of(config: RunConfig, attacking: Int64 | None, payload: Payload) -> tuple[Method, ...]:
    """What attackers do to their updates; nothing where they turn labels, or where there are none."""
    if attacking is None or not isinstance(config.attack, Attack):
        return ()
    return (Attacking(config.attack, attacking, config.seed, payload),)
