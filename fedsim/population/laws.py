"""Laws of durations, rates and factors: transforms of two uniforms in [0, 1) into a value.

A draw is made of numpy's functions only, whether of one pair or of an array of pairs: they give the same bits for a
scalar and for any contiguous array, which Python's `math` does not promise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, assert_never

import numpy as np

from fedsim import seeding
from fedsim.config import ConstantLaw, ExponentialLaw, LawConfig, LognormalLaw, ParetoLaw, ShiftedExponentialLaw
from fedsim.errors import ConfigError, DataError, FedsimError
from fedsim.population.traces import read_columns
from fedsim.types import Float64, Int64

# The largest and smallest values of a 53-bit uniform put bounds on every law.
_LARGEST_LOG = 53 * math.log(2.0)  # -log(1 - u) is at most this
_LARGEST_NORMAL = math.sqrt(2.0 * _LARGEST_LOG)
# A product of two draws and a count must stay finite, and so must bytes over a rate.
LARGEST = 1e100
SMALLEST_RATE = 1e-100


class Law(ABC):
    """Values from `lowest` (0 or more) to `highest`; `typical` is their mean, or their median if that is infinite."""

    by_client: ClassVar[bool] = False
    lowest: float
    highest: float
    typical: float

    @abstractmethod
    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        """The values that uniforms `u` and `v` give, of their shape: numpy scalars or contiguous float64 arrays."""

    def typicals(self, clients: Int64) -> Float64:
        """The `typical` value of each client, of shape (C,)."""
        return np.full(clients.shape, self.typical)

    @property
    def fixed(self) -> float | None:
        """The one value that the law can give, or None."""
        return self.lowest if self.lowest == self.highest else None


class Constant(Law):
    def __init__(self, value: float) -> None:
        self.lowest = self.highest = self.typical = value

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        return self.typical + 0.0 * u


class Exponential(Law):
    """shift + an exponential of mean `mean - shift`."""

    def __init__(self, mean: float, shift: float = 0.0) -> None:
        self._shift, self._scale, self.typical = shift, mean - shift, mean
        self.lowest, self.highest = shift, shift + self._scale * _LARGEST_LOG

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        return self._shift - self._scale * np.log1p(-u)


class Lognormal(Law):
    """exp(mu + sigma z) with mu = log(mean) - sigma^2 / 2, so that `mean` is the mean."""

    def __init__(self, mean: float, sigma: float) -> None:
        self._mu, self._sigma, self.typical = math.log(mean) - sigma * sigma / 2.0, sigma, mean
        self.lowest, self.highest = (_exp(self._mu + sign * sigma * _LARGEST_NORMAL) for sign in (-1.0, 1.0))

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        return np.exp(self._mu + self._sigma * seeding.normals(u, v))


class Pareto(Law):
    """minimum (1 - u)^(-1 / shape). At `shape` 1 or less the mean is infinite: `typical` is then the median."""

    def __init__(self, minimum: float, shape: float) -> None:
        self._minimum, self._shape = minimum, shape
        self.lowest, self.highest = minimum, minimum * _exp(_LARGEST_LOG / shape)
        self.typical = minimum * (shape / (shape - 1.0) if shape > 1.0 else _exp(math.log(2.0) / shape))

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        return self._minimum * np.exp(-np.log1p(-u) / self._shape)


class Pool(Law):
    """A value drawn uniformly from a list."""

    def __init__(self, values: Float64) -> None:
        self._values = values
        self.lowest, self.highest, self.typical = float(values.min()), float(values.max()), float(values.mean())

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        # u < 1 keeps the index below the size: the product is never rounded up to it.
        return self._values[(u * float(self._values.size)).astype(np.int64)]


class PoolByClient(Law):
    """A value drawn uniformly from the client's own list; every client has one."""

    by_client: ClassVar[bool] = True

    def __init__(self, values: Float64, clients: Int64, n_clients: int) -> None:
        """`values` and `clients` in file order; `n_clients` lists, none of them empty."""
        self._values = values[np.argsort(clients, kind="stable")]
        self._first = np.searchsorted(np.sort(clients), np.arange(n_clients + 1))
        self._size = np.diff(self._first)
        self._means: Float64 = np.add.reduceat(self._values, self._first[:-1]) / self._size
        self.lowest, self.highest, self.typical = float(values.min()), float(values.max()), float(self._means.mean())

    def draw(self, u: Any, v: Any, clients: Any) -> Any:
        return self._values[self._first[clients] + (u * self._size[clients].astype(np.float64)).astype(np.int64)]

    def typicals(self, clients: Int64) -> Float64:
        return self._means[clients]


def _exp(x: float) -> float:
    """e^x, infinite where that is too large for a float."""
    return math.exp(x) if x < 709.0 else math.inf


def build_law(config: LawConfig, where: str, base_dir: Path, n_clients: int, rate: bool = False) -> Law:
    """The law of a configuration. `where` is its key, for messages; `base_dir` is where relative paths start.

    Raises ConfigError if the law can give a value above 1e100 or, as a `rate`, zero; DataError for a bad trace.
    """
    refusal: type[FedsimError] = ConfigError
    if config.law == "trace":
        path = base_dir / config.path
        law, refusal, where = _read_trace(path, n_clients), DataError, f"{path} ({where})"
    else:
        law = _closed_law(config)
    if not law.highest <= LARGEST:
        raise refusal(f"{where}: {config.law} can give values up to {law.highest:.3g}, allowed: up to {LARGEST:.0e}")
    if rate and law.lowest < SMALLEST_RATE:
        hint = " (use shifted-exponential with a shift above 0)" if "exponential" in config.law else ""
        raise refusal(
            f"{where}: {config.law} can give a rate of {law.lowest:.3g} bytes/s, "
            f"with which a transfer never ends; allowed: rates above 0{hint}"
        )
    return law


def _closed_law(config: ConstantLaw | ExponentialLaw | ShiftedExponentialLaw | LognormalLaw | ParetoLaw) -> Law:
    match config:
        case ConstantLaw():
            return Constant(config.mean)
        case ExponentialLaw():
            return Exponential(config.mean)
        case ShiftedExponentialLaw():
            return Exponential(config.mean, config.shift)
        case LognormalLaw():
            return Lognormal(config.mean, config.sigma) if config.sigma > 0.0 else Constant(config.mean)
        case ParetoLaw():
            return Pareto(config.minimum, config.shape)
        case _:
            assert_never(config)


def _read_trace(path: Path, n_clients: int) -> Law:
    columns = read_columns(path, required=("value",), optional=("client",), n_clients=n_clients)
    values = columns.floats["value"]
    columns.refuse(values < 0.0, "value", "at least 0")
    if columns.clients is None:
        return Pool(values)
    present = np.unique(columns.clients)
    if present.size < n_clients:
        absent = np.flatnonzero(present != np.arange(present.size))
        missing = int(absent[0]) if absent.size else present.size
        raise DataError(f"{path}: no row for client {missing}; with a column 'client', all {n_clients} need one")
    return PoolByClient(values, columns.clients, n_clients)
