"""What compiled Python lacks for work on bytes: unaligned loads, 64 bytes compared at once,
counting zero bits.

Numba compiles loops over arrays, but an array access there is one element, aligned and typed. These
are a dozen one-line building blocks on raw addresses, written in LLVM's own terms, so that they
become one or a few instructions on any processor (64 bytes are compared by AVX-512 in one
instruction, by AVX2 in two, by NEON in four).

All numbers are int64, because Numba turns int64 with uint64 into float64; a mask of 64 positions is
an int64 whose bit i is position i. Addresses are of arrays that the caller holds, and reach no
further than the caller says: nothing is checked here. Little-endian machines only, as are the
shards.

`kernel` compiles a function once and keeps the result on disk.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types

log = logging.getLogger(__name__)

intrinsic: Any = extending.intrinsic

_BIT = ir.IntType(1)
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_64_BYTES = ir.VectorType(_I8, 64)


def kernel(function: Callable[..., Any], *, parallel: bool = False) -> Callable[..., Any]:
    """`function`, compiled at its first call, without the interpreter lock, and cached on disk.

    `parallel` runs its `prange` loops on all threads that Numba has.

    Every compiled function of lmsmith that Python calls is made here. Before a call has to compile,
    one warning says so, once per process. Where no folder can be written (a read-only
    installation, no home), nothing is cached, each process compiles again, and the warning names
    NUMBA_CACHE_DIR. A cache that cannot be written or read later on is no error either.

    The cache is dropped when the function's file or any file of this package changes: Numba itself
    looks only at the file that holds the function, not at those whose functions it calls.
    """
    try:
        dispatcher: Any = numba.njit(cache=True, nogil=True, parallel=parallel)(function)
        cached = True
    except RuntimeError:  # Numba found no folder that it can write to
        dispatcher, cached = numba.njit(nogil=True, parallel=parallel)(function), False
    if cached:
        _make_forgiving(dispatcher._cache, Path(function.__code__.co_filename))
    called = False

    def call(*arguments: Any) -> Any:
        nonlocal called
        if not called:
            called = True
            if not cached:
                _say_once(_EVERY_TIME)
            elif not _is_on_disk(dispatcher._cache):
                _say_once(_THIS_ONCE)
        return dispatcher(*arguments)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.dispatcher = dispatcher  # type: ignore[attr-defined]
    return call


_THIS_ONCE = (
    "compiling for this processor: some ten seconds, this once; later starts take it from the disk"
)
_EVERY_TIME = (
    "compiling for this processor: some ten seconds, at every start, because there is no folder "
    "to keep the "
    "result in. Set NUMBA_CACHE_DIR to a folder that can be written."
)
_NOT_KEPT = (
    "compiled code cannot be kept on disk, so every start compiles again. Free some room, or set "
    "NUMBA_CACHE_DIR to "
    "another folder"
)


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


def _make_forgiving(cache: Any, file: Path) -> None:
    """Makes a Numba cache depend on all of this package, and its read and write errors harmless."""
    load, save = cache.load_overload, cache.save_overload
    if hasattr(cache._cache_file, "_source_stamp"):
        cache._cache_file._source_stamp = (_source_stamp(file), numba.__version__)

    def load_or_compile(signature: Any, target: Any) -> Any:
        try:
            return load(signature, target)
        except Exception:  # unpickling a damaged file raises anything
            with contextlib.suppress(OSError):
                cache._cache_file.flush()  # an empty index, so that what is compiled now is kept
            return None

    def save_or_say(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except OSError as error:
            _say_once(f"{_NOT_KEPT} ({error.strerror}: {error.filename}).")

    cache.load_overload, cache.save_overload = load_or_compile, save_or_say


def _is_on_disk(cache: Any) -> bool:
    """Whether some version of the function is in the cache."""
    try:
        return bool(cache._cache_file._load_index())
    except Exception:  # as above; AttributeError where Numba's inside has changed
        return False


def _source_stamp(file: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of all files of this package, and of `file` where it is outside."""
    files = {*Path(__file__).parent.glob("*.py"), file}
    return tuple(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)
    )


@numba.njit
def address(array):
    """Where the array's first element is."""
    return np.int64(array.ctypes.data)


@intrinsic
def load8(typing_context, at):
    """The byte at an address, 0 to 255."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.load(_pointer(builder, arguments[0], _I8), align=1), _I64)

    return types.int64(types.int64), generate


@intrinsic
def load32(typing_context, at):
    """The uint32 at an address, aligned or not."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.load(_pointer(builder, arguments[0], _I32), align=1), _I64)

    return types.int64(types.int64), generate


@intrinsic
def load64(typing_context, at):
    """The int64 at an address, aligned or not."""

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
    """Asks for the cache line at an address, without waiting for it."""

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
    """Mask of those of the 64 bytes at an address that lie in low..high."""

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
        # One unsigned comparison serves for both ends.
        above = builder.sub(loaded, everywhere(low))
        inside = builder.icmp_unsigned("<=", above, everywhere(builder.sub(high, low)))
        return builder.bitcast(inside, _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, mask):
    """The lowest position in a mask; 64 where it is empty."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(_BIT, 0))

    return types.int64(types.int64), generate


@intrinsic
def shifted_down(typing_context, mask, by):
    """`mask` with every position lowered by `by`, zeros coming in at the top (`>>` would bring
    in the sign).
    """

    def generate(context, builder, signature, arguments):
        return builder.lshr(arguments[0], arguments[1])

    return types.int64(types.int64, types.int64), generate


def _pointer(builder, at, kind):
    return builder.inttoptr(at, kind.as_pointer())
