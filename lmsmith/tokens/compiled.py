"""Compiles functions with Numba, and adds what Numba lacks for work on bytes: unaligned loads,
comparing 64 bytes at once, counting zero bits.

An array access in Numba reads one aligned element of the array's type. The intrinsics here work on
raw addresses. They are written in LLVM IR and become one or a few instructions on any processor
(comparing 64 bytes takes one instruction with AVX-512, two with AVX2, four with NEON).

All numbers are int64, because Numba converts int64 with uint64 to float64. A mask of 64 positions
is an int64 whose bit i is position i. Nothing is checked: the caller must keep the array alive and
stay within it. Little-endian machines only, like the shards.

`kernel` compiles a function once and caches the result on disk.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core.runtime import rtsys

from lmsmith.tokens.link_time import compiler_class

log = logging.getLogger(__name__)

intrinsic: Any = extending.intrinsic

_BIT = ir.IntType(1)
_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_64_BYTES = ir.VectorType(_I8, 64)

HIGH_BITS = -0x7F7F7F7F7F7F7F80  # of eight bytes: set in those that are not ASCII

_njit: Any = numba.njit  # its types lack some options
inner: Any = functools.partial(_njit, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator: a function that only compiled functions call. Without the entry points for Python and
C, it compiles faster. A call from Python crashes the process.
"""


def kernel(function: Callable[..., Any], *, parallel: bool = False) -> Kernel:
    """Decorator: compiles `function` on its first call, releases the GIL while it runs, and caches
    the result on disk. `parallel` runs its `prange` loops on all threads that Numba has.

    All compiled functions of lmsmith that Python calls use it. The first call that has to compile
    logs one warning per process. If no folder is writable (a read-only installation, no home),
    nothing is cached, each process compiles again, and the warning names NUMBA_CACHE_DIR. A cache
    that cannot be read or written later is not an error either.

    A change of the function's file, of the files of compiled functions that it imports, or of any
    file in this package invalidates the cache. Numba itself checks only the file of the function.
    """
    compiled = functools.partial(
        _njit,
        nogil=True,
        parallel=parallel,
        no_cfunc_wrapper=True,
        pipeline_class=compiler_class(),
    )
    try:
        dispatcher, cached = compiled(cache=True)(function), True
    except RuntimeError:  # Numba found no writable folder
        dispatcher, cached = compiled()(function), False
    if cached:
        _handle_cache_errors(dispatcher._cache, _sources(function))
    return Kernel(function, dispatcher, cached)


class Kernel:
    """A compiled function. `before_compiling` is called before the first call that compiles."""

    def __init__(self, function: Callable[..., Any], dispatcher: Any, cached: bool) -> None:
        self.dispatcher, self._cached, self._called = dispatcher, cached, False
        self.before_compiling: Callable[[], None] = lambda: None
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        if not self._called:
            if not self._cached:
                _warn_once(_NOT_CACHED)
            elif not self.is_on_disk():
                _warn_once(_COMPILING)
                self.before_compiling()
            self._called = True  # only now: another thread waits, too
        return self.dispatcher(*arguments)

    def is_on_disk(self) -> bool:
        """Returns whether compiled code is on disk, for any argument types; True if nothing can be
        saved there.
        """
        return not self._cached or _is_on_disk(self.dispatcher._cache)


