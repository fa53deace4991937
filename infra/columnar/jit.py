"""Functions compiled to machine code, through numba: the only module that imports it.

For the few loops that no library has for whole columns. What is compiled is kept beside the source (or in a cache folder), so
that only the first process ever waits for it; where nothing can be written, every process compiles for itself. Nothing checks
bounds: a caller that reads words pads the array.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import caching, types
from numba.extending import intrinsic

from infra import user_cache

F = TypeVar("F", bound=Callable[..., object])
Number: TypeAlias = Any
"""An int or one of numpy's scalars: a compiled function takes both."""


class _ReadOnlyBesideSource(caching.InTreeCacheLocator):  # type: ignore[misc]
    """What set-up compiled, where the code cannot be written any more."""

    def ensure_cache_path(self) -> None:
        """Raises OSError where nothing was compiled."""
        if not any(Path(self.get_cache_path()).glob("*.nbi")):
            raise FileNotFoundError(self.get_cache_path())


class _CacheFolder(caching.InTreeCacheLocator):  # type: ignore[misc]
    """The cache folder of this user, or of this uid."""

    def __init__(self, function: Callable[..., object], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = ""
        with contextlib.suppress(OSError):
            self._cache_path = os.path.join(  # noqa: PTH118 - numba wants text
                user_cache.writable_folder(), "compiled", self.get_suitable_cache_subpath(file)
            )

    def ensure_cache_path(self) -> None:
        """Raises OSError where there is none."""
        if not self._cache_path:
            raise FileNotFoundError("no cache folder can be written")
        super().ensure_cache_path()


class _Files(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (
        caching.UserProvidedCacheLocator,
        caching.InTreeCacheLocator,
        _ReadOnlyBesideSource,
        _CacheFolder,
    )


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _Files

    def load_overload(self, signature: Any, target: Any) -> Any:
        """A function compiled earlier; None where there is none, or where its file is damaged or not to be read."""
        try:
            return super().load_overload(signature, target)
        except (OSError, EOFError, pickle.UnpicklingError):
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep a compiled function, if that is possible: for another processor, or on a full disk, it may not be."""
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)


def compiled(function: F) -> F:
    """Compile at the first call. Arguments are arrays and scalars; while it runs, other threads do, too."""
    return _compiled(function, inline=False)


def inlined(function: F) -> F:
    """Compile as a part of the functions that call it: for one that only gives a step of a hot loop its name.

    Left to itself, LLVM inlines small functions alone, and a call for each event and field costs half as much as the parsing does.
    """
    return _compiled(function, inline=True)


def _compiled(function: F, *, inline: bool) -> F:
    dispatcher = numba.njit(nogil=True, forceinline=inline)(function)
    # As `cache=True` does, but for the folders, and for what happens where there is none.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return cast(F, dispatcher)


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
    """Write eight bytes to address `base` + `at`."""

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
