"""How long and how fast a client trains: decided at dispatch, so the scheduler reads it; free of torch."""

from __future__ import annotations

from fedsim.config import TrainingConfig


def batches_per_pass(training: TrainingConfig, n_samples: int) -> int:
    """How many batches one pass over `n_samples` takes; the last may be short.

    >>> from fedsim.config import SgdOptimizer
    >>> sgd = SgdOptimizer(kind="sgd", learning_rate=0.1)
    >>> batches_per_pass(TrainingConfig(optimizer=sgd, batch_size=4, steps=100), 199)
    50
    """
    assert n_samples > 0
    return -(-n_samples // training.batch_size)


def plan_steps(training: TrainingConfig, n_samples: int) -> int:
    """How many local steps a task of a client with `n_samples` (above 0) takes."""
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None  # the configuration has exactly one of the two
    return training.epochs * batches_per_pass(training, n_samples)


def learning_rate(training: TrainingConfig, base_version: int) -> float:
    """The clients' learning rate in a task that starts from `base_version`."""
    rate = training.optimizer.learning_rate
    if training.decay is None:
        return rate
    return float(rate * training.decay.factor ** (base_version // training.decay.every_versions))


def samples_processed(training: TrainingConfig, n_samples: int, n_steps: int | None = None) -> int:
    """How many samples the batches of a task hold together, from the start of a pass; `n_steps` if not as planned."""
    steps = plan_steps(training, n_samples) if n_steps is None else n_steps
    passes, rest = divmod(steps, batches_per_pass(training, n_samples))
    return passes * n_samples + min(rest * training.batch_size, n_samples)
