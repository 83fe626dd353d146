"""What a client's training is refused for."""

from __future__ import annotations

import math

from fedsim.errors import ClientError
from fedsim.types import Task


def require_finite(task: Task, value: float, what: str, step: int) -> None:
    """Raises ClientError, naming client, task, version and step, for a value that is NaN or infinite."""
    if not math.isfinite(value):
        raise ClientError(
            f"client {task.client}, task {task.task}, version {task.base_version}, step {step} of {task.n_steps}: "
            f"{what} is {value}; a lower training.optimizer.learning_rate or training.clip_norm may help"
        )
