"""Sums that workers make themselves (`reduce.at: workers`): what rank zero checks of them, and what they mean.

Rank zero gets no update then: of each it knows the report, and of each version one sum a worker. Nothing is consumed
before all that goes into a version is summed and here, so there is no half-made version to keep, or to lose.
"""

from __future__ import annotations

from fedsim.aggregation import fixed
from fedsim.config import ReduceConfig, RunConfig
from fedsim.errors import ClientError, ConfigError
from fedsim.types import Float64, Int64, Task, TaskReport


class Summing:
    """The scale of a run's sums, and the bounds within which they are right."""

    def __init__(self, config: ReduceConfig) -> None:
        self._norm_bound = config.norm_bound
        self.scale = fixed.scale_of(config.norm_bound)

    @classmethod
    def of(cls, config: RunConfig) -> Summing | None:
        """What a configuration asks for; None where updates come to rank zero."""
        return None if config.reduce is None else cls(config.reduce)

    def check(self, task: Task, report: TaskReport) -> None:
        """Raises ClientError for an update that the sum has no room for."""
        if not report.update_norm <= self._norm_bound:
            raise ClientError(
                f"client {task.client}, task {task.task}, version {task.base_version}: the norm of the update is "
                f"{report.update_norm:.6g}, above reduce.norm_bound ({self._norm_bound:.6g}), so sums in 64 bits could "
                "overflow; allowed: a larger bound, or no reduce"
            )

    def real(self, total_P: Int64, weight_sum: float, version: int) -> Float64:
        """The weighted sum as float64 (P,). Raises ConfigError if its weights leave it no room."""
        if weight_sum > fixed.MOST_WEIGHT:
            raise ConfigError(
                f"reduce: the weights of version {version} sum to {weight_sum:.6g}, and sums in 64 bits overflow past "
                f"{fixed.MOST_WEIGHT:.0f}; allowed: smaller cohorts or buffers, weighting: uniform, or no reduce"
            )
        return fixed.real(total_P, self.scale)
