"""Functions compiled to machine code, through numba: the only module that imports it.

For the few loops that no library has for whole columns. What is compiled is kept beside the source (or in the user's cache
folder), so that only the first process ever waits for it. Nothing checks bounds: whoever reads words pads the array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., object])
Number: TypeAlias = Any
"""An int or one of numpy's scalars: a compiled function does not tell them apart."""


def compiled(function: F) -> F:
    """Compile at the first call. Arguments are arrays and scalars; while it runs, other threads do, too."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def _pointer(builder: Any, place: Any, bits: int) -> Any:
    return builder.inttoptr(builder.add(place[0], place[1]), ir.IntType(bits).as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def byte_at(_typing: Any, base: Any, at: Any) -> Any:
    """The byte at address `base` + `at`. Only inside compiled functions, as all below."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args, 8))

    return types.uint8(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def word_at(_typing: Any, base: Any, at: Any) -> Any:
    """The eight bytes from there on, the first one lowest, as on the machines that we run on."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args, 64), align=1)

    return types.uint64(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_word(_typing: Any, base: Any, at: Any, word: Any) -> Any:
    """Write eight bytes from there on."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(builder, args, 64), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_typing: Any, word: Any) -> Any:
    """How many of the lowest bits of a word are zero; 64 of zero."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.intp(types.uint64), generate
