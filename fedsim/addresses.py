"""Memory by its address, in functions that numba compiles: for arrays that are handed over as a list of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic


@intrinsic
def _pointer(typingctx: Any, one: Any, address: Any) -> Any:
    """A pointer to numbers of the type of `one`, for `array`."""

    def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        return builder.inttoptr(values[1], context.get_value_type(signature.return_type))

    kind: Any = types.CPointer
    return kind(one)(one, types.intp), code


pointer: Any = _pointer
array: Any = getattr(numba, "carray")  # noqa: B009 - numba does not say that it has it


@numba.njit(cache=True)
def start(values: Any) -> int:
    """Where an array begins: `fedsim.whereabouts.address` in a fifth of its time."""
    first: int = values.ctypes.data
    return first


@numba.njit(cache=True)
def starts(rows: Any) -> Any:
    """Where the rows of an array (G, P) begin: (G,)."""
    first, places = rows.ctypes.data, np.empty(rows.shape[0], np.int64)
    for i in range(places.size):
        places[i] = first + i * rows.strides[0]
    return places
