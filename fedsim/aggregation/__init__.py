"""How updates become versions: one rule, one file, each citing its paper."""

from __future__ import annotations

from fedsim.aggregation.accumulate import Diagnostics, ServerState, published
from fedsim.aggregation.fedasync import FedAsync
from fedsim.aggregation.fedavg import FedAvg
from fedsim.aggregation.fedbuff import FedBuff
from fedsim.aggregation.kasync import KAsync
from fedsim.aggregation.rule import ALONE, Arrival, Facts, Keeps, Rule
from fedsim.config import AggregationConfig, FedAsyncRule, FedAvgRule, FedBuffRule, KAsyncRule

__all__ = ["Arrival", "Diagnostics", "Facts", "Keeps", "Rule", "ServerState", "build", "published"]


def build(config: AggregationConfig, facts: Facts = ALONE) -> Rule:
    """The rule of a configuration, in the federation of `facts`. It holds no state but scratch memory: 256 KiB."""
    match config:
        case FedAvgRule():
            return FedAvg(config)
        case FedAsyncRule():
            return FedAsync(config)
        case FedBuffRule():
            return FedBuff(config)
        case KAsyncRule():
            return KAsync(config)
