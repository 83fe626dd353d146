"""How updates become versions: one rule, one file, each citing its paper."""

from __future__ import annotations

from fedsim.aggregation.accumulate import Diagnostics, ServerState, published
from fedsim.aggregation.fedasync import FedAsync
from fedsim.aggregation.fedavg import FedAvg
from fedsim.aggregation.fedbuff import FedBuff
from fedsim.aggregation.kasync import KAsync
from fedsim.aggregation.rule import Rule
from fedsim.config import AggregationConfig, FedAsyncRule, FedAvgRule, FedBuffRule, KAsyncRule

__all__ = ["Diagnostics", "Rule", "ServerState", "build", "published"]


def build(config: AggregationConfig) -> Rule:
    """The rule of a configuration. It holds no state but scratch memory: 256 KiB."""
    match config:
        case FedAvgRule():
            return FedAvg(config)
        case FedAsyncRule():
            return FedAsync(config)
        case FedBuffRule():
            return FedBuff(config)
        case KAsyncRule():
            return KAsync(config)