_COMPILING = (
    "compiling for this processor, some seconds; the result is cached on disk for later starts"
)
_NOT_CACHED = (
    "compiling for this processor, about ten seconds at every start, because no folder is writable "
    "for the result. Set NUMBA_CACHE_DIR to a writable folder."
)
_NOT_SAVED = (
    "cannot save compiled code to disk, so every start compiles again. Free disk space, or set "
    "NUMBA_CACHE_DIR to another folder"
)


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _handle_cache_errors(cache: Any, sources: set[Path]) -> None:
    """Makes a Numba cache depend on these files, and handles its read and write errors."""
    load, save = cache.load_overload, cache.save_overload
    stamp = (_stamp(sources), numba.__version__)
    if hasattr(cache._cache_file, "_source_stamp"):
        cache._cache_file._source_stamp = stamp
    _check_contents(cache._cache_file, stamp)

    def load_or_compile(signature: Any, target: Any) -> Any:
        try:
            # Machine code from disk needs Numba's memory management, and nothing else of what
            # `load` sets up for compiling, which takes half a second.
            rtsys.initialize(target)
            return cache._load_overload(signature, target) or load(signature, target)
        except Exception:  # unpickling a damaged file can raise any exception
            with contextlib.suppress(OSError):
                cache._cache_file.flush()  # empties the index, so that the new result is saved
            return None

    def save_or_warn(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except OSError as error:
            _warn_once(f"{_NOT_SAVED} ({error.strerror}: {error.filename}).")

    cache.load_overload, cache.save_overload = load_or_compile, save_or_warn


def _check_contents(file: Any, stamp: Any) -> None:
    """Stores with the machine code of a function the argument types and sources that it is for, and
    ignores a file that holds something else.

    Numba numbers its files. If two processes compile a function for different types at the same
    time, both take the next number, and the index may then say float64 where the file has the
    machine code for float32. Numba would run it, with wrong results and no error.
    """
    load, save = file.load, file.save

    def load_checked(key: Any) -> Any:
        found = load(key)
        return found[2] if found is not None and found[:2] == (stamp, key) else None

    def save_labelled(key: Any, data: Any) -> None:
        save(key, (stamp, key, data))

    file.load, file.save = load_checked, save_labelled


def _is_on_disk(cache: Any) -> bool:
    """Returns whether the cache contains the function, for any argument types."""
    try:
        return bool(cache._cache_file._load_index())
    except Exception:  # as above; AttributeError if Numba's internals have changed
        return False


def _sources(function: Callable[..., Any]) -> set[Path]:
    """The files of this package, of the function, and of compiled functions in its module."""
    modules = {
        sys.modules.get(value.__module__)
        for value in function.__globals__.values()
        if type(value).__module__.startswith("numba.") and hasattr(value, "__module__")
    }
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    return files | {*Path(__file__).parent.glob("*.py"), Path(function.__code__.co_filename)}


def _stamp(files: set[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of each file."""
    return tuple(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)
    )


@inner
def address(array):
    """Returns the address of the array's first element."""
    return np.int64(array.ctypes.data)


@intrinsic
def load8(typing_context, at):
    """Returns the byte at an address, 0 to 255."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.load(_pointer(builder, arguments[0], _I8), align=1), _I64)

    return types.int64(types.int64), generate


@intrinsic
def load32(typing_context, at):
    """Returns the uint32 at an address, aligned or not."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.load(_pointer(builder, arguments[0], _I32), align=1), _I64)

    return types.int64(types.int64), generate


@intrinsic
def load64(typing_context, at):
    """Returns the int64 at an address, aligned or not."""

    def generate(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _I64), align=1)

    return types.int64(types.int64), generate


@intrinsic
def store8(typing_context, at, value):
    """Writes the lowest byte of `value` to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(
            builder.trunc(arguments[1], _I8), _pointer(builder, arguments[0], _I8), align=1
        )
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def store16(typing_context, at, value):
    """Writes the lowest two bytes of `value` to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(
            builder.trunc(arguments[1], _I16), _pointer(builder, arguments[0], _I16), align=1
        )
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def store32(typing_context, at, value):
    """Writes the lower half of `value` to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(
            builder.trunc(arguments[1], _I32), _pointer(builder, arguments[0], _I32), align=1
        )
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def store64(typing_context, at, value):
    """Writes `value` to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0], _I64), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def prefetch(typing_context, at):
    """Prefetches the cache line at an address, without waiting for it."""

    def generate(context, builder, signature, arguments):
        pointer, to_read, keep, data = (
            _I8.as_pointer(),
            ir.Constant(_I32, 0),
            ir.Constant(_I32, 3),
            ir.Constant(_I32, 1),
        )
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(function, [_pointer(builder, arguments[0], _I8), to_read, keep, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic
def positions_between(typing_context, at, low, high):
    """Mask of the positions among the 64 bytes at an address whose byte is in low..high."""

    def generate(context, builder, signature, arguments):
        def everywhere(value):
            undefined, zeros = (
                ir.Constant(_64_BYTES, ir.Undefined),
                ir.Constant(ir.VectorType(_I32, 64), None),
            )
            first = builder.insert_element(
                undefined, builder.trunc(value, _I8), ir.Constant(_I32, 0)
            )
            return builder.shuffle_vector(first, undefined, zeros)

        at, low, high = arguments
        loaded = builder.load(_pointer(builder, at, _64_BYTES), align=1)
        # One unsigned comparison checks both bounds.
        above = builder.sub(loaded, everywhere(low))
        inside = builder.icmp_unsigned("<=", above, everywhere(builder.sub(high, low)))
        return builder.bitcast(inside, _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, mask):
    """Returns the lowest position in a mask; 64 if the mask is empty."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(_BIT, 0))

    return types.int64(types.int64), generate


@intrinsic
def highest(typing_context, mask):
    """Returns the highest position in a mask, which must not be empty."""

    def generate(context, builder, signature, arguments):
        above = builder.ctlz(arguments[0], ir.Constant(_BIT, 0))
        return builder.sub(ir.Constant(_I64, 63), above)

    return types.int64(types.int64), generate


@intrinsic
def count(typing_context, mask):
    """Returns the number of positions in a mask."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def shifted_down(typing_context, mask, by):
    """`mask` with every position lowered by `by`: a logical shift, where `>>` is arithmetic."""

    def generate(context, builder, signature, arguments):
        return builder.lshr(arguments[0], arguments[1])

    return types.int64(types.int64, types.int64), generate


def _pointer(builder, at, kind):
    return builder.inttoptr(at, kind.as_pointer())
