"""Parameters between flat vectors and a slab's rows on the host, compiled: all of them, of all slots, in one call.

A row of `table` says of a parameter: its first number in a vector, its rows and their length, a row's stride in the
slab, a slot's stride there, and the address of the first slot. Other strides are in numbers, too.
Shapes: `T` parameters of a table.
"""

from __future__ import annotations

from typing import Any

from fedsim.addresses import array, pointer
from fedsim.training.fused.vectors import compiled


@compiled
def load(one: Any, table_T: Any, n_slots: int, vectors: int, vectors_slot: int, n_bytes: int) -> None:
    """The first slots become what flat vectors say; a stride of zero gives all the same."""
    for i in range(table_T.shape[0]):
        source, n_rows, n, stride, slot, to = table_T[i]
        for s in range(n_slots):
            for row in range(n_rows):
                at = source + s * vectors_slot + row * n
                values = array(pointer(one, vectors + n_bytes * at), (n,))
                target = array(pointer(one, to + n_bytes * (s * slot + row * stride)), (n,))
                for j in range(n):
                    target[j] = values[j]


@compiled
def read(one: Any, table_T: Any, first: int, n_slots: int, out: int, out_slot: int, n_bytes: int) -> None:
    """Flat vectors become what slots from `first` on hold."""
    for i in range(table_T.shape[0]):
        source, n_rows, n, stride, slot, at = table_T[i]
        for s in range(n_slots):
            for row in range(n_rows):
                values = array(pointer(one, at + n_bytes * ((first + s) * slot + row * stride)), (n,))
                target = array(pointer(one, out + n_bytes * (source + s * out_slot + row * n)), (n,))
                for j in range(n):
                    target[j] = values[j]


@compiled
def subtract(
    one: Any, table_T: Any, first: int, n_slots: int, base: int, base_slot: int, out: int, out_slot: int, n_bytes: int
) -> None:
    """Flat vectors become what slots from `first` on hold, less a base, of which each has one or all the same."""
    for i in range(table_T.shape[0]):
        source, n_rows, n, stride, slot, at = table_T[i]
        for s in range(n_slots):
            for row in range(n_rows):
                values = array(pointer(one, at + n_bytes * ((first + s) * slot + row * stride)), (n,))
                less = array(pointer(one, base + n_bytes * (source + s * base_slot + row * n)), (n,))
                target = array(pointer(one, out + n_bytes * (source + s * out_slot + row * n)), (n,))
                for j in range(n):
                    target[j] = values[j] - less[j]
