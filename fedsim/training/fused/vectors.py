"""Vectors of 16 numbers in functions that numba compiles: what its own loops leave to luck is written out here.

A kernel keeps sums in registers, one vector each, while it goes through memory once. numba has no such type, so the
inner part of a kernel is an intrinsic that writes LLVM's code with an `Emitter`: the same on every machine, which does
it with as many instructions as its own vectors take. A sum's order and its fused multiplications do not depend on the
machine either. Memory is given by addresses and strides in numbers; `one`, the number 1, says of which type they are.

numba keeps compiled functions by the file that they stand in: whoever changes this one has to touch those that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils as _cgutils
from numba.core import types
from numba.extending import intrinsic

LANES = 16
IS_WIDE = bool(get_host_cpu_features().get("avx512f"))  # registers take a vector each; else two, of which there are 8
cgutils: Any = _cgutils
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function as machine code, kept on the disk between processes; types are those of the arguments."""
    return cast(F, numba.njit(cache=True)(function))


def reordered(function: F) -> F:
    """`compiled`, with sums in several parts at once: the machine and the number of terms alone decide their order."""
    return cast(F, numba.njit(cache=True, fastmath={"reassoc", "nsz"})(function))


def inner(emit: Callable[..., None]) -> Any:
    """A function of `one` and a tuple of operands for compiled code, whose own code `emit(emitter, *operands)` writes.

    Whole numbers become those of an address; of a tuple the length is given, which is known when code is written.
    """

    @intrinsic
    def function(typingctx: Any, one: Any, operands: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            given = [
                _operand(context, builder, kind, builder.extract_value(values[1], i))
                for i, kind in enumerate(operands.types)
            ]
            emit(Emitter(context, builder, one), *given)
            return context.get_dummy_value()

        return types.void(one, operands), code

    return function


def _operand(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.BaseTuple):
        return len(kind)
    return context.cast(builder, value, kind, types.intp) if isinstance(kind, types.Integer) else value


class Emitter:
    """Writes operations on vectors; addresses are values of LLVM's, and so are indices unless they are numbers."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.scalar, LANES)
        self._align = dtype.bitwidth // 8

    def index(self, value: int) -> Any:
        """A whole number as a value."""
        return ir.Constant(ir.IntType(64), value)

    def at(self, address: Any, *offsets: Any) -> Any:
        """A pointer to the number that lies so many numbers behind an address or pointer."""
        where = address
        if isinstance(where.type, ir.IntType):
            where = self.builder.inttoptr(where, self.scalar.as_pointer())
        for offset in offsets:
            where = self.builder.gep(where, [self.index(offset) if isinstance(offset, int) else offset])
        return where

    def load(self, where: Any, n: int = LANES) -> Any:
        """A vector of the numbers at a pointer."""
        kind = ir.VectorType(self.scalar, n)
        return self.builder.load(self.builder.bitcast(where, kind.as_pointer()), align=self._align)

    def store(self, value: Any, where: Any) -> None:
        """Puts a vector to a pointer."""
        self.builder.store(value, self.builder.bitcast(where, value.type.as_pointer()), align=self._align)

    def spread(self, number: Any) -> Any:
        """A number in all places of a vector."""
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.Constant(_INT32, 0))
        everywhere = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, first, everywhere)

    def number(self, where: Any) -> Any:
        """The number at a pointer in all places of a vector."""
        return self.spread(self.builder.load(where))

    def zero(self) -> Any:
        """A vector of zeros."""
        return ir.Constant(self.vector, [0.0] * LANES)

    def larger(self, a: Any, b: Any) -> Any:
        """Where a is larger than b, or NaN."""
        return self.builder.or_(self.builder.fcmp_ordered(">", a, b), self.builder.fcmp_unordered("uno", a, a))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once."""
        name = f"llvm.fma.v{LANES}f{self._align * 8}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def ahead(self, where: Any) -> None:
        """Asks for the memory at a pointer, which is needed soon."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [self.builder.bitcast(where, byte), *(ir.Constant(_INT32, i) for i in (0, 3, 1))])

    def variables(self, n: int) -> list[Any]:
        """Places for vectors that loops change: registers, as long as there are enough."""
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(n)]

    def sums(self, vectors: Sequence[Any]) -> Any:
        """The sum of each of eight vectors: a vector of eight numbers."""
        assert len(vectors) == LANES // 2
        level = list(vectors)
        while len(level) > 1:
            level = [self._halves(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
        return self._halves(level[0], None)

    def _halves(self, a: Any, b: Any) -> Any:
        """Sums of neighbours in a, then those in b; in a alone without b."""
        picks = [range(i, LANES if b is None else 2 * LANES, 2) for i in (0, 1)]
        parts = []
        for pick in picks:
            mask = ir.Constant(ir.VectorType(_INT32, len(pick)), list(pick))
            parts.append(self.builder.shuffle_vector(a, a if b is None else b, mask))
        return self.builder.fadd(*parts)


_INT32 = ir.IntType(32)
