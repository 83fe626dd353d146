"""fedsim: asynchronous federated learning, simulated on anything from a laptop to a Slurm cluster.

`fedsim.run(config)` runs a configuration; `fedsim.open_run(path)` reads what a run left behind. Both are
loaded when first used, so that `import fedsim` needs neither torch nor MPI nor HDF5.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.engine.run import run as run
    from fedsim.record.reader import open_run as open_run

__version__ = "0.1.0"
__all__ = ["__version__", "open_run", "run"]

_LAZY = {"run": "fedsim.engine.run", "open_run": "fedsim.record.reader"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
