"""How updates become versions: one file a family of rules, each citing its papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fedsim import config as c
from fedsim.aggregation.accumulate import Diagnostics, ServerState, published
from fedsim.aggregation.aflcs import AflCs
from fedsim.aggregation.cached import Ace, AceDelayAware, Ca2Fl, Mifa
from fedsim.aggregation.compass import FedCompass
from fedsim.aggregation.compensated import DcAsgd
from fedsim.aggregation.cyclic import Cyclic
from fedsim.aggregation.distance import AsyncFedEd
from fedsim.aggregation.fadas import Fadas
from fedsim.aggregation.fedasync import FedAsync
from fedsim.aggregation.fedavg import FedAvg
from fedsim.aggregation.fedbuff import FedBuff
from fedsim.aggregation.feddyn import FedDyn
from fedsim.aggregation.fednova import FedNova
from fedsim.aggregation.fedopt import FedAvgM, FedOpt
from fedsim.aggregation.kasync import KAsync
from fedsim.aggregation.localmodels import AsoFed, FedAt, FedFa, Safa
from fedsim.aggregation.marked import Marked
from fedsim.aggregation.own import OwnRule
from fedsim.aggregation.pisces import Pisces
from fedsim.aggregation.qfedavg import QFedAvg
from fedsim.aggregation.robust import Krum, Median, NormBound, TrimmedMean
from fedsim.aggregation.rule import ALONE, Arrival, Facts, Keeps, Rule
from fedsim.aggregation.scaffold import Scaffold
from fedsim.aggregation.similarity import Kafl, Port, Wkafl

__all__ = ["Arrival", "Diagnostics", "Facts", "Keeps", "Marked", "Rule", "ServerState", "build", "published"]

# Each rule's configuration, and the rule: made of it alone, or of it and the federation's facts.
_PLAIN: dict[type, Callable[[Any], Rule]] = {
    c.FedAvgRule: FedAvg,
    c.FedAsyncRule: FedAsync,
    c.FedBuffRule: FedBuff,
    c.KAsyncRule: KAsync,
    c.PortRule: Port,
    c.KaflRule: Kafl,
    c.PiscesRule: Pisces,
    c.AsyncFedEdRule: AsyncFedEd,
    c.FedFaRule: FedFa,
    c.FadasRule: Fadas,
    c.DcAsgdRule: DcAsgd,
    c.FedAvgMRule: FedAvgM,
    c.FedAdamRule: FedOpt,
    c.FedYogiRule: FedOpt,
    c.FedAdagradRule: FedOpt,
    c.CyclicRule: Cyclic,
    c.MedianRule: Median,
    c.TrimmedMeanRule: TrimmedMean,
    c.NormBoundRule: NormBound,
    c.KrumRule: Krum,
    c.MultiKrumRule: Krum,
}
_KNOWING: dict[type, Callable[[Any, Facts], Rule]] = {
    c.WkaflRule: Wkafl,
    c.Ca2FlRule: Ca2Fl,
    c.AceRule: Ace,
    c.AceDelayAwareRule: AceDelayAware,
    c.MifaRule: Mifa,
    c.FedCompassRule: FedCompass,
    c.FedAtRule: FedAt,
    c.SafaRule: Safa,
    c.AsoFedRule: AsoFed,
    c.AflCsRule: AflCs,
    c.UserRule: OwnRule,
    c.FedNovaRule: FedNova,
    c.ScaffoldRule: Scaffold,
    c.FedDynRule: FedDyn,
    c.QFedAvgRule: QFedAvg,
}


def build(config: c.AggregationConfig, facts: Facts = ALONE) -> Rule:
    """The rule of a configuration, in the federation of `facts`. It holds no state but scratch memory: 256 KiB."""
    kind = type(config)
    return _PLAIN[kind](config) if kind in _PLAIN else _KNOWING[kind](config, facts)


def payload(config: c.AggregationConfig) -> Literal["delta", "model"]:
    """What the configuration's rule takes of clients: model differences or local models."""
    rule: Any = (_PLAIN | _KNOWING)[type(config)]
    found: Literal["delta", "model"] = rule.payload
    return found


def n_extras(config: c.AggregationConfig) -> int:
    """How many vectors the configuration's rule sends with the weights of a version."""
    rule: Any = (_PLAIN | _KNOWING)[type(config)]
    return int(rule.n_extras)
