"""A rule, an objective, a selection and a data set of one's own: docs/own-code.md explains them."""

import numpy as np


def half_median(weights, updates, step=0.5):
    """A rule: goes a step towards the median of the clients' changes, and forgets who is too stale."""
    fresh = [u.delta for u in updates if u.staleness <= 10]
    return weights + step * np.median(fresh, axis=0) if fresh else weights


def momentum(weights, updates, state, beta=0.9):
    """A rule with a state: what it puts there is in checkpoints, and comes back at the next version."""
    mean = np.mean([u.delta for u in updates], axis=0, dtype=np.float64)
    state["velocity"] = beta * state.get("velocity", 0.0) + (1.0 - beta) * mean
    return weights + state["velocity"]


def ridge(step, mu=0.01):
    """An objective: the task's loss, and mu/2 times the squared way from the version that the client began with."""
    way = sum(((w - base) ** 2).sum() for w, base in zip(step.parameters, step.base, strict=True))
    return step.loss + mu / 2 * way


def unseen_then_lossy(clients, seen, now, explore=0.2):
    """A selection: first who never reported, then the greatest loss, or anybody in a fifth of the draws."""
    unseen = [c for c in clients if c not in seen]
    if unseen or now.u < explore:
        pool = unseen or clients
        return pool[int(now.u / explore % 1.0 * len(pool))]
    return max(clients, key=lambda c: seen[c].loss_before)


def two_moons(seed, clients=8, samples=60):
    """A data set: two half circles, turned a little further for each client, with tests of each one's own."""

    def shard(rng, turn):
        y = rng.integers(0, 2, samples)
        angle = rng.uniform(0.0, np.pi, samples) + np.pi * y
        x = np.stack([np.cos(angle) + y - 0.5, np.sin(angle) + 0.3 * y], 1) + rng.normal(0.0, 0.1, (samples, 2))
        return x @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]), y

    rngs = [np.random.default_rng([seed, client]) for client in range(clients)]
    pairs = [(shard(rng, client / clients), shard(rng, client / clients)) for client, rng in enumerate(rngs)]
    return {"train": [train for train, _ in pairs], "test": [test for _, test in pairs], "n_classes": 2}
